"""Flickr8k and Flickr30k: the original releases with their split lists, and Kaggle's files.

All are rows of (name, number, caption), with lists of each split's names beside them. Of Flickr8k there are
`Flickr8k.token.txt` and Kaggle's `captions.txt`; of Flickr30k `results_20130124.token`, Kaggle's `results.csv`, and the
split lists of Flickr30k Entities.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioning.data.readers.annotations import Gathering, PictureFolders, inside, read_lines, read_text
from captioning.data.readers.tables import csv_records
from captioning.data.records import Photograph
from captioning.errors import UserError

# The archives' own folders, Kaggle's, and a folder of the same name inside, which unpacking into a new folder gives.
FLICKR8K_FOLDERS = (
    "Images",
    "images",
    "Flicker8k_Dataset",  # the original's own spelling
    "Flicker8k_Dataset/Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "Flickr8k_Dataset/Flicker8k_Dataset",
    "Flickr8k_Dataset/Flickr8k_Dataset",
    "",
)
FLICKR30K_FOLDERS = (
    "flickr30k_images",
    "flickr30k_images/flickr30k_images",
    "flickr30k-images",
    "flickr30k-images/flickr30k-images",
    "Images",
    "images",
    "",
)

TOKEN_ROW = re.compile(r"(?P<name>[^\t]+)#\s*(?P<number>\d+)\s*(\t(?P<text>.*))?")  # no tab: an empty caption
NO_PHOTOGRAPH = re.compile(r"\.(jpe?g|png)\.\d+$", re.IGNORECASE)


@dataclass(slots=True)
class CaptionRow:
    """One line of a caption file; `number` is None in files that don't count a photograph's captions."""

    name: str
    number: int | None
    text: str
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def token_rows(path: Path) -> Iterator[CaptionRow]:
    """The rows `NAME#NUMBER<tab>CAPTION` of the original releases."""
    for line, text in read_lines(path):
        match = TOKEN_ROW.fullmatch(text)
        if match is None:
            raise UserError(f"{path}:{line}: this is not 'NAME#NUMBER<tab>CAPTION': {text[:60]!r}; correct the line")
        yield CaptionRow(match["name"].strip(), int(match["number"]), match["text"] or "", path, line)


def gather(
    root: Path, rows: Iterable[CaptionRow], folders: tuple[str, ...], lists: Mapping[str, Path]
) -> list[Photograph]:
    """The photographs of the rows; where there are split lists, those in a list, the others are unused and counted."""
    pictures = PictureFolders(root, folders)
    rows = list(rows)
    gathering = Gathering(rows[0].file.name if rows else "captions")
    splits = _splits(lists, {row.name for row in rows}, gathering)
    unused = set()
    for row in rows:
        if NO_PHOTOGRAPH.search(row.name):
            gathering.count(f"rows of {row.name}, which is no photograph, left out")
        elif lists and row.name not in splits:
            unused.add(row.name)
        else:
            if row.name not in gathering:
                path = pictures.expected(inside(row.name, root, row))
                gathering.add(row.name, path, splits.get(row.name, ""), row)
            gathering.caption(row.name, row.text, row.number)
    gathering.count("photographs in no split list unused", len(unused))
    return gathering.photographs()


def _splits(lists: Mapping[str, Path], names: set[str], gathering: Gathering) -> dict[str, str]:
    """Name -> split. A list may leave out the extension, as those of Flickr30k Entities do."""
    by_stem: dict[str, list[str]] = {}
    for name in sorted(names):
        by_stem.setdefault(name.rpartition(".")[0], []).append(name)
    places: dict[str, tuple[str, str]] = {}
    for split, path in lists.items():
        for line, listed in read_lines(path):
            meant = [listed] if listed in names else by_stem.get(listed, [])
            if not meant:
                gathering.count(f"names in {path.name} without a caption left out")
                continue
            if len(meant) > 1:
                raise UserError(
                    f"{path}:{line}: {listed} may be {' or '.join(meant)}; write the suffix of the one that is meant"
                )
            (name,) = meant
            other, place = places.setdefault(name, (split, f"{path}:{line}"))
            if other != split:
                raise UserError(
                    f"image {name} is in {other} ({place}) and in {split} ({path}:{line}); "
                    "remove it from one of the lists, or a model is judged by what it has seen"
                )
    return {name: split for name, (split, _) in places.items()}


def lists_among(files: Mapping[str, Path], lists: Mapping[str, str]) -> dict[str, Path]:
    """Split -> its list, for those that are there; raises UserError where only one of train and val is."""
    there = {split: files[name] for split, name in lists.items() if name in files}
    for split in ("train", "val"):
        if there and split not in there:
            some = next(iter(there.values()))
            raise UserError(f"{some} is there, but {lists[split]} is not; add it, or remove all split lists")
    return there


TOKENS_8K, KAGGLE_8K = "Flickr8k.token.txt", "captions.txt"
LISTS_8K = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def read_official_8k(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """The original release; without its lists, no photograph has a split."""
    return gather(root, token_rows(files[TOKENS_8K]), FLICKR8K_FOLDERS, lists_among(files, LISTS_8K))


def read_kaggle_8k(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """Kaggle's file has no splits; the original lists are used where someone put them beside it."""
    return gather(root, csv_rows_8k(files[KAGGLE_8K]), FLICKR8K_FOLDERS, lists_among(files, LISTS_8K))


