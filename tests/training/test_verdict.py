"""What a run says of itself: guessing, one caption for everything, captions learned by heart."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from captioning.data.rows import TokenArrays
from captioning.training.verdict import Guessing, Verdict


def test_guessing_by_frequency_is_the_entropy_of_the_targets():
    tokens = np.array([9, 5, 6, 9, 9, 5, 9], np.uint16)  # "5 6" and "5", with BOS = EOS = 9
    counts = TokenArrays(tokens, np.array([0, 4, 7]), np.array([0, 2])).target_counts(10)
    assert counts.tolist() == [0, 0, 0, 0, 0, 2, 1, 0, 0, 2]
    unigram, uniform = Guessing.of(counts)
    shares = np.array([2, 1, 2]) / 5
    assert math.isclose(math.log(unigram), -(shares * np.log(shares)).sum()) and uniform == 10


class Trainer(SimpleNamespace):
    sanity_checking, is_global_zero = False, True


@pytest.fixture
def said(caplog):
    """What is said after a validation with these metrics, and whether it warns."""

    def say(verdict, captions=None, **metrics):
        names = {"val": "val/perplexity", "val_loss": "val/loss", "train": "train/loss_epoch", "step": "train/loss"}
        trainer = Trainer(callback_metrics={names[name]: torch.tensor(value) for name, value in metrics.items()})
        caplog.clear()
        with caplog.at_level(logging.INFO):
            if "val" in metrics:
                verdict.on_validation_end(trainer, None)
            verdict.on_train_epoch_end(trainer, None)
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    return say


def test_a_model_is_held_against_guessing(said):
    verdict = Verdict(Guessing(230.0, 50257.0))
    assert said(verdict, val=23.0) == [("INFO", "val/perplexity 23, 10 times lower than by guessing")]
    ((level, words),) = said(verdict, val=38000.0)
    assert level == "WARNING" and words.startswith("val/perplexity 38,000 is no better than guessing by how frequent")
    assert "nothing is learned yet" in words
    ((level, words),) = said(verdict, val=250.0, step=math.log(12.0))
    assert level == "WARNING" and "of the training captions it is 12: these are learned by heart" in words
    assert "nothing is learned yet" in said(verdict, val=250.0, step=math.log(200.0))[0][1]


def test_captions_are_shown_and_one_for_everything_is_named(said):
    scores = SimpleNamespace(captions={n: f"caption {n}" for n in range(20)})
    verdict = Verdict(Guessing(230.0, 50257.0), scores, {n: [f"reference {n}", "x"] for n in range(20)})
    assert [words for _, words in said(verdict, val=23.0)][1:] == [
        f"  caption {n}  (a reference: reference {n})" for n in (0, 1, 10)
    ]
    scores.captions = dict.fromkeys(range(20), "a man " * 40) | {3: ""}
    warnings = [words for level, words in said(verdict, val=23.0) if level == "WARNING"]
    assert len(warnings) == 1 and "19 of 20 validation captions are the same, 'a man a man" in warnings[0]
    assert len(warnings[0]) < 200
    scores.captions = {n: ("a man", "a dog", "a cat")[n % 3] for n in range(60)}
    varied = Verdict(Guessing(230.0, 50257.0), scores, {n: [f"reference {n}"] for n in range(60)})
    words = "the model writes 3 different captions for 60 pictures, for which people wrote 60: it tells pictures hardly"
    assert [text for level, text in said(varied, val=23.0) if level == "WARNING"] == [f"{words} apart yet"]
    notes = verdict.notes()
    assert "perplexity of 230, guessing evenly 50,257" in notes and "(a reference: reference 1)" in notes


def test_learning_by_heart_is_named_once_validation_has_risen_twice(said):
    verdict = Verdict(Guessing(230.0, 50257.0))
    losses = [(5.0, 5.0), (4.0, 4.5), (3.0, 4.6), (2.5, 4.7), (2.6, 4.8)]
    heard = [bool(said(verdict, train=train, val_loss=val)) for train, val in losses]
    assert heard == [False, False, False, True, False]
    again = Verdict(Guessing(230.0, 50257.0))
    again.load_state_dict({"losses": losses[1:3]})
    assert said(again, train=2.5, val_loss=4.7), "a resumed run knows what was before"
