"""Strings to scores: the official figures, the pictures' own, and what goes beside them."""

import json

import pytest
from conftest import SHARED
from test_bleu import made_up, official_form

from captioning.data.readers.coco import read_references, read_results
from captioning.errors import UserError
from captioning.evaluation import scoring
from captioning.evaluation.java import JavaScores
from captioning.evaluation.scoring import score

METRICS = SHARED / "metrics"
JAVA_FREE = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
SETS = [f"small_{who}_{which}" for who in ("human", "noisy", "constant") for which in ("loo", "full")]


@pytest.mark.skipif(not METRICS.is_dir(), reason=f"no official scores at {METRICS}")
@pytest.mark.parametrize("name", SETS)
def test_the_official_figures_of_real_captions_come_out(name):
    official = json.loads((METRICS / "official_scores_200.json").read_text(encoding="utf-8"))[name]
    scores = score(read_results(METRICS / official["candidates"]), read_references(METRICS / official["refs"]))
    assert list(scores.corpus) == JAVA_FREE
    assert scores.corpus == pytest.approx({name: official["corpus"][name] for name in JAVA_FREE}, abs=1e-9)
    for picture, row in scores.per_picture.items():
        theirs = official["per_image"][str(picture)]
        assert list(row.values()) == pytest.approx([*theirs["Bleu"], theirs["ROUGE_L"], theirs["CIDEr"]], abs=1e-9)


def test_the_official_scorers_given_the_same_tokens_give_the_same():
    official = [pytest.importorskip(f"pycocoevalcap.{name}.{name}") for name in ("bleu", "rouge", "cider")]
    candidates, references = made_up(11)
    candidates[0], references[0][0] = "22\xa03/4 dogs", "22\xa03/4 dogs"  # split by BLEU and CIDEr, not by ROUGE-L
    form = official_form(candidates, references)
    (bleus, _), (rouge, _), (cider, _) = (
        official[0].Bleu(4).compute_score(*form, verbose=0),
        official[1].Rouge().compute_score(*form),
        official[2].Cider().compute_score(*form),
    )
    raw = [line.replace("\xa0", " ") for line in candidates]
    raw_references = [[line.replace("\xa0", " ") for line in lines] for lines in references]
    scores = score(dict(enumerate(raw)), dict(enumerate(raw_references)))
    assert list(scores.corpus.values()) == pytest.approx([*bleus, rouge, cider], abs=1e-9)


def test_corpus_cider_and_rouge_are_the_means_of_the_pictures():
    candidates, references = made_up(3)
    scores = score(dict(enumerate(candidates)), dict(enumerate(references)))
    for name in ("ROUGE_L", "CIDEr"):
        rows = [row[name] for row in scores.per_picture.values()]
        assert scores.corpus[name] == pytest.approx(sum(rows) / len(rows))
    assert list(scores.per_picture) == list(range(len(candidates)))


def test_the_signature_says_what_figures_depend_on():
    scores = score({1: "A dog runs.", 2: ""}, {1: ["A dog.", "A big dog is running."], 2: ["A cat."]})
    signature = scores.signature
    assert "PTB 3.4.1" in signature["tokenizer"]
    assert signature["eos"] == "not counted"
    assert (signature["pictures"], signature["references"], signature["empty_candidates"]) == (2, 3, 1)
    assert (signature["candidate_tokens"], signature["reference_tokens"]) == (3, 2 + 2)
    assert signature["length_ratio"] == 3 / 4
    assert signature["metrics"] == JAVA_FREE
    assert scores.left_out == []


def test_a_line_separator_in_a_caption_moves_no_other_caption():
    references = {1: ["a dog runs fast"], 2: ["two cats sleep here"], 3: ["a man sails away"]}
    plain = {1: "a dog runs", 2: "two cats sleep", 3: "a man sails"}
    broken = {1: "a\u2028dog\rruns", 2: "two\x85cats\x0bsleep", 3: "a man\n\nsails"}
    assert score(broken, references) == score(plain, references)


@pytest.mark.parametrize(
    ("candidates", "references", "sentence"),
    [
        ({}, {}, "there are no candidates to score"),
        ({1: "a"}, {}, "picture 1 has a candidate but no references; give references"),
        ({1: "a"}, {1: []}, "picture 1 has a candidate but no references"),
        ({1: "a"}, {1: ["a"], 7: ["b"]}, "picture 7 has references but no candidate; caption these pictures too"),
        ({1: "a"}, {n: ["a"] for n in range(1, 7)}, r"5 pictures \(2, 3, 4, \.\.\.\) have references but no candidate"),
    ],
)
def test_pictures_without_either_are_refused_in_one_sentence(candidates, references, sentence):
    with pytest.raises(UserError, match=sentence):
        score(candidates, references)


def test_java_scores_stand_in_the_official_order_and_what_is_left_out_is_said(monkeypatch):
    def fake(candidates, references):
        assert (candidates, references) == (["a dog", "a cat"], [["the dog"], ["the cat"]])
        return JavaScores({"METEOR": 0.3}, {"METEOR": [0.2, 0.4]}, {"java": "17"}, ["SPICE is left out"])

    monkeypatch.setattr(scoring, "java_scores", fake)
    scores = score({1: "A dog.", 2: "A cat."}, {2: ["The cat."], 1: ["The dog."]}, java=True)
    assert list(scores.corpus) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"]
    assert [row["METEOR"] for row in scores.per_picture.values()] == [0.2, 0.4]
    assert scores.left_out == ["SPICE is left out"]
    assert scores.signature["java"] == "17"


def test_the_cider_of_a_single_picture_is_0_with_its_reason():
    scores = score({1: "a dog runs"}, {1: ["a dog runs"]})
    assert scores.corpus["CIDEr"] == 0
    assert [sentence.partition(",")[0] for sentence in scores.left_out] == ["CIDEr of a single picture is 0"]
