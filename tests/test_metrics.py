"""The list of metrics, a new one as an entry of it, and perplexity over many batches."""

import csv
import json
import math
import sys
from pkgutil import resolve_name
from types import ModuleType, SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from small_runs import composed
from worked_examples import EXAMPLES

from captioning import metrics
from captioning.evaluation.scoring import score, scores_json
from captioning.export.card import RunRecord, model_card
from captioning.metrics import (
    METRICS,
    caption_scores,
    choosable,
    in_reading_order,
    perplexity,
)
from captioning.training.module import TokenAverage
from captioning.training.reports import shown_numbers
from captioning.training.run import train


@pytest.fixture
def distinct(monkeypatch):
    """The worked example of `docs/extending.md`: a function, and one more entry of the list."""
    added = ModuleType("captioning.evaluation.distinct")
    exec(EXAMPLES["captioning/evaluation/distinct.py"], added.__dict__)
    monkeypatch.setitem(sys.modules, added.__name__, added)
    before = len(METRICS)
    exec(EXAMPLES["captioning/metrics.py"], vars(metrics))
    yield
    del METRICS[before:]


def test_a_new_score_is_one_entry_of_the_list(distinct, draw_curves, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: drawn.append([line.get_label() for line in figure.axes[-1].lines])
    )
    assert "val/distinct" in choosable(), "which is what stage.best_by may name"
    config = composed(tmp_path, "trainer.max_epochs=1")  # whose types were made before the entry was
    by_distinct = config.stage.model_copy(update={"best_by": "val/distinct"})
    run = train(config.model_copy(update={"stage": by_distinct}))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        logged = [float(row["val/distinct"]) for row in csv.DictReader(file) if row["val/distinct"]]
    assert run.metrics["best/val/distinct"] == pytest.approx(max(logged), abs=1e-5)
    assert "| Val Distinct |" in (tmp_path / "results.md").read_text()
    assert shown_numbers(SimpleNamespace(callback_metrics=run.metrics))["distinct"] == f"{logged[-1]:.2f}"
    assert any(label.startswith("distinct words (") for label in drawn[-1])
    scores = score({1: "A dog runs.", 2: "A cat and a cat."}, {1: ["A dog."], 2: ["The cat."]})
    (tmp_path / "scores.json").write_text(scores_json(scores))
    assert json.loads((tmp_path / "scores.json").read_text())["Distinct"] == pytest.approx((1 + 3 / 5) / 2)
    assert "| Distinct | 0.8000 |" in model_card(RunRecord(tmp_path), "my/model", 1, "vit", "gpt2")


def test_the_list_is_sound():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        resolve_name(metric.computed_by)  # raises where there is none of this name
    assert list(caption_scores()) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE"]
    columns = [metric.column for metric in in_reading_order() if metric.column]
    assert columns[:4] == ["Train Loss", "Train Perplexity", "Val Loss", "Val Perplexity"]
    assert columns[4:] == ["Val CIDEr", "Val BLEU-4", "Val ROUGE-L", "Val Distinct", "Val Vocabulary", "Val Novel"]
    assert choosable()["val/cider"].larger_is_better and not choosable()["val/perplexity"].larger_is_better


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
