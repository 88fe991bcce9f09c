"""Intervals and the paired test, against what statistics says of them."""

import numpy as np
import pytest

from captioning.evaluation.intervals import Sums, differences, intervals
from captioning.evaluation.scoring import score


def test_the_interval_of_a_mean_is_the_normal_one():
    figures = np.random.default_rng(1).gamma(2.0, size=2000)
    low, high = intervals({"CIDEr": Sums.mean(figures.tolist())})["CIDEr"]
    half = 1.96 * figures.std() / len(figures) ** 0.5
    assert (low, high) == pytest.approx((figures.mean() - half, figures.mean() + half), rel=0.005)


def test_chance_differences_are_below_one_in_twenty_as_often_as_they_should():
    random, p = np.random.default_rng(2), []
    for _ in range(100):
        hard = random.normal(size=40)  # pictures differ more than models do
        a, b = ({"CIDEr": Sums.mean((hard + random.normal(size=40)).tolist())} for _ in range(2))
        p.append(differences(a, b)["CIDEr"].p)
    assert sum(one < 0.05 for one in p) in range(1, 11) and 0.4 < np.mean(p) < 0.6


def test_bleu_of_a_draw_is_the_corpus_figure_of_its_pictures():
    """Resampled by hand: each draw scored as a corpus of its own."""
    captions = {n: f"a {n % 3} dog runs on {'green ' * (n % 4)}grass" for n in range(8)}
    references = {n: [f"a {n % 2} dog runs on grass", "the dog runs on green grass"] for n in captions}
    sums = score(captions, references).sums
    for pictures in ([0, 0, 3, 5], [1, 2, 2, 2, 7], list(captions)):
        drawn = {place: captions[n] for place, n in enumerate(pictures)}
        expected = score(drawn, {place: references[n] for place, n in enumerate(pictures)}).corpus
        for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"):
            one = sums[name]
            assert one.figure(one.of_pictures[pictures].sum(0)) == pytest.approx(expected[name], abs=1e-12)
