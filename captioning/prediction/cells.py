"""Cells of a CSV file that no spreadsheet takes for formulas."""

import re

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


# What `cell` has put in, told by what stands behind it.
PUT_IN = re.compile(FORMULA.pattern.replace("(?=", "'(?=", 1).replace(r"\A(?=['", r"\A'(?=['"))


def text_of(cell: str) -> str:
    r"""The text of a cell, as a reader of CSV gives it, before apostrophes were put into it.

    >>> text_of("'=1"), text_of("a dog;' =1")
    ('=1', 'a dog; =1')
    """
    return PUT_IN.sub("", cell)
