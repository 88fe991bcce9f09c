"""Dropout is a function of the seed and the place in the run."""

from functools import partial
from types import SimpleNamespace

import torch

from captioning.randomness import addressed_seed
from captioning.training.callbacks import AddressedDropout


def masks(epoch=0, batch=0, rank=0, seed=1):
    torch.manual_seed(int(torch.randint(1000, ())))  # whatever was drawn before
    callback = AddressedDropout(partial(addressed_seed, seed, "dropout"))
    callback.on_train_batch_start(SimpleNamespace(current_epoch=epoch, global_rank=rank), None, None, batch)
    return torch.nn.functional.dropout(torch.ones(50)).tolist()


def test_a_place_in_the_run_has_its_own_masks_whatever_was_drawn_before():
    assert masks(1, 2) == masks(1, 2)
    different = [masks(), masks(epoch=1), masks(batch=1), masks(rank=1), masks(seed=2)]
    assert all(one != other for i, one in enumerate(different) for other in different[:i])
