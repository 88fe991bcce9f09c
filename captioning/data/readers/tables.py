"""Tables of any columns -> rows that know where they stand: CSV, TSV, JSON Lines, JSON and Parquet.

Which columns hold the picture and the caption is for those to say who read the rows.
"""

import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from captioning.data.readers.annotations import Node, read_json, read_lines, read_text
from captioning.errors import UserError

Row = tuple[object, dict[str, Any]]  # where it stands, which is looked up for an error alone; column -> cell

DELIMITERS = {".csv": ",;\t|", ".tsv": "\t", ".txt": ",\t;|"}  # of which the first line has the most
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".json")


def read_table(path: Path, encoding: str | None = None, spills: str | None = None) -> Iterator[Row]:
    """The rows of a table, by its suffix; what is none of those is read as JSON Lines.

    Args:
        path: of a `.json`, the file holds a list of objects, also as the one list in an object, or names a picture and
            its captions in each member: `{"a.jpg": "a dog", "b.jpg": ["a cat", "a tabby"]}`.
        encoding: of text; None is UTF-8.
        spills: a column of CSV that may hold delimiters without being quoted, where it is the last.

    Raises:
        UserError: the file, or a row, is not what it claims; with file and line.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        return _of_cells(path, encoding, spills)
    if suffix == ".parquet":
        return _of_parquet(path)
    return _of_json(path, encoding) if suffix == ".json" else _of_lines(path, encoding)


def columns_of(path: Path, encoding: str | None = None) -> list[str]:
    """The columns of a table, as its first row has them; none of an empty one."""
    if path.suffix.lower() in DELIMITERS:
        return _header(path, encoding)[1]
    return list(next(read_table(path, encoding), (None, {}))[1])


def csv_records(
    text: str, path: Path, delimiter: str, *, spills: bool, at_end: str = "at the end of the caption"
) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of every record that is not blank, the header first.

    Quoted fields are as RFC 4180 has them, with line breaks, delimiters and doubled quotes inside. Others may hold
    quotes, and the last that the header names, where it `spills`, also delimiters, at which Python's csv module would
    cut it: Kaggle's files need that.
    """
    text = text.rstrip()
    blanks = r"[ ]*" if delimiter == "\t" else r"[ \t]*"
    quoted = re.compile(rf'{blanks}"((?:[^"]|"")*)"{blanks}\r?({re.escape(delimiter)}|\n|\Z)')
    at, line, width = 0, 1, 0
    while at < len(text):
        start, fields, end = at, list[str](), delimiter
        while end == delimiter:
            until = "\n" if spills and len(fields) + 1 == width else delimiter
            match = quoted.match(text, at)
            if match and not (until == "\n" and match[2] == delimiter):
                field, end, at = match[1].replace('""', '"'), match[2], match.end()
            else:
                field, end, at = _plain_field(text, at, until)
                if field.startswith('"') and field.count('"') % 2:
                    number = line + text.count("\n", start, at - len(end))
                    raise UserError(
                        f"{path}:{number}: a quotation mark opens here and is not closed: {field[:60]!r}; close it "
                        f"{at_end}, or double it where it belongs to the words"
                    )
            fields.append(field.strip())
        if any(fields):
            yield line, fields
            width = width or len(fields)
        line += text.count("\n", start, at)


def _plain_field(text: str, at: int, delimiter: str) -> tuple[str, str, int]:
    """The field that begins there without being quoted, what ends it, and where the next begins."""
    ends = text.find("\n", at)
    ends = len(text) if ends < 0 else ends
    cut = text.find(delimiter, at, ends)
    cut = ends if cut < 0 else cut
    return text[at:cut].strip(), text[cut : cut + 1], cut + 1


def _header(path: Path, encoding: str | None) -> tuple[str, list[str], str]:
    """The text of a file, its columns and what is between them."""
    text = read_text(path, encoding)
    text = text if "\n" in text else text.replace("\r", "\n")  # as old spreadsheets end lines
    first = re.sub(r'"[^"]*"', "", text.lstrip().partition("\n")[0])
    delimiter = max(DELIMITERS[path.suffix.lower()], key=first.count)
    _, columns = next(csv_records(text, path, delimiter, spills=False), (1, []))
    return text, columns, delimiter


def _of_cells(path: Path, encoding: str | None, spills: str | None) -> Iterator[Row]:
    text, columns, delimiter = _header(path, encoding)
    may_spill = bool(columns) and columns[-1] == spills
    records = csv_records(text, path, delimiter, spills=may_spill, at_end="at its end")
    next(records, None)
    for line, fields in records:
        if len(fields) != len(columns):
            met = delimiter.join(fields)
            quote = "; put quotation marks around a text with commas" if len(fields) > len(columns) else ""
            raise UserError(
                f"{path}:{line}: this row has {len(fields)} cells, and the first line names {len(columns)} columns: "
                f"{met[:60]!r}{quote}"
            )
        yield f"{path}:{line}", dict(zip(columns, fields, strict=True))


def _of_lines(path: Path, encoding: str | None) -> Iterator[Row]:
    for number, line in read_lines(path, encoding):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: this is no JSON object: {line[:60]!r}; a line holds one row")
        yield f"{path}:{number}", row


def _of_json(path: Path, encoding: str | None) -> Iterator[Row]:
    whole = read_json(path, encoding)
    if isinstance(whole.value, list):
        yield from ((row, row.value) for row in whole.objects(""))
        return
    members = whole.value if isinstance(whole.value, dict) else {}
    if lists := [key for key, value in members.items() if _is_rows(value)]:
        if len(lists) > 1:
            raise UserError(f"{path} holds several lists of rows: {', '.join(lists)}; keep the one with the captions")
        yield from ((row, row.value) for row in whole.objects(lists[0]))
        return
    if not members or not all(isinstance(value, str | list) for value in members.values()):
        raise UserError(
            f"{path} is no table: it should hold a list of rows, or the captions of each picture: "
            '{"a.jpg": ["a dog", "a puppy"], ...}'
        )
    for name, captions in members.items():
        yield Node(path, "", whole.value), {"file_name": name, "captions": captions}


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _of_parquet(path: Path) -> Iterator[Row]:
    parquet = needed("pyarrow.parquet", "parquet")
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (ValueError, OSError) as error:  # ArrowInvalid is the first
        raise UserError(f"{path} is no whole Parquet file ({error}); fetch it again") from error


def needed(module: str, extra: str) -> Any:
    """An optional library's module; raises UserError with what installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise UserError(f"{name} is needed here, and not installed; pip install 'captioning[{extra}]'") from error


def nearest(names: Sequence[str]) -> dict[str, str]:
    """Column by what its name amounts to, whatever its case and the marks between words.

    >>> nearest(["File Name", "caption-text"])
    {'file_name': 'File Name', 'caption_text': 'caption-text'}
    """
    return {re.sub(r"[\W_]+", "_", name.strip().lower()).strip("_"): name for name in names}
