"""Where the model looked as it chose each word of a caption."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from captioning.data.tokenizer import CaptionTokenizer
from captioning.errors import UserError
from captioning.model.attention import cross_attention, decoder_layers
from captioning.model.captioner import ImageCaptioner
from captioning.prediction.strips import PANEL, Word, seen_part, strip

END = "(end)"  # the label of EOS


def draw_heat_maps(
    captioner: ImageCaptioner,
    tokenizer: CaptionTokenizer,
    pixel_values: Tensor,
    token_ids: Sequence[int],
    *,
    photograph: Image.Image | None = None,
    ended: bool = True,
    layers: Sequence[int] | None = None,
    panel: int = PANEL,
) -> Image.Image:
    """A strip with the cross-attention of each word of a caption over the photograph.

    Args:
        captioner: in eval mode.
        tokenizer: its own.
        pixel_values: (3, H, W) uint8, what the encoder gets of the photograph, on any device.
        token_ids: the caption's, without BOS and EOS.
        photograph: as it was read; None draws over `pixel_values` themselves.
        ended: whether EOS came after these tokens, or they were cut off; it gets a panel of its own.
        layers: of the decoder, counted from 0; None averages all.
        panel: pixels, the longer side of a panel.
    """
    chosen = [*token_ids, tokenizer.eos_token_id] if ended else list(token_ids)
    if photograph is None:
        seen = Image.fromarray(pixel_values.permute(1, 2, 0).cpu().numpy())
    else:
        seen = photograph.crop(seen_part(photograph.size, captioner.picture_format))
    if not chosen:
        return strip(seen, [], panel)
    device = next(captioner.buffers()).device
    maps = cross_attention(captioner, pixel_values[None].to(device), chosen, layers).cpu()
    grouped = tokenizer.words(token_ids) + ([(END, [len(token_ids)])] if ended else [])
    return strip(seen, [Word(text, maps[places].mean(0).numpy()) for text, places in grouped], panel)


def checked_layers(wanted: object, captioner: ImageCaptioner) -> list[int] | None:
    """The decoder's layers that the key `heat_maps_layers` names: null is all, otherwise a number or a list of them.

    Raises:
        UserError: if the decoder has no such layer.
    """
    if wanted is None:
        return None
    given = wanted if isinstance(wanted, list) else [wanted]
    last = decoder_layers(captioner) - 1
    layers = [layer for layer in given if type(layer) is int and 0 <= layer <= last]
    if not layers or len(layers) < len(given):
        raise UserError(
            f"heat_maps_layers={wanted} must name layers of this model's decoder, 0 to {last}; null averages all"
        )
    return layers
