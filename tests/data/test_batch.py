"""Rows of several captions become one batch, of which nothing is lost or mixed, and which moves as one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import encoded_rows, trained_tokenizer

from captioning.data.batch import IGNORE, CaptionBatch, Row, pack

# Rows of several captions become one batch, and nothing of them is lost or mixed.


END = 0  # BOS and EOS
CAPTION = st.lists(st.integers(1, 50256), max_size=9).map(lambda words: [END, *words, END])
ROWS = st.lists(st.lists(CAPTION, min_size=1, max_size=5), min_size=1, max_size=4)


def packed(rows: list[list[list[int]]]) -> CaptionBatch:
    pixels = torch.zeros(3, 2, 2, dtype=torch.uint8)
    return pack([Row(f"picture {i}", pixels + i, [np.array(ids) for ids in row]) for i, row in enumerate(rows)])


def unpacked(batch: CaptionBatch) -> list[list[list[int]]]:
    """The captions, found by `caption_index` alone."""
    rows = []
    for index, ids, labels in zip(batch.caption_index, batch.input_ids, batch.labels, strict=True):
        here = [index == k for k in range(1, int(index.max()) + 1)]
        rows.append([[int(ids[mine][0]), *labels[mine].tolist()] for mine in here])
    return rows


def test_positions_indices_and_shifted_labels_are_exactly_these():
    batch = packed([[[END, 5, 6, END], [END, END]], [[END, 8, 9, 10, 11, END]]])
    assert batch.input_ids.tolist() == [[END, 5, 6, END, 0], [END, 8, 9, 10, 11]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert batch.caption_index.tolist() == [[1, 1, 1, 2, 0], [1, 1, 1, 1, 1]]
    assert batch.labels.tolist() == [[5, 6, END, END, IGNORE], [8, 9, 10, 11, END]]


@given(ROWS)
def test_unpacking_gives_the_captions_back(rows):
    assert unpacked(packed(rows)) == rows


@given(ROWS)
def test_every_caption_ends_in_a_scored_eos_and_starts_from_an_unscored_bos(rows):
    batch = packed(rows)
    captions = sum(map(len, rows))
    assert int((batch.labels == END).sum()) == captions, "EOS is a target once a caption, BOS never"
    starts = (batch.position_ids == 0) & (batch.caption_index > 0)
    assert int(starts.sum()) == captions == batch.caption_count
    assert (batch.input_ids[starts] == END).all()
    assert (batch.input_ids[~starts & (batch.caption_index > 0)] != END).all(), "EOS is never an input"


@given(ROWS)
def test_padding_reaches_to_the_longest_row_only_and_is_known_by_position(rows):
    batch = packed(rows)
    lengths = [sum(len(ids) - 1 for ids in row) for row in rows]
    assert batch.input_ids.shape == (len(rows), max(lengths))
    assert (batch.caption_index > 0).sum(1).tolist() == lengths
    assert ((batch.labels == IGNORE) == (batch.caption_index == 0)).all()
    assert torch.equal(batch.labelled, (batch.labels != IGNORE).flatten().nonzero().squeeze(1))
    padding = batch.caption_index == 0
    assert not batch.input_ids[padding].any() and not batch.position_ids[padding].any()


@given(ROWS)
def test_a_longer_packed_length_adds_padding_alone(rows):
    short, pictures = packed(rows), torch.zeros(3, 2, 2, dtype=torch.uint8)
    long = pack([Row(i, pictures, [np.array(ids) for ids in row]) for i, row in enumerate(rows)], multiple=16)
    assert long.input_ids.shape[1] == -(-short.input_ids.shape[1] // 16) * 16
    assert unpacked(long) == rows and len(long.labelled) == len(short.labelled)
    assert torch.equal(long.labels.flatten()[long.labelled], short.labels.flatten()[short.labelled])


@given(ROWS)
def test_rows_do_not_depend_on_their_neighbours(rows):
    together = unpacked(packed(rows))
    assert together == [unpacked(packed([row]))[0] for row in rows]


def test_pictures_and_ids_keep_the_order_of_the_rows():
    batch = packed([[[END, 1, END]], [[END, 2, END]], [[END, 3, END]]])
    assert batch.pixel_values[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch.pixel_values.dtype == torch.uint8
    assert batch.image_ids == ("picture 0", "picture 1", "picture 2")


@pytest.mark.parametrize("name", ["input_ids", "position_ids", "caption_index", "labels"])
def test_ids_are_of_the_type_that_embeddings_and_losses_take(name):
    tokens = np.array([END, 65535, END], dtype=np.uint16)  # as `TokenArrays` keeps them
    value = getattr(pack([Row(1, torch.zeros(3, 2, 2, dtype=torch.uint8), [tokens])]), name)
    assert value.dtype == torch.int64
    assert name != "labels" or value.tolist() == [[65535, END]]


def test_real_text_comes_back_from_a_batch():
    tokenizer = trained_tokenizer()
    captions = [["a man", "A cat sleeps on a chair."], ["Several people are waiting for the bus"]]
    batch = pack(encoded_rows(tokenizer, captions))
    assert [[tokenizer.decode(ids) for ids in row] for row in unpacked(batch)] == captions


def test_rows_of_encoded_pictures_make_a_batch_without_pixels():
    rows = [Row(i, None, [np.array([END, 1, END])], torch.full((2, 3), float(i)).bfloat16()) for i in range(2)]
    batch = pack(rows).to("cpu")
    assert batch.pixel_values is None and len(batch) == 2
    assert torch.equal(batch.encoder_hidden_states, torch.stack([row.encoder_hidden_states for row in rows]))


# A batch moves as one.


TENSORS = ("pixel_values", "input_ids", "position_ids", "caption_index", "labels", "labelled")


@pytest.fixture
def batch():
    return pack(encoded_rows(trained_tokenizer(), [["a man", "a cat", ""], ["a dog"]]))


def test_all_tensors_move_and_the_ids_stay(batch):
    moved = batch.to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS)
    assert moved.image_ids == batch.image_ids
    assert all(getattr(batch, name).device.type == "cpu" for name in TENSORS), "the batch itself stays where it is"


def test_lightning_moves_a_batch_as_one(batch):
    from lightning.fabric.utilities import move_data_to_device

    moved = move_data_to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch) and moved.labels.device.type == "meta"


def test_a_batch_knows_its_rows_and_captions(batch):
    assert len(batch) == 2
    assert batch.caption_count == 4, "a caption without a word counts, padding does not"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pinned_batches_hold_the_same(batch):
    pinned = batch.pin_memory()
    for name in TENSORS:
        assert getattr(pinned, name).is_pinned() and torch.equal(getattr(pinned, name), getattr(batch, name))
