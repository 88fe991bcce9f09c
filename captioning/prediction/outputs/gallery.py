"""Pictures beside their captions, in one HTML file that needs nothing else: all that came from outside is escaped."""

import base64
import math
import tempfile
from collections.abc import Iterator, Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Self

from PIL import Image

from captioning.errors import UserError
from captioning.pages import fill, whole_page
from captioning.prediction.journal import NOTHING, CaptionedPicture, May, beside, disk_errors
from captioning.prediction.outputs.files import Sink, check_file, new_file, real_file
from captioning.prediction.outputs.scores import SplitScores

EXAMPLE = "captions.html"
LOG_PROBABILITY = "log-probability"  # the key that the page sorts by, beside the names of scores

SIDE = 240  # pixels, the longer side of a small picture; sharp on a phone, and 5,000 stay at 40 MB in a page
LONGEST = 8  # times the shorter side: of a longer picture its middle is shown
QUALITY = 75  # of WebP; about 6 kB a photograph, where JPEG takes 7.5


def gallery_path(wanted: bool | str | None, output: Path) -> Path | None:
    """Where the key `gallery` puts the page: nowhere (false), beside `output` (true: `captions.html`), or at a path.

    Raises:
        UserError: if that is the output itself, or no .html file.
    """
    if not wanted:
        return None
    path = beside(output, "html") if wanted is True else Path(wanted)
    if real_file(path) == real_file(output):
        raise UserError(f"gallery={path} is the output too; name another file with gallery=...")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"gallery={path} is a page for a browser; name an .html file, or leave the name to gallery=true"
        )
    return path


class Gallery(Sink):
    """Writes the page: pictures with captions, sorted and searched in the browser.

    Pictures may be added in any order, and their scores later, also all at the end, since some are known only when
    every caption is: in the page they stand by their places. Memory stays small: cards wait in a nameless temporary
    file.

    Nothing in the page comes from elsewhere, and its Content-Security-Policy forbids it: pictures are `data:` URIs,
    and of scripts and styles only the page's own run. It can be read with JavaScript off.

    Args:
        path: the file to write.
        scores: of a split, which know those of each picture when they are finished.
        may: what is done with a file that exists.

    Raises:
        UserError: if the page can't be written at `path`, at once or at the end.
    """

    def __init__(self, path: str | Path, scores: SplitScores | None = None, may: May = NOTHING):
        self.path, self._split_scores, self._may = Path(path), scores, may
        self._spans: dict[int, tuple[int, int, int]] = {}  # of a card: its start, where scores belong, its end
        self._scores: dict[int, str] = {}
        self._score_names: dict[str, None] = {}  # an ordered set
        self._end = 0
        self._check()

    def _check(self) -> None:
        check_file("gallery", self.path, any(self._may), example=EXAMPLE)

    def __enter__(self) -> Self:
        self._cards = tempfile.TemporaryFile(dir=real_file(self.path).parent)  # closed in __exit__
        return self

    def __exit__(self, *error: object) -> None:
        self._cards.close()

    def add(self, record: CaptionedPicture) -> None:
        """The next picture."""
        assert record.place not in self._spans, f"picture {record.place} was added twice"
        before, after = (part.encode() for part in card(record))
        with disk_errors("gallery", self.path):
            self._cards.write(before + after)
        middle, end = self._end + len(before), self._end + len(before) + len(after)
        self._spans[record.place], self._end = (self._end, middle, end), end

    def add_scores(self, per_picture: Mapping[int, Mapping[str, float]]) -> None:
        """The scores of the pictures at these places, by name; names are those of all pictures."""
        for place, scores in per_picture.items():
            self._scores[place] = score_values(scores)
            self._score_names |= dict.fromkeys(scores)

    def finish(self) -> None:
        """Write the page."""
        self._check()  # something may have got the name in the meantime
        if self._split_scores:
            self.add_scores(self._split_scores.scores.per_picture)
        before, after = page(self.path.stem, list(self._score_names), len(self._spans))
        with new_file("gallery", self.path, self._may) as file:
            file.write(before.encode())
            for part in self._parts():
                file.write(part)
            file.write(after.encode())

    def _parts(self) -> Iterator[bytes]:
        for place, (start, middle, end) in sorted(self._spans.items()):
            self._cards.seek(start)
            yield self._cards.read(middle - start)
            yield self._scores.get(place, "").encode()
            yield self._cards.read(end - middle)


