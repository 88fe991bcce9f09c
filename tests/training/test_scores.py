"""Captions are scored while a model trains, and training can go for the score itself."""

import math
from types import SimpleNamespace

import pytest
from support import CAPTIONS, encoded_rows, small_captioner, trained_tokenizer
from test_train import composed, rows_of
from torch.utils.data import DataLoader

from captioning.cli import configured
from captioning.config import TrainConfig
from captioning.data.batch import pack
from captioning.evaluation.scoring import score
from captioning.metrics import caption_scores
from captioning.model.generation import Greedy, generate
from captioning.training import callbacks as scores
from captioning.training.callbacks import CaptionScores
from captioning.training.module import CaptioningModule
from captioning.training.run import train

SHORT = ["trainer.max_epochs=2", "sample_pictures=0", "logger=csv"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return train(composed(tmp_path_factory.mktemp("start"), *SHORT, "stage.best_by=val/cider"))


def callback_of(rows, references, tokenizer, **changed):
    settings = {"every_n_epochs": 1, "before_training": False} | changed
    batches = lambda: DataLoader(rows, batch_size=2, collate_fn=pack)  # noqa: E731
    return CaptionScores(batches, references, Greedy(12), tokenizer.decode, **settings)


def module_of(tokenizer):
    captioner = small_captioner(tokenizer.vocab_size, spread=0.5)
    return CaptioningModule(captioner, weight_decay=0.0, betas=(0.9, 0.99), checkpoint_extras={})


def trainer_of(world_size=1):
    from contextlib import nullcontext

    return SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext), world_size=world_size)


def test_the_scores_are_those_of_the_captions_that_the_model_makes():
    tokenizer = trained_tokenizer()
    rows = encoded_rows(tokenizer, [[CAPTIONS[i]] for i in range(5)])
    references = {number: [CAPTIONS[number], CAPTIONS[number + 1]] for number in range(5)}
    module = module_of(tokenizer)
    found = callback_of(rows, references, tokenizer).scores(trainer_of(), module)
    captions = generate(module.captioner, pack(rows).pixel_values, Greedy(12))
    texts = {number: tokenizer.decode(caption.token_ids) for number, caption in enumerate(captions)}
    expected = score(texts, references).corpus
    assert found == {f"val/{name.lower()}": figure for name, figure in expected.items()}


def test_ranks_score_the_captions_of_all(monkeypatch):
    """Two ranks with a part of the pictures each compute what one process with all of them does."""
    tokenizer = trained_tokenizer()
    rows = encoded_rows(tokenizer, [[CAPTIONS[i]] for i in range(5)])
    references = {number: [CAPTIONS[number], CAPTIONS[number + 1]] for number in range(5)}
    module = module_of(tokenizer)
    whole = callback_of(rows, references, tokenizer).scores(trainer_of(), module)
    told = []

    def gather(gathered, mine):  # each rank's own, as torch.distributed.all_gather_object fills it in
        told.append(mine)
        gathered[: len(told)] = told

    monkeypatch.setattr(scores.torch.distributed, "all_gather_object", gather)
    for share in (rows[0::2], rows[1::2]):
        found = callback_of(share, references, tokenizer).scores(trainer_of(world_size=2), module)
    assert found == pytest.approx(whole)


def test_scores_are_logged_after_every_epoch_and_shown_in_the_table(start):
    logged = [row for row in rows_of(start.run_dir) if row["val/cider"]]
    assert [row["epoch"] for row in logged] == ["0", "1"]
    assert all(row[one.name] for row in logged for one in caption_scores(with_java=False).values())
    assert "Val CIDEr" in (start.run_dir / "results.md").read_text()


def test_a_checkpoint_can_be_chosen_by_a_score(start):
    best = start.trainer.checkpoint_callbacks[0]
    logged = [float(row["val/cider"]) for row in rows_of(start.run_dir) if row["val/cider"]]
    assert best.monitor == "val/cider" and best.mode == "max"
    assert start.metrics["best/val/cider"] == pytest.approx(max(logged), abs=1e-6)


def test_scores_can_come_every_other_epoch(tmp_path):
    run = train(
        composed(tmp_path, *SHORT, "trainer.max_epochs=3", "scores.every_n_epochs=2", "stage.best_by=val/cider")
    )
    assert [row["epoch"] for row in rows_of(tmp_path) if row["val/cider"]] == ["1"]
    assert run.trainer.checkpoint_callbacks[0].best_model_path


def test_scores_can_be_left_out(tmp_path):
    run = train(composed(tmp_path, *SHORT, "trainer.max_epochs=1", "scores.pictures=0"))
    assert not [name for name in run.metrics if "cider" in name]
    assert "CIDEr" not in (tmp_path / "results.md").read_text()


def test_self_critical_training_goes_on_from_a_run_and_starts_its_curve_there(start, tmp_path):
    sizes = ["data.train_pictures=24", "data.val_pictures=8", "data.test_pictures=4", "scores.pictures=8"]
    given = ["experiment=demo_scst", f"model.init_from='{start.run_dir}'", f"run_dir='{tmp_path}'"]
    run = train(configured(TrainConfig, *given, *sizes, *SHORT))
    rows = rows_of(tmp_path)
    assert rows[0]["step"] == "0" and float(rows[0]["val/cider"]) >= 0, "before the first step"
    rewards = [float(row["train/reward_epoch"]) for row in rows if row.get("train/reward_epoch")]
    assert len(rewards) == 2 and all(math.isfinite(reward) for reward in rewards)
    assert "train/perplexity" not in rows[0] and "best/val/cider" in run.metrics


def test_each_picture_is_scored_once_and_brings_all_its_captions(start):
    batches = list(start.datamodule.whole_pictures("val", 5))
    pictures = [picture for batch in batches for picture in batch.image_ids]
    assert len(pictures) == len(set(pictures)) == 5
    assert sum(batch.caption_count for batch in batches) == sum(
        len(start.datamodule.references("val")[picture]) for picture in pictures
    )
