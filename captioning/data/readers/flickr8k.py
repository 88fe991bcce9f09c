"""Flickr8k: the original release's `Flickr8k.token.txt` with its split lists, and Kaggle's `captions.txt`."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from captioning.data.readers.flickr import FLICKR8K_FOLDERS, CaptionRow, gather, lists_among, token_rows
from captioning.data.readers.text import read_lines
from captioning.data.records import Photograph
from captioning.errors import UserError

TOKENS, KAGGLE = "Flickr8k.token.txt", "captions.txt"
LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def read_official(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """The original release; without its lists, no photograph has a split."""
    return gather(root, token_rows(files[TOKENS]), FLICKR8K_FOLDERS, lists_among(files, LISTS))


def read_kaggle(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """Kaggle's file has no splits; the original lists are used where someone put them beside it."""
    return gather(root, csv_rows(files[KAGGLE]), FLICKR8K_FOLDERS, lists_among(files, LISTS))


def csv_rows(path: Path) -> Iterator[CaptionRow]:
    """The rows `image,caption`; a caption with commas is quoted, or in some copies is not.

    So the first comma ends the name, and the rest is the caption, which the csv module would cut at its commas.
    """
    for number, (line, text) in enumerate(read_lines(path)):
        name, comma, caption = text.partition(",")
        if number == 0:
            if [name.strip().lower(), caption.strip().lower()] != ["image", "caption"]:
                raise UserError(f"{path}:{line}: the first line is {text[:60]!r}, not 'image,caption'")
        elif not comma or not name.strip():
            raise UserError(f"{path}:{line}: this is not 'image,caption': {text[:60]!r}; correct the line")
        else:
            yield CaptionRow(_unquoted(name.strip()), None, _unquoted(caption.strip()), path, line)


def _unquoted(field: str) -> str:
    match = QUOTED.fullmatch(field)
    return match[1].replace('""', '"') if match else field
