"""Where the model looked as it chose each word of a caption: a strip of panels, in which its attention is drawn."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from captioning.data.batch import PictureFormat
from captioning.data.tokenizer import CaptionTokenizer
from captioning.errors import UserError
from captioning.model.attention import cross_attention, decoder_layers
from captioning.model.captioner import ImageCaptioner

PANEL = 200  # pixels, the longer side of a panel
COLUMNS = 6  # panels beside each other, then a new row begins
GAP, LABEL = 12, 30  # pixels between panels, and under each for its word
FONT_SIZE = 17
PAPER, INK = (255, 255, 255), (32, 33, 36)

# From unattended to attended: how much of the photograph's brightness stays, and how much of GLOW is laid over it.
SHADE, GLOW, GLOW_SHARE = 0.30, (255, 140, 0), 0.42
GREY = 0.65  # how far unattended parts lose their colours

END = "(end)"  # the label of EOS

HeatMap = np.ndarray  # (rows, columns) float32, not negative


class Word(NamedTuple):
    """A panel's label and its map."""

    text: str
    heat: HeatMap


def draw_heat_maps(
    captioner: ImageCaptioner,
    tokenizer: CaptionTokenizer,
    pixel_values: Tensor,
    token_ids: Sequence[int],
    *,
    seen: Image.Image | None = None,
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
        seen: what `seen_part` gives of the photograph; None draws over `pixel_values` themselves.
        ended: whether EOS came after these tokens, or they were cut off; it gets a panel of its own.
        layers: of the decoder, counted from 0; None averages all.
        panel: pixels, the longer side of a panel.
    """
    chosen = [*token_ids, tokenizer.eos_token_id] if ended else list(token_ids)
    if seen is None:
        seen = Image.fromarray(pixel_values.permute(1, 2, 0).cpu().numpy())
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


def strip(photograph: Image.Image, words: Sequence[Word], panel: int = PANEL) -> Image.Image:
    """The photograph alone and under the map of each word, in rows of `COLUMNS` panels.

    A map is laid over the whole of `photograph` (so hand in the part that the model saw, see `seen_part`), smoothed
    between its patches, and scaled so that its own greatest weight is brightest: panels show where, not how much.
    """
    size = _size_in_panel(photograph, panel)
    plain = photograph.resize(size, Image.Resampling.LANCZOS)
    panels = [("", plain), *((word.text, _heated(plain, word.heat)) for word in words)]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    wide, high = size[0] + GAP, size[1] + LABEL
    sheet = Image.new("RGB", (columns * wide + GAP, rows * high + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (text, picture) in enumerate(panels):
        left, top = GAP + place % columns * wide, GAP + place // columns * high
        sheet.paste(picture, (left, top))
        middle = left + size[0] / 2, top + size[1] + (LABEL - GAP / 2) / 2
        draw.text(middle, _fitting(text, size[0] + GAP // 2), INK, _font(), anchor="mm")
    return sheet


def seen_part(photograph: Image.Image, picture_format: PictureFormat, panel: int = PANEL) -> Image.Image:
    """The part of a photograph that the encoder sees, as large as a panel."""
    part = photograph.crop(seen_box(photograph.size, picture_format))
    return part.resize(_size_in_panel(part, panel), Image.Resampling.LANCZOS)


def seen_box(size: tuple[int, int], picture_format: PictureFormat) -> tuple[int, int, int, int]:
    """The part of a photograph of this (width, height) that the encoder sees: left, top, right, bottom in its pixels.

    The whole of it, or the middle where the format cuts that out; then it may reach beyond the photograph.
    """
    width, height = size
    wide: float
    high: float
    wide, high = picture_format.resized_to(width, height)
    if (high, wide) == picture_format.size:
        return 0, 0, width, height
    if picture_format.resize_shortest is not None:  # before the longer side is rounded
        wide, high = (picture_format.resize_shortest * side / min(size) for side in size)
    wide, high = picture_format.size[1] * width / wide, picture_format.size[0] * height / high
    left, top = (width - wide) / 2, (height - high) / 2
    return round(left), round(top), round(left + wide), round(top + high)


def _size_in_panel(picture: Image.Image, panel: int) -> tuple[int, int]:
    scale = panel / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _heated(picture: Image.Image, heat: HeatMap) -> Image.Image:
    greatest = max(float(heat.max()), 1e-12)  # a map of zeros stays one
    scaled = Image.fromarray((heat / greatest).astype(np.float32))
    smooth = np.asarray(scaled.resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]  # (H, W, 1)
    colours = np.asarray(picture, np.float32)
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    colours = colours + (grey - colours) * GREY * (1 - smooth)
    colours *= SHADE + (1 - SHADE) * smooth
    colours += (np.array(GLOW, np.float32) - colours) * GLOW_SHARE * smooth**1.5
    return Image.fromarray((colours + 0.5).clip(0, 255).astype(np.uint8))


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has the letters of most scripts; Pillow's own font has ASCII alone. It lies in matplotlib."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), FONT_SIZE)


def _fitting(text: str, width: int) -> str:
    """The text on one line, cut where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
