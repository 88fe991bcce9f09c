"""How rows of captions become text: JSONL, CSV, or COCO's results JSON, as the suffix of the output says."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from captioning.errors import UserError
from captioning.prediction.cells import cell

# JSON allows these as they are, but many programs take them for line ends, or they are no UTF-8: lone surrogates
# stand for the bytes of file names that are not (PEP 383).
TO_ESCAPE = re.compile("[\x7f\x85\u2028\u2029\ud800-\udfff]")

# COCO's own names: 000000000139.jpg of 2017, COCO_val2014_000000000042.jpg of 2014.
COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?([0-9]{12})")


@dataclass(frozen=True)
class Row:
    """What is known of one picture: a caption with the mean log-probability of its tokens, or why it has none."""

    path: str
    caption: str | None = None
    log_probability: float = math.nan
    alternatives: Sequence[tuple[str, float]] = ()  # of an n-best list, best first
    error: str | None = None
    image_id: int | str | None = None  # where the input has ids of its own, as an annotated data set does


class RowFormat(Protocol):
    """The text of a file, row by row, in the order of the pictures; an instance serves one file."""

    holds_alternatives: bool

    @property
    def failures(self) -> str:
        """Where a reader finds why some pictures have no caption."""

    def row(self, row: Row) -> str:
        """What to append for this picture; "" if it has no place in such a file."""

    def end(self) -> str:
        """What to append at last."""


def format_of(output: str | Path) -> RowFormat:
    """The format that the suffix of `output` names; a name without one means JSONL.

    Raises:
        UserError: for any other suffix.
    """
    suffix = Path(output).suffix
    match suffix.lower():
        case ".jsonl" | "":
            return JsonLines()
        case ".csv":
            return Csv()
        case ".json":
            return CocoResults(output)
    raise UserError(f"output={output} ends in {suffix}; name a .jsonl, a .csv or a .json file (COCO results)")


def check_image_ids(output: str | Path, paths: Iterable[Path]) -> None:
    """Raise UserError if `output` is to be COCO results and two pictures' names give the same `image_id`.

    `CaptionWriter` refuses the second one too, in its turn.
    """
    chosen = format_of(output)
    if isinstance(chosen, CocoResults):
        for path in paths:
            chosen.id_of(Row(str(path)))


class JsonLines:
    """One JSON object a line.

    `{"path": ..., "caption": ..., "log_probability": ...}`, natural log, mean per token, with
    `"alternatives": [{"caption": ..., "log_probability": ...}, ...]` where there are some; or
    `{"path": ..., "error": ...}`. `image_id` follows `path` if the row has one.
    """

    holds_alternatives = True
    failures = "their rows say why"

    def row(self, row: Row) -> str:
        """The object."""
        told: dict[str, object] = {"path": row.path} | ({} if row.image_id is None else {"image_id": row.image_id})
        if row.caption is None:
            told["error"] = row.error
        else:
            told |= _scored(row.caption, row.log_probability)
        if row.alternatives:
            told["alternatives"] = [_scored(*one) for one in row.alternatives]
        return to_json(told) + "\n"

    def end(self) -> str:
        """Nothing: a file without rows is empty."""
        return ""


class Csv:
    r"""A table `path,caption,log_probability,error` for spreadsheets (RFC 4180), in UTF-8 with a byte order mark.

    Without the mark Excel takes UTF-8 for another encoding; pandas skips it, and Python's csv wants
    `encoding="utf-8-sig"`. `image_id` is a column, after `path`, if the first row has one; then all have.

    No text is taken for a formula: what would begin one gets an apostrophe before it. One apostrophe wherever
    `cells.FORMULA` matches behind it, taken away, gives the text back. All texts are quoted, since some programs
    also split at semicolons, and numbers are not. A byte of a name that is no UTF-8 is written as in JSON, `\udcff`.
    """

    holds_alternatives = False
    failures = "their rows say why"

    def __init__(self) -> None:
        self._has_ids: bool | None = None  # not known before the first row

    def row(self, row: Row) -> str:
        """The row, and before the first one the header."""
        head = self._head(row.image_id is not None) if self._has_ids is None else ""
        assert self._has_ids == (row.image_id is not None), "all pictures have an image_id, or none has"
        number = _finite(row.log_probability)
        cells = [cell(row.path), cell(row.caption), "" if number is None else repr(number), cell(row.error)]
        if self._has_ids:
            cells.insert(1, cell(row.image_id))
        return f"{head}{','.join(cells)}\r\n"

    def _head(self, has_ids: bool) -> str:
        self._has_ids = has_ids
        return f"\ufeffpath,{'image_id,' * has_ids}caption,log_probability,error\r\n"

    def end(self) -> str:
        """The header, if there were no rows."""
        return self._head(False) if self._has_ids is None else ""


class CocoResults:
    """`[{"image_id": ..., "caption": ...}, ...]`, a picture a line, as COCO's evaluation server takes it.

    `image_id` is the row's own, or else the number in a file name of COCO's (`000000000139.jpg` is 139), or else the
    file's name without its suffix. A picture without a caption is left out.
    """

    holds_alternatives = False
    SHOWN = 3  # failures that are told by name

    def __init__(self, output: str | Path) -> None:
        self._output = output
        self._paths: dict[int | str, str] = {}  # of the pictures so far
        self._opening = "["
        self._failures: list[str] = []

    def id_of(self, row: Row) -> int | str:
        """The row's `image_id`; raises UserError if another picture has it."""
        if (picture := coco_id(row)) in self._paths:
            raise UserError(
                f"output={self._output}: {self._paths[picture]} and {row.path} would both be image_id {picture} of "
                "COCO results, which know no folders; caption them apart, or name a .jsonl or a .csv file"
            )
        self._paths[picture] = row.path
        return picture

    def row(self, row: Row) -> str:
        """The object, with what separates it from the one before."""
        picture = self.id_of(row)
        if row.caption is None:
            self._failures.append(f"{row.path} ({row.error})")
            return ""
        opening, self._opening = self._opening, ","
        return f"{opening}\n{to_json({'image_id': picture, 'caption': row.caption})}"

    def end(self) -> str:
        """The bracket."""
        return "[\n]\n" if self._opening == "[" else "\n]\n"

    @property
    def failures(self) -> str:
        """Nowhere in the file, so the first few are told here."""
        shown = ", ".join(self._failures[: self.SHOWN])
        more = ", ..." if len(self._failures) > self.SHOWN else ""
        return f"the results leave them out, and the evaluation server wants all: {shown}{more}"


def coco_id(row: Row) -> int | str:
    """Its own `image_id`, or that of its file name."""
    return coco_image_id(row.path) if row.image_id is None else row.image_id


def coco_image_id(path: str | Path) -> int | str:
    """The number in a file name of COCO's, or any other file's name without its suffix.

    >>> [coco_image_id(name) for name in ("COCO_val2014_000000000042.jpg", "val/000000000139.jpg", "7.jpg")]
    [42, 139, '7']
    """
    stem = Path(path).stem
    found = COCO_NAME.fullmatch(stem)
    return int(found[1]) if found else stem


def to_json(value: object, indent: int | None = None) -> str:
    """JSON with readable letters of every script, on one line unless `indent`; paths as text.

    >>> print(to_json({"path": "été\\n\\udcff.jpg"}))
    {"path": "été\\n\\udcff.jpg"}
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False, default=str)
    return TO_ESCAPE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _scored(caption: str, log_probability: float) -> dict[str, object]:
    return {"caption": caption, "log_probability": _finite(log_probability)}


def _finite(log_probability: float) -> float | None:
    return round(log_probability, 6) if math.isfinite(log_probability) else None
