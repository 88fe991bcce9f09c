"""A batch moves as one."""

import pytest
import torch
from support import encoded_rows, trained_tokenizer

from captioning.data.batch import pack

TENSORS = ("pixel_values", "input_ids", "position_ids", "caption_index", "labels")


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
