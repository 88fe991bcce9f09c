"""Where the decoder looks: the weights of its cross-attention, for one picture and one caption.

Letters: T tokens of the caption, L layers, P encoded patches (prefix tokens included), D decoder width, H and W
picture height and width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captioning.model.captioner import ImageCaptioner


def decoder_layers(captioner: ImageCaptioner) -> int:
    """L, how many layers of the decoder attend to the picture."""
    return captioner.network.decoder.config.num_hidden_layers


@torch.inference_mode()
def cross_attention(
    captioner: ImageCaptioner, pixel_values: Tensor, token_ids: Sequence[int], layers: Sequence[int] | None = None
) -> Tensor:
    """How much each patch was attended to when each token of a caption was chosen: (T, rows, columns) float32.

    Map t is of the position that is fed token t - 1 (BOS for the first) and predicts token t. Heads are averaged, and
    then layers. Prefix tokens have no place in the picture and are left out; what remains isn't scaled up, so the sum
    of a map is the share of attention that the patches got, at most 1.

    Args:
        captioner: in eval mode.
        pixel_values: (1, 3, H, W) uint8, on the captioner's device.
        token_ids: the T tokens as they were chosen: without BOS, and with EOS if its map is wanted.
        layers: of the decoder, counted from 0; None averages all.
    """
    decoder: Any = captioner.network.decoder
    chosen = range(decoder_layers(captioner)) if layers is None else layers
    fed = [decoder.config.bos_token_id, *token_ids[:-1]]
    layers_shown = [decoder.transformer.h[i].crossattention for i in chosen]
    with captioner.eagerly(), _weights_of(layers_shown, decoder) as weights:
        decoder.transformer(
            input_ids=torch.tensor([fed], device=pixel_values.device),
            encoder_hidden_states=captioner.encode(pixel_values),  # (1, P, D)
            use_cache=False,
        )
    attended = torch.stack(weights).float().mean((0, 1, 2))  # (L, 1, heads, T, P) -> (T, P)
    return attended[:, captioner.prefix_tokens :].unflatten(1, captioner.patch_grid(pixel_values.shape[-2:]))


@contextmanager
def _weights_of(layers: Sequence[nn.Module], decoder: Any) -> Iterator[list[Tensor]]:
    """A list that fills with the attention weights (1, heads, T, P) of `layers`, in order, as the decoder runs.

    The kernel that is used otherwise computes no weights, so the plain one stands in for it. transformers'
    `output_attentions` would leave its hooks in the decoder for good.
    """
    weights: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: weights.append(output[1])) for layer in layers]
    usual = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield weights
    finally:
        decoder.set_attn_implementation(usual)
        for hook in hooks:
            hook.remove()