def csv_rows_8k(path: Path) -> Iterator[CaptionRow]:
    """The rows `image,caption`; a caption with commas is quoted, or in some copies is not."""
    for line, (name, caption) in _csv_records(path, ",", ["image", "caption"]):
        if name and caption is not None:
            yield CaptionRow(name, None, caption, path, line)
        else:
            met = ",".join(field for field in (name, caption) if field is not None)
            raise UserError(f"{path}:{line}: this is not 'image,caption': {met[:60]!r}; correct the line")


def _csv_records(path: Path, delimiter: str, header: Sequence[str]) -> Iterator[tuple[int, list[str | None]]]:
    """(line, fields) of every record below the header, as many as it has; None for those that the record lacks."""
    records = csv_records(read_text(path), path, delimiter, spills=True)
    line, columns = next(records, (1, []))
    if [column.lower() for column in columns] != list(header):
        first = read_text(path).strip().partition("\n")[0].strip()
        between = f"{delimiter} " if delimiter == "|" else delimiter
        raise UserError(f"{path}:{line}: the first line is {first[:60]!r}, not {between.join(header)!r}")
    for line, fields in records:
        yield line, [*fields, *[None] * (len(header) - len(fields))]


TOKENS_30K, KAGGLE_30K = "results_20130124.token", "results.csv"
LISTS_30K = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
HEADER_30K = ["image_name", "comment_number", "comment"]
# The published file has one row without its second bar: `2199200615.jpg| 4   A dog runs across the grass .`
NUMBER_AND_TEXT = re.compile(r"(\d+)\s+([^|]+)")


def read_official_30k(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """The original release; without the lists of Flickr30k Entities, no photograph has a split."""
    return gather(root, token_rows(files[TOKENS_30K]), FLICKR30K_FOLDERS, lists_among(files, LISTS_30K))


def read_kaggle_30k(root: Path, files: Mapping[str, Path]) -> list[Photograph]:
    """Kaggle's file; the lists of Flickr30k Entities are used where someone put them beside it."""
    return gather(root, csv_rows_30k(files[KAGGLE_30K]), FLICKR30K_FOLDERS, lists_among(files, LISTS_30K))


def csv_rows_30k(path: Path) -> Iterator[CaptionRow]:
    """The rows `image_name| comment_number| comment`; one without the second bar is mended."""
    for line, (name, number, caption) in _csv_records(path, "|", HEADER_30K):
        if caption is None and (both := NUMBER_AND_TEXT.fullmatch(number or "")):
            number, caption = both.groups()
        if name and number and number.isdecimal() and caption is not None:
            yield CaptionRow(name, int(number), caption, path, line)
        else:
            met = "| ".join(field for field in (name, number, caption) if field is not None)
            raise UserError(f"{path}:{line}: this is not 'NAME| NUMBER| CAPTION': {met[:60]!r}; correct the line")
