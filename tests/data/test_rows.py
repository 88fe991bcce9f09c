"""A split as batches: its captions as arrays, rows of a picture and its captions, and their order."""

import io
import json
import logging
import os
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
from torch.utils.data import DataLoader, Dataset

from captioning.data import rows
from captioning.data.batch import PictureFormat
from captioning.data.records import Neighbours, Split
from captioning.data.rows import CaptionRows, EpochBatches, RowLoader, TokenArrays, captions_mention_sides, spread
from captioning.data.tokenizer import CaptionTokenizer
from captioning.data.transforms import EvaluationTransform, TrainingTransform

# All captions of a split as flat arrays: what goes in comes out, and workers share it.


TOKENIZER = trained_tokenizer()
LONG = "Several people are waiting for the bus down a wet street"


def encoded(captions, max_tokens: int = 1000, **named) -> TokenArrays:
    return TokenArrays.encode(captions, TOKENIZER, max_tokens, **named)


def ids_of(tokens: TokenArrays) -> list[list[list[int]]]:
    return [[caption.tolist() for caption in tokens.captions_of(i)] for i in range(len(tokens))]


@given(st.lists(st.lists(st.text(max_size=12), max_size=3), max_size=4))
@settings(max_examples=50)
def test_what_goes_in_comes_out(captions):
    tokens = encoded(captions)
    assert ids_of(tokens) == [TOKENIZER.encode(of_picture) for of_picture in captions]
    assert len(tokens) == len(captions)
    assert tokens.captions_per_picture().tolist() == [len(of_picture) for of_picture in captions]


def test_captions_tokenised_in_many_portions_keep_their_places(monkeypatch):
    captions = [[f"a man {i}", f"a cat {i}"] for i in range(10)]
    expected = ids_of(encoded(captions))
    monkeypatch.setattr(rows, "CAPTIONS_AT_ONCE", 3)
    assert ids_of(encoded(captions)) == expected


