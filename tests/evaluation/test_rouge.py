"""ROUGE-L is the official scorer's."""

import pytest
from test_bleu import made_up, official_form

from captioning.evaluation.rouge import rouge_l


@pytest.mark.parametrize("seed", range(5))
def test_the_official_scorer_gives_the_same(seed):
    official = pytest.importorskip("pycocoevalcap.rouge.rouge")
    candidates, references = made_up(seed)
    _, per_picture = official.Rouge().compute_score(*official_form(candidates, references))
    ours = [
        rouge_l(line.split(" "), [target.split(" ") for target in lines])
        for line, lines in zip(candidates, references, strict=True)
    ]
    assert ours == pytest.approx(per_picture, abs=1e-12)


def test_a_sentence_scores_1_against_itself_and_0_against_other_words():
    assert rouge_l(["a", "dog"], [["x"], ["a", "dog"]]) == pytest.approx(1)
    assert rouge_l(["a", "dog"], [["x"], ["y", "z"]]) == 0


def test_order_counts():
    assert rouge_l(["dog", "a"], [["a", "dog"]]) == pytest.approx(0.5)
