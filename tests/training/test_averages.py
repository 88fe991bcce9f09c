"""Losses over many batches."""

import math

import pytest
import torch

from captioning.training.module import TokenAverage, perplexity


def test_the_loss_is_that_of_all_tokens_and_not_a_mean_of_batches():
    average = TokenAverage()
    average.add(torch.tensor(10.0), torch.tensor(1))
    average.add(torch.tensor(20.0), torch.tensor(9))
    assert average.loss() == 3.0
    assert perplexity(average.loss()) == pytest.approx(math.e**3)


def test_reading_between_batches_loses_nothing():
    average = TokenAverage()
    for _ in range(2500):
        average.add(torch.tensor(0.1), torch.tensor(2))
        average.totals()
    nats, tokens = average.totals()
    assert tokens == 5000
    assert nats == pytest.approx(250)


def test_nothing_added_is_not_a_number():
    assert math.isnan(TokenAverage().loss())
    assert math.isnan(perplexity(math.nan))


def test_an_untrained_models_perplexity_overflows_to_infinity():
    assert perplexity(1000.0) == math.inf


def test_a_sum_is_the_same_to_the_bit_however_often_it_was_asked_for_and_stored():
    values = torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 1000
    whole, stored = TokenAverage(), TokenAverage()
    for i, value in enumerate(values):
        whole.add(value, torch.tensor(3))
        stored.add(value, torch.tensor(3))
        if i % 7 == 0:
            totals, stored = stored.totals(), TokenAverage()
            stored.reset(*totals)
    assert whole.totals() == stored.totals()
