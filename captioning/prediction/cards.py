"""One picture of the gallery as HTML: everything that came from outside is escaped here."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from captioning.data.images import UnreadablePicture, read_picture
from captioning.prediction.thumbnails import thumbnail, webp

LOG_PROBABILITY = "log-probability"  # the key that the page sorts by, beside the names of scores


@dataclass(frozen=True)
class GalleryEntry:
    """A picture and what is known of it: a caption, or the reason (`error`) why there is none.

    `log_probability` is the mean per token in nats; `alternatives` are captions and theirs, best first. `scores` are
    by name, such as CIDEr. `picture` is its thumbnail as `thumbnails.thumbnail` makes it; without one it is made of
    the file at `path`. `heat_map` is a strip as `heat_maps.draw_heat_maps` makes it.
    """

    path: Path
    caption: str | None = None
    log_probability: float | None = None
    error: str | None = None
    references: Sequence[str] = ()
    alternatives: Sequence[tuple[str, float]] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    picture: bytes | None = None
    heat_map: Image.Image | None = None


def card(place: int, entry: GalleryEntry) -> tuple[str, str]:
    """An entry as a list item, in two parts: the scores (`score_values`) belong between them."""
    words = f'<p class="caption" id="caption-{place}" dir="auto">{_text(entry.caption or "")}</p>'
    if entry.error is not None:
        words = f'<p class="error" id="caption-{place}">No caption: {_text(entry.error)}</p>'
    value = entry.log_probability
    numbers = _value(LOG_PROBABILITY, "log p", value) if value is not None and math.isfinite(value) else ""
    start = f'<li class="card" tabindex="-1" data-place="{place}" aria-labelledby="caption-{place}">'
    name = f'<p class="name" title="{_text(entry.path)}">{_text(entry.path.name)}</p>'
    opened = f'{start}{_picture(entry)}<div class="words">{words}<p class="numbers">{numbers}'
    return opened, f"</p>{name}{_references(entry)}{_alternatives(entry)}{_heat_map(entry)}</div></li>\n"


def score_values(scores: Mapping[str, float]) -> str:
    """The scores that are numbers, each with its name."""
    return "".join(_value(name, name, score) for name, score in scores.items() if math.isfinite(score))


def _picture(entry: GalleryEntry) -> str:
    reason = entry.error
    data = entry.picture
    if data is None and reason is None:
        try:
            data = thumbnail(read_picture(entry.path))
        except UnreadablePicture as unreadable:
            reason = str(unreadable)
    if data is None:
        return f'<div class="picture none" role="img" aria-label="no picture: {_text(reason)}"></div>'
    return f'<div class="picture">{_image(data, f"picture {entry.path.name}")}</div>'


def _image(data: bytes, description: str) -> str:
    with Image.open(BytesIO(data)) as image:
        kind, (width, height) = Image.MIME[image.format or ""], image.size
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    size = f'width="{width}" height="{height}"'
    return f'<img src="{source}" alt="{_text(description)}" {size} loading="lazy" decoding="async">'


def _references(entry: GalleryEntry) -> str:
    if not entry.references:
        return ""
    items = "".join(f'<li dir="auto">{_text(reference)}</li>' for reference in entry.references)
    count = len(entry.references)
    return _folded("references", f"{count} reference{'s' * (count > 1)}", f"<ul>{items}</ul>")


def _alternatives(entry: GalleryEntry) -> str:
    if not entry.alternatives:
        return ""
    items = "".join(
        f'<li dir="auto">{_text(caption)} <span class="number">{_number(value)}</span></li>'
        for caption, value in entry.alternatives
    )
    return _folded("alternatives", f"The {len(entry.alternatives)} best", f"<ol>{items}</ol>")


def _heat_map(entry: GalleryEntry) -> str:
    if entry.heat_map is None:
        return ""
    described = f"a heat map over the picture for each word of: {entry.caption}"
    strip = '<div class="strip" tabindex="0" role="group" aria-label="heat maps">'
    return _folded("heat-map", "Where the model looked", f"{strip}{_image(webp(entry.heat_map), described)}</div>")


def _folded(kind: str, title: str, content: str) -> str:
    return f'<details class="{kind}"><summary>{title}</summary>{content}</details>'


def _value(key: str, label: str, value: float) -> str:
    return f'<data data-key="{_text(key)}" value="{value:.6g}">{_text(label)} <b>{_number(value)}</b></data> '


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def _text(value: object) -> str:
    """Escaped for an element or a quoted attribute; bytes of a file name that are no UTF-8 become question marks."""
    return escape(str(value), quote=True).encode("utf-8", "replace").decode()
