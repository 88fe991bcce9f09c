"""Rows of captions that share a picture, as training and evaluation see them."""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import TwoColouredPictures, own_megabytes, trained_tokenizer
from torch.utils.data import DataLoader

from captioning.data.batch import PictureFormat
from captioning.data.records import Split
from captioning.data.rows import CaptionRows, EpochBatches, TokenArrays
from captioning.data.transforms import EvaluationTransform, TrainingTransform

TOKENIZER = trained_tokenizer()
FORMAT = PictureFormat(size=(16, 16))
FLIPS = {"crop_scale": None, "brightness": 0.0, "contrast": 0.0, "flip": True}
CROPS = {"crop_scale": (0.3, 0.9), "brightness": 0.3, "contrast": 0.0, "flip": True}


def split_of(captions: list[list[str]], image_ids=None) -> Split:
    return Split(image_ids or [f"{i}.jpg" for i in range(len(captions))], captions, TwoColouredPictures())


def rows_of(split: Split, captions_per_image: int = 5, seed: int = 1, augmentation: dict | None = None) -> CaptionRows:
    tokens = TokenArrays.encode(split.captions, TOKENIZER, 64)
    augment = None if augmentation is None else TrainingTransform(FORMAT, **augmentation)
    return CaptionRows(split, tokens, captions_per_image, seed, EvaluationTransform(FORMAT), augment)


def texts(row) -> list[str]:
    return [TOKENIZER.decode(ids.tolist()) for ids in row.captions]


def numbered(count: int) -> list[str]:
    return [f"a man {number}" for number in range(count)]


