"""The list of metrics, a new one as an entry of it, and perplexity over many batches."""

import csv
import json
import math
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest
import torch
from interrupted import composed, train

from captioning.errors import UserError
from captioning.evaluation.scoring import Figures, TokenisedCaptions, score, scores_json
from captioning.export import RunRecord, model_card
from captioning.metrics import (
    METRICS,
    SCORES,
    Metric,
    caption_scores,
    check_best_by,
    chosen_by,
    in_reading_order,
    perplexity,
)
from captioning.training.curves import write_curves
from captioning.training.module import TokenAverage
from captioning.training.reports import shown_numbers


def mean_length(captions: TokenisedCaptions) -> dict[str, Figures]:
    """A new score: how many tokens a candidate has."""
    return {"Length": Figures.of([float(len(line.split())) for line in captions.candidates])}


LENGTH = Metric(
    name="val/length",
    official="Length",
    computed_by="test_metrics.mean_length",
    larger_is_better=True,
    bar=("length", 1),
    column="Val Length",
    curve=(SCORES, "length"),
)


@pytest.fixture
def length():
    """The list with one more entry."""
    METRICS.append(LENGTH)
    yield
    METRICS.remove(LENGTH)


def test_a_new_score_is_one_entry_of_the_list(length, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: drawn.append([line.get_label() for line in figure.axes[-1].lines])
    )
    run = train(composed(tmp_path, "trainer.max_epochs=1", "stage.best_by=val/length"))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        logged = [float(row["val/length"]) for row in csv.DictReader(file) if row["val/length"]]
    assert run.metrics["best/val/length"] == pytest.approx(max(logged), abs=1e-5)
    assert "| Val Length |" in (tmp_path / "results.md").read_text()
    assert shown_numbers(SimpleNamespace(callback_metrics=run.metrics))["length"] == f"{logged[-1]:.1f}"
    write_curves(tmp_path)
    assert any(label.startswith("length (") for label in drawn[-1])
    scores = score({1: "A dog runs.", 2: "A cat."}, {1: ["A dog."], 2: ["The cat."]})
    (tmp_path / "scores.json").write_text(scores_json(scores))
    assert json.loads((tmp_path / "scores.json").read_text())["Length"] == 2.5
    assert "| Length | 2.5000 |" in model_card(RunRecord(tmp_path), "my/model", 1)


def test_the_list_is_sound():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        resolve_name(metric.computed_by)  # raises where there is none of this name
    assert list(caption_scores()) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE"]
    columns = [metric.column for metric in in_reading_order() if metric.column]
    assert columns[:4] == ["Train Loss", "Train Perplexity", "Val Loss", "Val Perplexity"]
    assert columns[4:] == ["Val CIDEr", "Val BLEU-4", "Val ROUGE-L"]
    assert chosen_by("val/cider").larger_is_better and not chosen_by("val/perplexity").larger_is_better


@pytest.mark.parametrize(
    ("best_by", "scored", "words"),
    [
        ("val/cidre", (8, 1, 5), "stage.best_by=val/cidre is none of val/perplexity, val/bleu_1"),
        ("val/cider", (0, 1, 5), "set scores.pictures above 0"),
        ("val/cider", (8, 6, 5), "is never measured, with scores.every_n_epochs=6 and trainer.max_epochs=5"),
    ],
)
def test_what_no_checkpoint_can_be_chosen_by_is_refused(best_by, scored, words):
    with pytest.raises(UserError, match=words):
        check_best_by(best_by, *scored)


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
