"""BLEU is the official scorer's, corpus and pictures, to the last digits."""

import random

import pytest

from captioning.evaluation.bleu import NgramCounts, bleu

WORDS = ["a", "a", "a", "the", "dog", "cat", "man", "on", "in", "street", "red"]


def made_up(seed: int, pictures: int = 40) -> tuple[list[str], list[list[str]]]:
    """Candidates, some of them empty or short, and one to six references for each."""
    draw = random.Random(seed)

    def caption(least: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, 12)))

    return [caption(0) for _ in range(pictures)], [
        [caption(1) for _ in range(draw.randint(1, 6))] for _ in range(pictures)
    ]


def official_form(candidates: list[str], references: list[list[str]]) -> tuple[dict, dict]:
    """The two dictionaries that pycocoevalcap's scorers take."""
    return dict(enumerate(references)), {number: [candidate] for number, candidate in enumerate(candidates)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pictures", [1, 40])
def test_the_official_scorer_gives_the_same(seed, pictures):
    official = pytest.importorskip("pycocoevalcap.bleu.bleu")
    candidates, references = made_up(seed, pictures)
    corpus, per_picture = official.Bleu(4).compute_score(*official_form(candidates, references), verbose=0)
    ours = bleu(
        [NgramCounts(line.split()) for line in candidates],
        [[NgramCounts(line.split()) for line in lines] for lines in references],
    )
    assert ours.corpus == pytest.approx(corpus, abs=1e-12)
    for order in range(4):
        assert [row[order] for row in ours.per_picture] == pytest.approx(per_picture[order], abs=1e-12)


def test_a_repeated_word_counts_as_often_as_in_one_reference():
    the = NgramCounts(["the"] * 7)  # the paper's own example: 2 of 7
    references = [
        NgramCounts(["the", "cat", "is", "on", "the", "mat"]),
        NgramCounts(["there", "is", "a", "cat", "on", "the", "mat"]),
    ]
    assert bleu([the], [references]).corpus[0] == pytest.approx(2 / 7)


def test_lengths_are_those_of_the_closest_references_the_shorter_of_two():
    lengths = [NgramCounts(["a"] * length) for length in (3, 5, 9)]
    result = bleu([NgramCounts(["a"] * 4)], [lengths])
    assert (result.candidate_tokens, result.reference_tokens) == (4, 3)
