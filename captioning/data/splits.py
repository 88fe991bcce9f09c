"""Photographs -> train, val and test: by their annotation files, or by the seed where these don't say."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from captioning.data.picture_checks import check_on_missing, without_missing
from captioning.data.randomness import addressed_seed
from captioning.data.records import Photograph
from captioning.errors import UserError

log = logging.getLogger(__name__)

# Of data sets that come without a split, Kaggle's Flickr8k above all: about the 1,000 of 8,091 photographs that the
# official lists put into each of val and test. No configuration key: numbers of other divisions compare with nothing.
VAL_FRACTION = TEST_FRACTION = 0.12

KEEP_ONE = "remove it from one of them, or a model is judged by what it has seen"


def split_photographs(
    photographs: Sequence[Photograph],
    *,
    seed: int,
    fraction: float = 1.0,
    use_restval: bool = True,
    on_missing: str = "error",
    val_fraction: float = VAL_FRACTION,
    test_fraction: float = TEST_FRACTION,
) -> dict[str, list[Photograph]]:
    """`train`, `val` and `test`, the last of which may be empty; no photograph is in two of them.

    Args:
        seed: of the division of photographs that have no split, and of the choice of a fraction.
        fraction: part of the training photographs; a smaller fraction's are among a larger one's.
        use_restval: whether Karpathy's `restval` joins `train`; otherwise it is left out.
        on_missing: `error`, or `skip` to leave out photographs of which there is no file.
        val_fraction, test_fraction: of the photographs, where these have no split.

    Raises:
        UserError: an image id or a file in two splits; no photographs to train or validate on; missing files.
    """
    check_division(fraction=fraction, use_restval=use_restval, on_missing=on_missing)
    _refuse_repeated(photographs)
    if any(photograph.split for photograph in photographs):
        divided = _by_files(photographs, use_restval)
    else:
        divided = _by_seed(photographs, seed, val_fraction, test_fraction)
    refuse_empty(divided)
    divided["train"] = _part(divided["train"], fraction, seed)
    divided = without_missing(divided, on_missing)
    refuse_empty(divided)
    return divided


def check_division(*, fraction: float, use_restval: bool, on_missing: str) -> None:
    """Raise UserError for values that `split_photographs` cannot use."""
    check_on_missing(on_missing)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise UserError(f"data.fraction={fraction} must be above 0 and at most 1")
    if not isinstance(use_restval, bool):
        raise UserError(f"data.use_restval={use_restval} must be true or false")


def refuse_empty(divided: dict[str, list[Photograph]]) -> None:
    """Raise UserError where there is nothing to train or to validate on."""
    counts = ", ".join(f"{name} {len(photographs)}" for name, photographs in divided.items())
    for name in ("train", "val"):
        if not divided[name]:
            raise UserError(
                f"no photographs for {name} (there are {counts}); "
                "give data.root a folder whose annotation files and pictures hold both train and val"
            )


def _refuse_repeated(photographs: Sequence[Photograph]) -> None:
    """No image id comes twice, and no file in two splits, also not under two ids."""
    splits_of_ids: dict[int | str, str] = {}
    splits_of_files: dict[Path, str] = {}
    for photograph in photographs:
        name, split = f"image {photograph.image_id}", photograph.split or "no split"
        if photograph.image_id in splits_of_ids:
            raise UserError(f"{name} is in {splits_of_ids[photograph.image_id]} and again in {split}; {KEEP_ONE}")
        splits_of_ids[photograph.image_id] = split
        other = splits_of_files.setdefault(photograph.path, split)
        if other != split:
            raise UserError(f"{photograph.path} ({name}) is in {other} and in {split}; {KEEP_ONE}")


def _by_files(photographs: Sequence[Photograph], use_restval: bool) -> dict[str, list[Photograph]]:
    members: dict[str, tuple[str, ...]] = {
        "train": ("train", "restval") if use_restval else ("train",),
        "val": ("val",),
        "test": ("test",),
    }
    return {name: [p for p in photographs if p.split in splits] for name, splits in members.items()}


def _by_seed(
    photographs: Sequence[Photograph], seed: int, val_fraction: float, test_fraction: float
) -> dict[str, list[Photograph]]:
    """The first photographs in an order drawn by (seed, image id) for val, the next for test; never all of them."""
    count = len(photographs)
    drawn = _drawn_order(photographs, seed, "split")
    val = min(max(1, round(count * val_fraction)), max(0, count - 1))
    test = min(max(1, round(count * test_fraction)), max(0, count - val - 1))
    sides = {p.image_id: "val" for p in drawn[:val]} | {p.image_id: "test" for p in drawn[val : val + test]}
    divided = {
        name: [p for p in photographs if sides.get(p.image_id, "train") == name] for name in ("train", "val", "test")
    }
    counts = ", ".join(f"{name} {len(part)}" for name, part in divided.items())
    log.info("no split lists are there, so seed=%d divides the photographs: %s", seed, counts)
    return divided


def _part(photographs: list[Photograph], fraction: float, seed: int) -> list[Photograph]:
    count = math.floor(len(photographs) * fraction + 0.5)
    if count == 0:
        raise UserError(f"data.fraction={fraction} of {len(photographs)} training photographs leaves none; raise it")
    chosen = {photograph.image_id for photograph in _drawn_order(photographs, seed, "fraction")[:count]}
    return [photograph for photograph in photographs if photograph.image_id in chosen]


def _drawn_order(photographs: Sequence[Photograph], seed: int, purpose: str) -> list[Photograph]:
    """An order in which each photograph's place is drawn by its own address, so others coming or going leave it."""
    return sorted(photographs, key=lambda photograph: addressed_seed(seed, purpose, photograph.image_id))
