"""Captions from pictures: `generate` with one of the decodings `Greedy`, `Sampling`, `Beam` and `Rollouts`.

Letters in all its files: B pictures (R of them still in the batch), K beams or captions of a picture, P encoded
patches, D decoder width, V vocabulary, T the longest caption allowed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from captioning.data.tokenizer import CaptionTokenizer
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation.beam import Beam
from captioning.model.generation.graphs import statically_from
from captioning.model.generation.rules import in_tokens
from captioning.model.generation.sampling import Greedy, Rollouts, Sampling
from captioning.model.generation.steps import Caption, Decoding, StepwiseDecoder, require_room, searched


def decoding_of(captioner: ImageCaptioner, tokenizer: CaptionTokenizer, decoding: Decoding) -> Decoding:
    """The decoding with its texts as this model's tokens.

    Raises:
        UserError: if they can't be, or the decoder has too few positions for the longest caption.
    """
    decoding = in_tokens(decoding, tokenizer.encode, captioner.network.decoder.config.vocab_size)
    require_room(captioner, decoding)
    return decoding


__all__ = [
    "Beam", "Caption", "Decoding", "Greedy", "Rollouts", "Sampling", "generate", "generate_from", "in_tokens",
    "require_room",
]  # fmt: skip


@torch.inference_mode()
def generate(
    captioner: ImageCaptioner,
    pixel_values: Tensor,
    decoding: Decoding,
    addresses: Sequence[int] | None = None,
    *,
    static: bool | None = None,
) -> list[Caption]:
    """One caption for each picture of (B, 3, H, W) uint8.

    Args:
        captioner: in eval mode; BOS and EOS are its decoder's.
        pixel_values: uint8, on the captioner's device.
        decoding: how tokens are chosen.
        addresses: B whole numbers that tell the pictures apart in sampling; 0, 1, ... if not given.
        static: whether over fixed buffers, from CUDA graphs where there is CUDA, see graphs.py; None: where there is.

    Raises:
        UserError: if `max_new_tokens` is more than the decoder has positions for.
    """
    return generate_from(captioner, captioner.encode(pixel_values), decoding, addresses, static=static)


@torch.inference_mode()
def generate_from(
    captioner: ImageCaptioner,
    attended: Tensor,
    decoding: Decoding,
    addresses: Sequence[int] | None = None,
    *,
    static: bool | None = None,
) -> list[Caption]:
    """`generate`, of pictures encoded already: `attended` (B, P, D) is what `ImageCaptioner.attended` gives."""
    require_room(captioner, decoding)
    addresses = range(len(attended)) if addresses is None else addresses
    with captioner.eagerly():
        if attended.is_cuda if static is None else static:
            return statically_from(captioner, attended, decoding, addresses)
        decoder = StepwiseDecoder(captioner, attended, decoding)
        return searched(decoder, decoding.search(decoder), decoding, addresses)