def page(title: str, score_names: list[str], count: int) -> tuple[str, str]:
    """The page before its cards and after them."""
    before, after = whole_page("gallery").split("%CARDS%")
    options = "".join(f"<option>{escape(name)}</option>" for name in score_names)
    filled = {
        "TITLE": escape(title).encode("utf-8", "replace").decode(),
        "COUNT": f"{count:,} picture{'s' * (count != 1)}",
        "LOG_PROBABILITY": LOG_PROBABILITY,
        "SCORES": options,
    }
    return fill(before, filled), fill(after, filled)


def card(record: CaptionedPicture) -> tuple[str, str]:
    """A picture as a list item, in two parts: the scores (`score_values`) belong between them."""
    words = f'<p class="caption" id="caption-{record.place}" dir="auto">{_text(record.caption or "")}</p>'
    if record.error is not None:
        words = f'<p class="error" id="caption-{record.place}">No caption: {_text(record.error)}</p>'
    value = record.log_probability
    numbers = _value(LOG_PROBABILITY, "log p", value) if math.isfinite(value) else ""
    start = f'<li class="card" tabindex="-1" data-place="{record.place}" aria-labelledby="caption-{record.place}">'
    name = f'<p class="name" title="{_text(record.path)}">{_text(Path(record.path).name)}</p>'
    opened = f'{start}{_picture(record)}<div class="words">{words}<p class="numbers">{numbers}'
    return opened, f"</p>{name}{_references(record)}{_alternatives(record)}{_heat_map(record)}</div></li>\n"


def score_values(scores: Mapping[str, float]) -> str:
    """The scores that are numbers, each with its name."""
    return "".join(_value(name, name, score) for name, score in scores.items() if math.isfinite(score))


def _picture(record: CaptionedPicture) -> str:
    if record.thumbnail is None:
        return f'<div class="picture none" role="img" aria-label="no picture: {_text(record.error)}"></div>'
    return f'<div class="picture">{_image(record.thumbnail, f"picture {Path(record.path).name}")}</div>'


def _image(data: bytes, description: str) -> str:
    with Image.open(BytesIO(data)) as image:
        kind, (width, height) = Image.MIME[image.format or ""], image.size
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    size = f'width="{width}" height="{height}"'
    return f'<img src="{source}" alt="{_text(description)}" {size} loading="lazy" decoding="async">'


def _references(record: CaptionedPicture) -> str:
    if not record.references:
        return ""
    items = "".join(f'<li dir="auto">{_text(reference)}</li>' for reference in record.references)
    count = len(record.references)
    return _folded("references", f"{count} reference{'s' * (count > 1)}", f"<ul>{items}</ul>")


def _alternatives(record: CaptionedPicture) -> str:
    if not record.alternatives:
        return ""
    items = "".join(
        f'<li dir="auto">{_text(caption)} <span class="number">{_number(value)}</span></li>'
        for caption, value in record.alternatives
    )
    return _folded("alternatives", f"The {len(record.alternatives)} best", f"<ol>{items}</ol>")


def _heat_map(record: CaptionedPicture) -> str:
    if record.heat_map is None:
        return ""
    described = f"a heat map over the picture for each word of: {record.caption}"
    strip = '<div class="strip" tabindex="0" role="group" aria-label="heat maps">'
    return _folded("heat-map", "Where the model looked", f"{strip}{_image(webp(record.heat_map), described)}</div>")


def _folded(kind: str, title: str, content: str) -> str:
    return f'<details class="{kind}"><summary>{title}</summary>{content}</details>'


def _value(key: str, label: str, value: float) -> str:
    return f'<data data-key="{_text(key)}" value="{value:.6g}">{_text(label)} <b>{_number(value)}</b></data> '


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def _text(value: object) -> str:
    """Escaped for an element or a quoted attribute; bytes of a file name that are no UTF-8 become question marks."""
    return escape(str(value), quote=True).encode("utf-8", "replace").decode()


def thumbnail(image: Image.Image) -> bytes:
    """An RGB picture as a WebP file, its longer side at most `SIDE` pixels."""
    most = LONGEST * min(image.size)
    left, top = (max(0, side - most) // 2 for side in image.size)
    small = image.crop((left, top, image.width - left, image.height - top)) if left or top else image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2)
    return webp(small)


def webp(image: Image.Image) -> bytes:
    """The picture as a WebP file, without anything else that its own file held."""
    file = BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=4, exif=b"", icc_profile=b"")
    return file.getvalue()