class ManyTokens:
    """A tokenizer whose highest id is as high as ids go."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode(self, captions):
        return [[0, self.vocab_size - 1, 0] for _ in captions]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50257, np.uint16), (2**16, np.uint16), (2**16 + 1, np.int32)])
def test_ids_take_two_bytes_where_the_vocabulary_allows_it(vocab_size, dtype):
    tokens = TokenArrays.encode([["a"]], ManyTokens(vocab_size), 64)
    (ids,) = tokens.captions_of(0)
    assert ids.dtype == dtype and ids.tolist() == [0, vocab_size - 1, 0]


def test_a_longer_caption_is_cut_without_an_eos_and_counted_in_one_warning(caplog):
    (whole,) = TOKENIZER.encode([LONG])
    with caplog.at_level(logging.WARNING):
        tokens = encoded([[LONG, "a man"], [LONG]], max_tokens=6, name="train")
    assert ids_of(tokens) == [[whole[:7], TOKENIZER.encode(["a man"])[0]], [whole[:7]]]
    assert TOKENIZER.eos_token_id not in whole[1:7], "the model never learns to stop in mid-sentence"
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 train captions are longer than data.max_tokens=6 and were cut"
    ]


def test_a_caption_of_exactly_the_limit_is_whole(caplog):
    (whole,) = TOKENIZER.encode([LONG])
    assert ids_of(encoded([[LONG]], max_tokens=len(whole) - 1)) == [[whole]]
    assert not caplog.records


def test_a_worker_is_sent_handles_and_reads_the_same_memory():
    tokens = encoded([["a man on a horse"] * 2000])
    assert tokens.nbytes > 30_000
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(tokens)  # what a spawned worker is sent
    assert len(buffer.getvalue()) < 2000
    received = ForkingPickler.loads(buffer.getvalue())
    assert ids_of(received) == ids_of(tokens)
    received.captions_of(0)[0][:] = 7
    assert set(tokens.captions_of(0)[0].tolist()) == {7}, "what one of them writes, the other sees"


def test_a_forked_worker_reads_the_same_memory():
    tokens = encoded([["a man"]])
    if (child := os.fork()) == 0:
        tokens.captions_of(0)[0][:] = 7
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert set(tokens.captions_of(0)[0].tolist()) == {7}, "not copied on writing either"


def test_cocos_captions_take_the_memory_that_the_module_states(shared_data):
    tokenizer = CaptionTokenizer.from_pretrained(str(shared_data / "gpt2-tokenizer"))
    read = json.loads((shared_data / "coco-full-text" / "captions_val2017.json").read_text())
    captions: dict[int, list[str]] = {}
    for annotation in read["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(" ".join(annotation["caption"].split()))
    tokens = TokenArrays.encode(list(captions.values()), tokenizer, 64)
    lengths = [len(ids) for i in range(len(tokens)) for ids in tokens.captions_of(i)]
    assert len(lengths) == 25_014
    assert f"{np.mean(lengths):.2f} tokens each" in str(rows.__doc__)
    megabytes = (591_753 * (2 * np.mean(lengths) + 8) + 118_287 * 8) / 1e6
    assert f"about {megabytes:.0f} MB" in str(rows.__doc__)
    assert tokens.nbytes == pytest.approx(megabytes * 1e6 * 25_014 / 591_753, rel=0.01)


# Rows of captions that share a picture, as training and evaluation see them.


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


# The order in which epochs, ranks and resumed runs meet rows.


def order(rows: int = 23, batch_size: int = 4, *, epoch: int = 0, shuffle: bool = True, seed: int = 7, **ranks):
    batches = EpochBatches(rows, batch_size, shuffle=shuffle, seed=seed, **ranks)
    batches.set_epoch(epoch)
    return list(batches)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert order(epoch=3) == order(epoch=3)
    firsts = [
        tuple(row for batch in batches for _, row in batch) for batches in (order(), order(epoch=1), order(seed=8))
    ]
    assert len(set(firsts)) == 3
    assert all(sorted(rows) == list(range(23)) for rows in firsts)
    assert {epoch for batch in order(epoch=3) for epoch, _ in batch} == {3}


def test_torchs_own_generator_neither_matters_nor_is_used():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = order()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert order() == first


def test_evaluation_comes_in_order():
    assert order(5, 2, shuffle=False) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]


def test_a_run_resumed_in_mid_epoch_needs_only_the_number_of_batches_done():
    whole = order(epoch=2)
    for done in range(len(whole) + 1):
        resumed = EpochBatches(23, 4, shuffle=True, seed=7)
        resumed.set_epoch(2)
        resumed.go_on(done)
        assert list(resumed) == whole[done:]
        assert len(resumed) == len(whole), "of the epoch, whatever of it is to come"


SIZES = given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2))


@SIZES
def test_ranks_train_on_equally_many_batches_that_never_overlap(rows, batch_size, world_size, epoch):
    ranks = [order(rows, batch_size, epoch=epoch, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1, "or the ranks would wait for each other for ever"
    assert all(1 <= len(batch) <= batch_size for batches in ranks for batch in batches)
    seen = [row for batches in ranks for batch in batches for _, row in batch]
    assert len(set(seen)) == len(seen)
    assert rows - len(seen) < world_size, "of the rows, fewer than one a rank are left out"


@SIZES
def test_ranks_together_see_what_one_process_with_their_batches_would(rows, batch_size, world_size, epoch):
    together = order(rows, batch_size * world_size, epoch=epoch)
    ranks = [order(rows, batch_size, epoch=epoch, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, batches in enumerate(zip(*ranks, strict=True)):
        assert sorted(chain.from_iterable(batches)) == sorted(together[number])


@SIZES
def test_evaluation_sees_every_row_exactly_once_for_any_number_of_ranks(rows, batch_size, world_size, epoch):
    ranks = [
        order(rows, batch_size, epoch=epoch, shuffle=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert all(batch for batches in ranks for batch in batches), "no batch is empty"
    assert sorted(row for batches in ranks for batch in batches for _, row in batch) == list(range(rows))


def order_of(rows, epoch, near=None, **place):
    batches = EpochBatches(rows, 8, shuffle=True, seed=1, neighbours=near, **place)
    batches.set_epoch(epoch)
    return [row for batch in batches for _, row in batch]


def test_rows_with_neighbours_are_shuffled_within_a_few_runs_at_a_time():
    runs = np.repeat(np.arange(12) * 3, 20)  # numbers may be missing
    near = Neighbours(runs, at_once=3)
    orders = [order_of(240, epoch, near) for epoch in (0, 1)]
    assert {int(run) for run in runs[orders[0][:60]]} not in [{0, 3, 6}, {int(run) for run in runs[orders[1][:60]]}]
    for order in orders:
        assert sorted(order) == list(range(240))
        windows = [{int(runs[row]) for row in order[start : start + 60]} for start in range(0, 240, 60)]
        assert [len(window) for window in windows] == [3] * 4, "each run is over before the next window begins"
        assert len({int(runs[row]) for row in order[:10]}) == 3 and order[:60] != sorted(order[:60])
    assert orders[0] != orders[1] and orders[0] == order_of(240, 0, near)
    ranks = [order_of(240, 0, near, rank=rank, world_size=2) for rank in (0, 1)]
    assert {*ranks[0], *ranks[1]} == set(range(240))


def test_rows_whose_neighbours_are_all_held_at_once_are_shuffled_as_rows_without():
    assert order_of(50, 3, Neighbours(np.arange(50) // 10, at_once=5)) == order_of(50, 3)


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_read_lanes_of_their_own_of_an_order_that_does_not_depend_on_how_many_they_are(shuffle):
    runs = np.arange(250) // 10
    near = Neighbours(runs, at_once=8, lanes=4)

    def batches(batch_size, **place):
        return list(EpochBatches(250, batch_size, shuffle=shuffle, seed=1, neighbours=near, **place))

    alone = [[row for _, row in batch] for batch in batches(8)]
    assert sorted(chain.from_iterable(alone)) == list(range(250))
    for world_size in (2, 4):
        ranks = [batches(8 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
        for together, *shares in zip(alone, *ranks, strict=False):
            assert [row for rank in zip(*shares, strict=True) for _, row in rank] == together[
                : len(shares[0]) * world_size
            ]
        read = [{int(runs[row]) for batch in rank for _, row in batch} for rank in ranks]
        assert sum(map(len, read)) <= 25 + 3, "a run at each border of two lanes is in both"
        assert max(map(len, read)) <= 25 // world_size + 2
    if shuffle:
        window = runs[[row for batch in batches(2, rank=0, world_size=4) for _, row in batch][:20]]
        assert len(set(window[:10].tolist())) == len(set(window.tolist())) == 2, "two of the eight are this lane's"


class Itself(Dataset):
    def __getitem__(self, index):
        return index


def test_an_epoch_ends_by_the_plan_that_it_began_with_though_the_cache_or_the_machines_are_others():
    def loader(**plan):
        near = Neighbours(np.arange(60) // 5, **plan)
        order = EpochBatches(60, 4, shuffle=True, seed=1, neighbours=near)
        return RowLoader(Itself(), batch_sampler=order, collate_fn=list)

    whole, others = list(loader(at_once=6, lanes=2)), list(loader(at_once=3, lanes=1))
    began, goes_on = loader(at_once=6, lanes=2), loader(at_once=3, lanes=1)
    batches = iter(began)
    assert [next(batches) for _ in range(5)] == whole[:5] != others[:5]
    goes_on.load_state_dict(began.state_dict())
    assert list(goes_on) == whole[5:] and list(goes_on) == others
    goes_on.load_state_dict({"batches": 5})  # of a run before there were plans
    assert list(goes_on) == others[5:]


@SIZES
def test_the_number_of_batches_is_what_the_length_says(rows, batch_size, world_size, epoch):
    for shuffle in (True, False):
        for rank in range(world_size):
            batches = EpochBatches(rows, batch_size, shuffle=shuffle, seed=1, rank=rank, world_size=world_size)
            assert len(list(batches)) == len(batches)


@given(count=st.integers(1, 50), total=st.integers(1, 60))
def test_what_is_spread_is_evenly_apart_and_never_twice(count, total):
    chosen = spread(count, total)
    assert len(chosen) == len(set(chosen)) == min(count, total)
    gaps = np.diff([*chosen, total])
    assert chosen[0] == 0 and gaps.max() - gaps.min() <= 1


# Whether a caption says left or right, so that its picture is not mirrored.


@pytest.mark.parametrize(
    "caption",
    [
        "A man on the left.",
        "RIGHT of the door",
        "the leftmost bird",
        "turning rightwards",
        "a left-hand glove",
        "a lefthanded batter",
        "a left-hander pitching",
        "sign in the upperleft corner",
        "the left/right arrows",
        "a lefty swings",
        "the right's shadow",
        'the "left" lane',
    ],
)
def test_words_for_sides_are_found(caption):
    assert captions_mention_sides(["A dog runs.", caption])


@pytest.mark.parametrize(
    "caption",
    [
        "a bright copyright sign",
        "an upright piano",
        "leftover pizza and leftovers",
        "a frightened, outright brightly lit wright",
        "a civil rights march",
        "a cleft rock",
        "",
    ],
)
def test_words_that_only_look_like_sides_are_not(caption):
    assert not captions_mention_sides([caption])


def test_a_row_without_captions_mentions_no_side():
    assert not captions_mention_sides([])


def test_real_captions_rarely_mention_sides(shared_data):
    annotations = json.loads((shared_data / "coco-full-text" / "captions_val2017.json").read_text(encoding="utf-8"))
    mentions = sum(captions_mention_sides([a["caption"]]) for a in annotations["annotations"])
    assert mentions == 71  # of 25,014; "bright" alone is in 51 more
