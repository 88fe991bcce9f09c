"""Photographs -> train, val and test, and every check of their files before a model is built.

Annotation files say which split a photograph is in; where they don't, the seed divides. Each place in a drawn order
is a function of (seed, image id), so photographs that come or go leave the others where they were.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence, Sized
from itertools import chain, islice
from pathlib import Path

import numpy as np

from captioning.data.readers.annotations import names_in
from captioning.data.records import ImageId, Photograph
from captioning.data.stored import PictureFiles, flaws
from captioning.errors import UserError
from captioning.randomness import addressed_seed

log = logging.getLogger(__name__)

Splits = dict[str, list[Photograph]]

# Of data sets that come without a split, Kaggle's Flickr8k above all, for each of val and test: about the 1,000 of
# 8,091 photographs that the official lists put there. No configuration key: numbers of other divisions compare with
# nothing.
HELD_OUT = 0.12
KEEP_ONE = "remove it from one of them, or a model is judged by what it has seen"
NAMED = 3  # files that a message names; their number says the rest
MOST_FOLDERS = 1000  # that are searched for a missing picture


def split_photographs(
    photographs: Sequence[Photograph],
    *,
    seed: int,
    fraction: float = 1.0,
    use_restval: bool = True,
    on_missing: str = "error",
    annotations: Sequence[Path] = (),
) -> Splits:
    """`train`, `val` and `test`, the last of which may be empty; no photograph is in two of them.

    Args:
        seed: of the division of photographs that have no split, and of the choice of a fraction.
        fraction: part of the training photographs; a smaller fraction's are among a larger one's.
        use_restval: whether Karpathy's `restval` joins `train`; otherwise it is left out.
        on_missing: `error`, or `skip` to leave out photographs of which there is no file.
        annotations: the files that the photographs come from, for the error where all pictures are missing.

    Raises:
        UserError: an image id or a file in two splits; no photographs to train or validate on; missing files.
    """
    _refuse_repeated(photographs)
    if any(photograph.split for photograph in photographs):
        divided = _by_files(photographs, use_restval)
    else:
        divided = _by_seed(photographs, seed)
    refuse_empty(divided)
    divided["train"] = _part(divided["train"], fraction, seed)
    divided = without_missing(divided, on_missing, annotations)
    refuse_empty(divided)
    return divided


def _refuse_repeated(photographs: Sequence[Photograph]) -> None:
    """No image id comes twice, and no file in two splits, also not under two ids or by a link."""
    splits_of_ids: dict[int | str, str] = {}
    splits_of_files: dict[str, tuple[str, Photograph]] = {}
    folders: dict[Path, str] = {}
    for photograph in photographs:
        name, split = f"image {photograph.image_id}", photograph.split or "no split"
        if photograph.image_id in splits_of_ids:
            raise UserError(f"{name} is in {splits_of_ids[photograph.image_id]} and again in {split}; {KEEP_ONE}")
        splits_of_ids[photograph.image_id] = split
        folder, path = photograph.path.parent, str(photograph.path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        is_link = os.path.islink(path)  # noqa: PTH114
        file = os.path.realpath(path) if is_link else f"{folders[folder]}/{photograph.path.name}"
        other, first = splits_of_files.setdefault(file, (split, photograph))
        if first is not photograph and (other != split or not photograph.split):
            raise UserError(
                f"{first.path} (image {first.image_id}) is in {other}, and in {split} as {path} ({name}); {KEEP_ONE}"
            )


def _by_files(photographs: Sequence[Photograph], use_restval: bool) -> Splits:
    members: dict[str, tuple[str, ...]] = {
        "train": ("train", "restval") if use_restval else ("train",),
        "val": ("val",),
        "test": ("test",),
    }
    return {name: [p for p in photographs if p.split in splits] for name, splits in members.items()}


def _by_seed(photographs: Sequence[Photograph], seed: int) -> Splits:
    """The first photographs in an order drawn by (seed, image id) for val, the next for test; never all of them."""
    numbers = divided_by_seed([photograph.image_id for photograph in photographs], seed)
    return {name: [photographs[i] for i in chosen] for name, chosen in numbers.items()}


def divided_by_seed(ids: Sequence[ImageId], seed: int) -> dict[str, np.ndarray]:
    """The numbers of the pictures with these ids, divided into `train`, `val` and `test`."""
    count, drawn = len(ids), _drawn_order(ids, seed, "split")
    held_out = max(1, round(count * HELD_OUT))
    val = min(held_out, max(0, count - 1))
    test = min(held_out, max(0, count - val - 1))
    parts = {"train": drawn[val + test :], "val": drawn[:val], "test": drawn[val : val + test]}
    counts = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
    log.info("no split lists are there, so seed=%d divides the photographs: %s", seed, counts)
    return {name: np.sort(part) for name, part in parts.items()}


def _part(photographs: list[Photograph], fraction: float, seed: int) -> list[Photograph]:
    chosen = part_by_seed([photograph.image_id for photograph in photographs], fraction, seed)
    return [photographs[i] for i in chosen]


def part_by_seed(ids: Sequence[ImageId], fraction: float, seed: int) -> np.ndarray:
    """The numbers of a part of the training pictures; a smaller part's are among a larger one's."""
    count = math.floor(len(ids) * fraction + 0.5)
    if count == 0:
        raise UserError(f"data.fraction={fraction} of {len(ids)} training photographs leaves none; raise it")
    return np.sort(_drawn_order(ids, seed, "fraction")[:count]) if count < len(ids) else np.arange(count)


def _drawn_order(ids: Sequence[ImageId], seed: int, purpose: str) -> np.ndarray:
    drawn = (addressed_seed(seed, purpose, image_id) for image_id in ids)
    return np.argsort(np.fromiter(drawn, np.int64, len(ids)), kind="stable")


def refuse_empty(divided: Mapping[str, Sized]) -> None:
    """Raise UserError where there is nothing to train or to validate on."""
    counts = ", ".join(f"{name} {len(photographs)}" for name, photographs in divided.items())
    for name in ("train", "val"):
        if not divided[name]:
            raise UserError(
                f"no photographs for {name} (there are {counts}); "
                "give data.root a folder whose annotation files and pictures hold both train and val"
            )


def without_missing(
    divided: Mapping[str, list[Photograph]], on_missing: str, annotations: Sequence[Path] = ()
) -> Splits:
    """The splits without photographs of which there is no file (`skip`), or a UserError that counts them (`error`)."""
    paths = [photograph.path for photograph in chain(*divided.values())]
    listings = {folder: names_in(folder) for folder in {path.parent for path in paths}}
    missing = {path: "" for path in paths if path.name not in listings[path.parent]}
    if paths and len(missing) == len(paths):
        raise UserError(
            f"all {len(paths)} picture files are missing, such as {_first(missing)}"
            f"{_named_in(annotations, paths[0])}; "
            f"{_near(paths[0]) or 'unpack the pictures there'}"
        )
    return _without(divided, missing, "missing", on_missing)


def _named_in(annotations: Sequence[Path], picture: Path) -> str:
    """By which line of these files a picture is named, for a person to look it up."""
    for file in annotations:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if picture.stem in line:
                    return f" (the first is named in {file}:{number})"
    return ""


def _near(path: Path) -> str:
    """What there is instead of a picture that is missing, with the way out; "" where nothing like it is found."""
    if "\\" in path.name:
        return "their names hold backslashes: write / in the annotation file"
    same = [name for name in names_in(path.parent) if Path(name).stem.lower() == path.stem.lower()]
    if same:
        return f"{path.parent} has {same[0]} instead: rename the files, or correct the names in the annotation file"
    around = chain.from_iterable(os.walk(folder) for folder in (path.parent, path.parent.parent))
    for folder, _, names in islice(around, MOST_FOLDERS):
        if path.name in names:
            return f"{path.name} lies in {folder}: move the pictures, or set data.root so that they are found"
    return ""


def without_unreadable(divided: Mapping[str, list[Photograph]], on_missing: str) -> Splits:
    """The same for files that are no whole pictures.

    A file with the first and last bytes of a JPEG is taken as whole, the others are decoded, so this finds empty,
    truncated and foreign files; damage in the middle of a JPEG is met in training. Takes 3 s for 123,287 files, as many
    as COCO has (two CPU cores, files cached).
    """
    paths = [photograph.path for photograph in chain(*divided.values())]
    unreadable = {paths[i]: reason for i, reason in flaws(PictureFiles(paths)).items()}
    return _without(divided, unreadable, "unreadable", on_missing)


def _without(divided: Mapping[str, list[Photograph]], bad: Mapping[Path, str], what: str, on_missing: str) -> Splits:
    if bad:
        count = sum(map(len, divided.values()))
        found = f"{len(bad)} of {count} picture files are {what}, such as {_first(bad)}"
        if on_missing == "error":
            raise UserError(f"{found}; data.on_missing=skip leaves them out")
        log.warning("%s; they are left out", found)
    return {name: [p for p in photographs if p.path not in bad] for name, photographs in divided.items()}


def _first(bad: Mapping[Path, str]) -> str:
    return ", ".join(f"{path} ({reason})" if reason else str(path) for path, reason in islice(bad.items(), NAMED))