@given(st.lists(st.integers(0, 13), min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=30)
def test_every_caption_comes_exactly_once_an_epoch_beside_its_own_picture(counts, captions_per_image, epoch):
    captions = [[f"{picture} of {number}" for number in range(n)] for picture, n in enumerate(counts)]
    rows = rows_of(split_of(captions), captions_per_image)
    seen = [rows[epoch, row] for row in range(len(rows))]
    assert Counter(text for row in seen for text in texts(row)) == Counter(chain.from_iterable(captions))
    for row in seen:
        assert 1 <= len(row.captions) <= captions_per_image
        assert {f"{text.split()[0]}.jpg" for text in texts(row)} == {row.image_id}
        assert row.image_id == f"{int(row.pixels[1, 0, 0])}.jpg", "the picture's green channel is its number"


def test_seven_captions_make_two_rows_of_nearly_equal_length():
    rows = rows_of(split_of([numbered(7)]), captions_per_image=5)
    assert [len(rows[0, row].captions) for row in range(len(rows))] == [4, 3]


def test_one_caption_per_image_makes_the_classic_rows():
    rows = rows_of(split_of([numbered(5), numbered(3)]), captions_per_image=1)
    assert [len(rows[0, row].captions) for row in range(len(rows))] == [1] * 8
    assert [rows[0, row].image_id for row in range(8)] == ["0.jpg"] * 5 + ["1.jpg"] * 3


def test_which_captions_share_a_row_is_drawn_anew_each_epoch_and_each_seed():
    def parts(seed: int, epoch: int) -> frozenset:
        rows = rows_of(split_of([numbered(10)]), seed=seed)
        return frozenset(frozenset(texts(rows[epoch, row])) for row in range(2))

    assert len({parts(1, epoch) for epoch in range(5)}) > 1
    assert len({parts(seed, 0) for seed in range(5)}) > 1
    assert parts(1, 3) == parts(1, 3)


def test_a_number_as_image_id_stays_a_number():
    row = rows_of(split_of([["a man"]], image_ids=[581929]))[0, 0]
    assert row.image_id == 581929 and type(row.image_id) is int


def test_only_pictures_of_which_no_caption_names_a_side_are_mirrored():
    """The second picture's fifth caption says left, in whichever row it lands."""
    captions = [[*numbered(6)], [*numbered(5), "a man on the left"]]
    rows = rows_of(split_of(captions), captions_per_image=3, augmentation=FLIPS)
    mirrored = Counter()
    for epoch in range(30):
        for row in map(rows.__getitem__, ((epoch, number) for number in range(len(rows)))):
            red_on_the_right = bool(row.pixels[0, 0, -1] > row.pixels[0, 0, 0])
            mirrored[row.image_id] += red_on_the_right
    assert 15 < mirrored["0.jpg"] < 45, "of 60, about half"
    assert mirrored["1.jpg"] == 0


def test_augmentation_is_a_function_of_seed_epoch_and_image_id():
    def pixels(epoch: int = 0, seed: int = 1, image_id: str = "a.jpg") -> torch.Tensor:
        return rows_of(split_of([["a man"]], [image_id]), seed=seed, augmentation=CROPS)[epoch, 0].pixels

    assert torch.equal(pixels(), pixels())
    for other in (pixels(epoch=1), pixels(seed=2), pixels(image_id="b.jpg")):
        assert not torch.equal(pixels(), other)


def test_augmentation_does_not_depend_on_the_photographs_before_it():
    """A part of the data set, as `data.fraction` takes it, sees the same pictures."""
    captions = [numbered(2), numbered(2)]
    everything = rows_of(split_of(captions, ["a", "b"]), captions_per_image=1, augmentation=CROPS)

    class SecondPicture(TwoColouredPictures):
        def __call__(self, i):
            return super().__call__(i + 1)

    part = rows_of(Split(["b"], captions[1:], SecondPicture()), captions_per_image=1, augmentation=CROPS)
    for number in range(2):
        assert texts(part[0, number]) == texts(everything[0, 2 + number])
        assert torch.equal(part[0, number].pixels, everything[0, 2 + number].pixels)
    assert not torch.equal(part[0, 0].pixels, part[0, 1].pixels), "each row of a picture shows it in another way"


def test_evaluation_shows_the_same_picture_in_every_epoch():
    rows = rows_of(split_of([["a man"]]))
    assert torch.equal(rows[0, 0].pixels, rows[5, 0].pixels)
    assert torch.equal(rows[0, 0].pixels, rows.pixels_of([0])[0])
    assert rows.pixels_of([0])[0].dtype == torch.uint8 and rows.pixels_of([0])[0].shape == (3, 16, 16)


def test_the_first_pictures_of_a_split_keep_their_captions_and_files():
    few = split_of([numbered(3), numbered(2), ["a cat"]]).first(2, captions=1)
    assert (len(few), few.image_ids, few.captions) == (2, ["0.jpg", "1.jpg"], [["a man 0"], ["a man 0"]])
    assert np.asarray(few.load(1))[0, 0, 1] == 1
    assert len(split_of([["a"]]).first(9, captions=1)) == 1


def test_rows_can_be_sent_to_workers():
    rows = rows_of(split_of([["a man"]]), augmentation=CROPS)
    received = ForkingPickler.loads(ForkingPickler.dumps(rows))
    assert torch.equal(received[2, 0].pixels, rows[2, 0].pixels)


class TouchesStrings:
    """`load` of a split that looks at Python strings, as a list of captions in a worker would be."""

    def __init__(self, captions: list[list[str]] | None):
        self._captions = captions

    def __call__(self, i: int) -> Image.Image:
        held = [*self._captions[i]] if self._captions else []  # counts references, and so writes to their pages
        return Image.new("RGB", (16, 16), (len(held), 0, 0))


def growth_in_a_worker(captions: list[list[str]], tokens: TokenArrays, load: TouchesStrings) -> float:
    """MB of its own that a worker gains from a quarter of an epoch to its end."""
    split = Split(range(len(captions)), captions, load)
    rows = CaptionRows(split, tokens, 5, 1, EvaluationTransform(FORMAT))
    loader = DataLoader(
        rows,
        batch_sampler=EpochBatches(len(rows), 100, shuffle=False, seed=1),
        collate_fn=len,
        num_workers=1,
        multiprocessing_context="fork",
        persistent_workers=True,  # the last one is still there to be measured
    )
    batches = iter(loader)
    worker, when = batches._workers[0].pid, (len(batches) // 4, len(batches))
    before, after = (own_megabytes(worker) for number, _ in enumerate(batches, start=1) if number in when)
    return after - before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what memory is shared")
def test_workers_share_the_captions_and_would_be_seen_to_copy_them():
    captions = [
        [f"caption {k} of picture {i}, in words of which there are some" for k in range(5)] for i in range(8000)
    ]
    tokens = TokenArrays.encode(captions, TOKENIZER, max_tokens=64)
    # In a process of its own: here a worker would also copy pages of all that other tests have left.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        shared = fresh.submit(growth_in_a_worker, captions, tokens, TouchesStrings(None)).result()
        copied = fresh.submit(growth_in_a_worker, captions, tokens, TouchesStrings(captions)).result()
    assert shared < 1
    assert copied > 3  # of 4.4 MB of strings and more of lists
