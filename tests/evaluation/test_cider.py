"""CIDEr-D is the official scorer's, over words as over ids, and serves self-critical training."""

import pytest
from test_bleu import made_up, official_form

from captioning.evaluation.bleu import NgramCounts
from captioning.evaluation.cider import CiderD

EOS = -1


def cider_of(references) -> CiderD:
    return CiderD.from_references([NgramCounts(tokens) for tokens in of_picture] for of_picture in references)


def score(cider, candidate, references) -> float:
    return cider.score(NgramCounts(candidate), cider.prepare([NgramCounts(tokens) for tokens in references]))


def ours(candidates, references, split=str.split) -> list[float]:
    tokens = [[split(target) for target in lines] for lines in references]
    cider = cider_of(tokens)
    return [score(cider, split(line), lines) for line, lines in zip(candidates, tokens, strict=True)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pictures", [1, 2, 40])
def test_the_official_scorer_gives_the_same(seed, pictures):
    official = pytest.importorskip("pycocoevalcap.cider.cider")
    candidates, references = made_up(seed, pictures)
    _, per_picture = official.Cider().compute_score(*official_form(candidates, references))
    assert ours(candidates, references) == pytest.approx(per_picture, abs=1e-9)


def test_ids_score_as_their_words_do():
    candidates, references = made_up(7)
    assert ours(candidates, references) == ours(candidates, references, lambda line: list(map(hash, line.split())))


def test_prepared_references_give_the_same_any_number_of_times():
    cider = cider_of([[[1, 2, 3, 4]], [[5, 6, 7]]])
    prepared = cider.prepare([NgramCounts([1, 2, 3, 4]), NgramCounts([1, 2])])
    scores = [cider.score(NgramCounts([1, 2, 3]), prepared) for _ in range(3)]
    assert scores == [score(cider, [1, 2, 3], [[1, 2, 3, 4], [1, 2]])] * 3


def test_a_perfect_candidate_scores_10_and_one_of_other_words_0():
    cider = cider_of([[[1, 2, 3, 4]], [[5, 6, 7, 8]]])
    assert score(cider, [1, 2, 3, 4], [[1, 2, 3, 4]]) == pytest.approx(10)
    assert score(cider, [9, 9, 9, 9], [[1, 2, 3, 4]]) == 0
    assert score(cider, [], [[1, 2, 3, 4]]) == 0


def test_with_eos_counted_a_sentence_that_breaks_off_scores_less():
    whole, broken = [1, 2, 3, 4], [1, 2, 3]
    references = [[[*whole, EOS]], [[5, 6, 7, EOS]], [[8, 9, 5, EOS]]]
    cider = cider_of(references)
    assert score(cider, [*broken, EOS], references[0]) < score(cider, [*whole, EOS], references[0])
    assert score(cider, [*whole], references[0]) < score(cider, [*whole, EOS], references[0])


def test_words_of_every_picture_weigh_nothing():
    cider = cider_of([[["a", "dog"]], [["a", "cat"]]])
    assert score(cider, ["a"], [["a", "dog"]]) == 0
    assert cider.document_frequencies["a"] == 2
    assert cider.document_frequencies[("a", "dog")] == 1


def test_no_references_are_no_corpus():
    with pytest.raises(AssertionError, match="no references"):
        cider_of([])
