"""CSV: a table for spreadsheets, none of whose cells they take for a formula."""

import re
from csv import DictReader
from io import TextIOWrapper
from typing import IO

from captioning.prediction.journal import LEFT_OUT, CaptionedPicture, rounded
from captioning.prediction.outputs.files import Format

# Where a spreadsheet may see the start of a cell: at the real one, and, if it splits at semicolons (Excel in half of
# Europe), tabs or line ends whatever the quotes say, after these. It is a formula if its first character is one of
# OWASP's list (CSV Injection), which Excel also takes in full width, behind blanks or quotes; a cell that begins
# with a tab or a line end is on that list too.
FORMULA = re.compile(
    r"""(?:\A|(?<=[;\t\r\n]))(?=(?:[^\S\t\r\n]|['"\0\u200b-\u200f\u2060\ufeff])*[=+\-@＝＋－＠])|\A(?=['"]*[\t\r\n\0])"""
)


def cell(value: str | int | None) -> str:
    r"""A cell of a CSV file: text quoted and never a formula, a number as it is, None empty.

    >>> print(cell('=HYPERLINK("x")'), cell(" -1"), cell("a dog; =1"), cell(7), cell("a - b"), sep=" | ")
    "'=HYPERLINK(""x"")" | "' -1" | "a dog;' =1" | 7 | "a - b"
    """
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    text = FORMULA.sub("'", value.encode("utf-8", "backslashreplace").decode())
    return f'"{text.replace(chr(34), chr(34) * 2)}"'


# One of ours, where a formula would begin behind it.
APOSTROPHE = re.compile(FORMULA.pattern.replace("(?=", "'(?=", 1).replace(r"\A(?=['", r"\A'(?=['"))


def without_apostrophes(text: str) -> str:
    """The text that a cell was made of.

    >>> without_apostrophes("a dog;' =1")
    'a dog; =1'
    """
    return APOSTROPHE.sub("", text)


class Csv(Format):
    r"""A table `path,caption,log_probability,error` for spreadsheets (RFC 4180), in UTF-8 with a byte order mark.

    Without the mark Excel takes UTF-8 for another encoding; pandas skips it, and Python's csv wants
    `encoding="utf-8-sig"`. `image_id` is a column, after `path`, if the first picture has one; then all have.

    No text is taken for a formula: what would begin one gets an apostrophe before it, and `without_apostrophes` gives
    the text back. All texts are quoted, since some programs also split at semicolons, and numbers are not. A byte of a
    name that is no UTF-8 is written as in JSON, `\udcff`.
    """

    has_ids: bool | None = None  # not known before the first picture

    def add(self, record: CaptionedPicture) -> None:
        """The line, and before the first one the header."""
        if self.has_ids is None:
            self._write_head(record.image_id is not None)
        assert self.has_ids == (record.image_id is not None), "all pictures have an image_id, or none has"
        number = rounded(record.log_probability)
        cells = [cell(record.path), cell(record.caption), "" if number is None else repr(number), cell(record.error)]
        if self.has_ids:
            cells.insert(1, cell(record.image_id))
        self._write(cells)

    def finish(self) -> None:
        """The header, if there was no picture."""
        if self.has_ids is None:
            self._write_head(False)

    def _write_head(self, has_ids: bool) -> None:
        self.has_ids = has_ids
        self._write(["\ufeffpath", *["image_id"] * has_ids, "caption", "log_probability", "error"])

    def _write(self, cells: list[str]) -> None:
        self.file.write(f"{','.join(cells)}\r\n".encode())

    @classmethod
    def counts(cls, file: IO[bytes]) -> tuple[int, int]:
        """Rows without an error, and with one."""
        errors = [row["error"] for row in DictReader(TextIOWrapper(file, "utf-8-sig", newline=""))]
        return sum(not one for one in errors), sum(bool(one) and not one.startswith(LEFT_OUT) for one in errors)
