"""The way into generation."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation.captions import Caption
from captioning.model.generation.steps import StepwiseDecoder


class Decoding(Protocol):
    """How captions come about: `Greedy`, `Sampling` or `Beam`."""

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of a caption, EOS included."""

    @property
    def room(self) -> int:
        """The most tokens that the decoder is fed for a picture, those of all its beams together."""

    def captions(self, decoder: StepwiseDecoder, addresses: Sequence[int]) -> list[Caption]:
        """One for each of the decoder's pictures, which these numbers tell apart where something is drawn."""


def require_room(captioner: ImageCaptioner, decoding: Decoding) -> None:
    """Raise UserError if the decoder has too few positions for the longest caption."""
    limit = captioner.max_positions - 1  # BOS takes one
    if decoding.max_new_tokens > limit:
        raise UserError(f"decoding.max_new_tokens={decoding.max_new_tokens} is more than this model's limit of {limit}")


@torch.inference_mode()
def generate(
    captioner: ImageCaptioner, pixel_values: Tensor, decoding: Decoding, addresses: Sequence[int] | None = None
) -> list[Caption]:
    """One caption for each picture of (B, 3, H, W) uint8.

    Args:
        captioner: in eval mode; BOS and EOS are its decoder's.
        pixel_values: uint8, on the captioner's device.
        decoding: how tokens are chosen.
        addresses: B whole numbers that tell the pictures apart in sampling; 0, 1, ... if not given.

    Raises:
        UserError: if `max_new_tokens` is more than the decoder has positions for.
    """
    return generate_from(captioner, captioner.encode(pixel_values), decoding, addresses)


@torch.inference_mode()
def generate_from(
    captioner: ImageCaptioner, attended: Tensor, decoding: Decoding, addresses: Sequence[int] | None = None
) -> list[Caption]:
    """`generate`, of pictures encoded already: `attended` (B, P, D) is what `ImageCaptioner.attended` gives."""
    require_room(captioner, decoding)
    decoder = StepwiseDecoder(captioner, attended, decoding.room)
    return decoding.captions(decoder, range(len(attended)) if addresses is None else addresses)
