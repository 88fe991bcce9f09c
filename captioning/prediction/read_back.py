"""Rows back from what `formats.py` wrote, of a run that was stopped: those that are whole, and where each one ends."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from captioning.errors import UserError
from captioning.prediction.cells import text_of
from captioning.prediction.formats import CocoResults, Csv, JsonLines, Row, coco_id, format_of


class RowBack(NamedTuple):
    """A row, the place of its picture in the input, and where in the file it ends, in bytes."""

    place: int
    row: Row
    end: int


def rows_back(file: BinaryIO, output: str | Path, known: Callable[[int], Row]) -> Iterator[RowBack]:
    """The rows from the file's start up to the first that is not there as a whole.

    A row counts only if writing it again, in the format that the suffix of `output` names, gives the same bytes: what
    a killed process or a power cut has torn does not.

    Args:
        file: seekable.
        output: what it is, or is to become.
        known: of a place in the input its picture's row, without a caption. COCO results leave out pictures that have
            none, so their rows alone do not tell their places.
    """
    again = format_of(output)
    reading = {JsonLines: _of_json_lines, Csv: _of_csv, CocoResults: _of_coco_results}[type(again)]
    file.seek(0)
    place, end = -1, 0
    for row, found in reading(file):
        place += 1
        try:
            written = again.row(row).encode()
            while isinstance(again, CocoResults) and coco_id(known(place)) != row.image_id:
                place += 1
        except (UserError, IndexError):  # a picture twice, or none of the input
            return
        if written != found:
            return
        end += len(found)
        yield RowBack(place, row, end)


def _of_json_lines(file: BinaryIO) -> Iterator[tuple[Row, bytes]]:
    for line in file:
        told, _ = _object_at_start(line)
        if told is None:
            return
        others = [
            (str(one.get("caption")), _number(one.get("log_probability"))) for one in told.get("alternatives", ())
        ]
        caption = told.get("caption")
        yield (
            Row(
                str(told.get("path")),
                caption,
                _number(told.get("log_probability")),
                others,
                error=told.get("error"),
                image_id=told.get("image_id"),
            ),
            line,
        )


def _of_coco_results(file: BinaryIO) -> Iterator[tuple[Row, bytes]]:
    """Each with what separates it from the one before: the file is `[`, and rows behind a line end or `,` and one."""
    before = file.readline()  # "[\n"
    for line in file:
        told, text = _object_at_start(line)
        if told is None or "image_id" not in told:
            return
        yield Row("", told.get("caption"), image_id=told["image_id"]), before + text
        before = line[len(text) :]


def _of_csv(file: BinaryIO) -> Iterator[tuple[Row, bytes]]:
    head = file.readline()
    has_ids = b"image_id" in head
    record = b""
    for line in file:
        record += line
        if record.count(b'"') % 2:
            continue  # a line end within quotes
        try:
            yield _table_row(record, has_ids), head + record
        except (ValueError, csv.Error):
            return
        head, record = b"", b""


def _table_row(record: bytes, has_ids: bool) -> Row:
    """A record of the table; raises ValueError or csv.Error if it is none."""
    ((path, *ids, caption, number, error),) = csv.reader([record.decode()], strict=True)
    if len(ids) != has_ids:
        raise ValueError(f"{len(ids)} cells too many")
    captioned = record.endswith(b",\r\n")  # its last cell is empty, where others have their reason
    return Row(
        text_of(path),
        text_of(caption) if captioned else None,
        float(number) if number else math.nan,
        error=None if captioned else text_of(error),
        image_id=_id(record, ids[0]) if has_ids else None,
    )


def _id(record: bytes, cell: str) -> int | str:
    """A number is not quoted, a text is."""
    return text_of(cell) if re.match(rb'"(?:[^"]|"")*","', record) else int(cell)


def _object_at_start(line: bytes) -> tuple[dict | None, bytes]:
    """The JSON object that a line begins with, and its bytes."""
    text = line.decode(errors="replace")
    try:
        told, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None, b""
    return (told, text[:end].encode()) if isinstance(told, dict) else (None, b"")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
