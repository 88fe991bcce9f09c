"""The order in which epochs, ranks and resumed runs meet rows."""

from itertools import chain

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from captioning.data.rows import EpochBatches, InOrder, spread


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
        resumed.start = done
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


@SIZES
def test_the_number_of_batches_is_what_the_length_says(rows, batch_size, world_size, epoch):
    for shuffle in (True, False):
        for rank in range(world_size):
            batches = EpochBatches(rows, batch_size, shuffle=shuffle, seed=1, rank=rank, world_size=world_size)
            assert len(list(batches)) == len(batches)


def test_rows_in_order_come_once_each():
    batches = InOrder([3, 4, 9, 1, 0], batch_size=2)
    assert list(batches) == [[(0, 3), (0, 4)], [(0, 9), (0, 1)], [(0, 0)]] and len(batches) == 3
    assert list(batches) == list(batches)


@given(count=st.integers(1, 50), total=st.integers(1, 60))
def test_what_is_spread_is_evenly_apart_and_never_twice(count, total):
    chosen = spread(count, total)
    assert len(chosen) == len(set(chosen)) == min(count, total)
    gaps = np.diff([*chosen, total])
    assert chosen[0] == 0 and gaps.max() - gaps.min() <= 1
