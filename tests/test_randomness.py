"""Seeds are functions of their address and of nothing else."""

import subprocess
import sys

import numpy as np
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from captioning.randomness import addressed_seed

ADDRESSES = st.lists(st.integers() | st.text(), max_size=4)


def test_seeds_are_these_numbers_for_ever():
    """Another number here would silently change every drawn picture, epoch and sampled caption."""
    assert addressed_seed(42, "order", 0) == 993273450358985366
    assert addressed_seed("été.jpg") == 1986266034251137632


def test_seeds_are_the_same_in_another_process():
    code = "from captioning.randomness import addressed_seed as s; print(s(42, 1, 'été.jpg'), s(42, 1, 7))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout.split() == [str(addressed_seed(42, 1, "été.jpg")), str(addressed_seed(42, 1, 7))]


@given(ADDRESSES, ADDRESSES)
def test_different_addresses_have_different_seeds(one, other):
    assert (addressed_seed(*one) == addressed_seed(*other)) == (one == other)


def test_words_that_look_like_numbers_are_other_addresses():
    assert len({addressed_seed(1, 23), addressed_seed(12, 3), addressed_seed("1", 23), addressed_seed("1, 23")}) == 4


def test_numpys_whole_numbers_are_the_same_address():
    assert addressed_seed(np.int64(7), "a") == addressed_seed(7, "a") == addressed_seed(np.uint8(7), "a")


def test_file_names_that_are_not_utf_8_have_a_seed():
    assert addressed_seed("\udcff.jpg") != addressed_seed("\udcfe.jpg")


@given(ADDRESSES)
def test_a_seed_suits_torch_and_numpy(address):
    assert 0 <= addressed_seed(*address) < 2**63


def test_neighbouring_addresses_have_unrelated_seeds():
    seeds = np.array([addressed_seed(42, 0, i) for i in range(2000)], dtype=np.uint64)
    shares = [((seeds >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(63)]
    assert max(abs(share - 0.5) for share in shares) < 0.07  # six standard deviations of 0.011
