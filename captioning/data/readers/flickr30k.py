"""Flickr30k: the original `results_20130124.token`, Kaggle's `results.csv`, the split lists of Flickr30k Entities."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from captioning.data.readers.flickr import FLICKR30K_FOLDERS, CaptionRow, gather, lists_among, token_rows
from captioning.data.readers.text import read_lines
from captioning.data.records import Photograph
from captioning.errors import UserError

TOKENS, KAGGLE = "results_20130124.token", "results.csv"
LISTS = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
HEADER = ["image_name", "comment_number", "comment"]
ROW = re.compile(r"(?P<name>[^|]+)\|\s*(?P<number>\d+)\s*\|(?P<text>.*)")
# The published file has one row without its second bar: `2199200615.jpg| 4   A dog runs across the grass .`
ROW_WITHOUT_BAR = re.compile(r"(?P<name>[^|]+)\|\s*(?P<number>\d+)\s+(?P<text>[^|]+)")


def read_official(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """The original release; without the lists of Flickr30k Entities, no photograph has a split."""
    return gather(root, token_rows(files[TOKENS]), FLICKR30K_FOLDERS, lists_among(files, LISTS))


def read_kaggle(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """Kaggle's file; the lists of Flickr30k Entities are used where someone put them beside it."""
    return gather(root, csv_rows(files[KAGGLE]), FLICKR30K_FOLDERS, lists_among(files, LISTS))


def csv_rows(path: Path) -> Iterator[CaptionRow]:
    """The rows `image_name| comment_number| comment`; one without the second bar is mended."""
    for number, (line, text) in enumerate(read_lines(path)):
        if number == 0:
            if [field.strip().lower() for field in text.split("|")] != HEADER:
                raise UserError(f"{path}:{line}: the first line is {text[:60]!r}, not {'| '.join(HEADER)!r}")
            continue
        match = ROW.fullmatch(text) or ROW_WITHOUT_BAR.fullmatch(text)
        if match is None:
            raise UserError(f"{path}:{line}: this is not 'NAME| NUMBER| CAPTION': {text[:60]!r}; correct the line")
        yield CaptionRow(match["name"].strip(), int(match["number"]), match["text"], path, line)
