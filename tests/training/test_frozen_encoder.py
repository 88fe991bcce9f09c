"""Whole runs with the encoder cache: the same training, and the encoder out of its steps."""

import csv
import json
import math

import pytest
import torch

from captioning.cli import configured
from captioning.config import TrainConfig
from captioning.model.captioner import ImageCaptioner
from captioning.training.run import train

SMALL = [
    "experiment=demo",
    "stage=decoder",
    "data.train_pictures=24",
    "data.val_pictures=6",
    "data.test_pictures=4",
    "data.batch_size=8",
    "model.encoder_width=48",  # other than the decoder's: the projection trains, and so comes after the cache
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "stage.warmup_steps=2",
    "logger=csv",
]


def run(run_dir, *overrides):
    return train(configured(TrainConfig, *SMALL, f"run_dir={run_dir}", *overrides))


def losses(made):
    """Every logged training and validation loss, and the test's."""
    with (made.run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("train/loss", "val/loss", "test/loss") if row[name]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"))


def test_a_float32_cache_changes_no_loss(plain, tmp_path):
    cached = run(tmp_path / "run", f"encoder_cache={tmp_path / 'cache'}", "encoder_cache_dtype=float32")
    assert len(losses(plain)) == 6 + 2 + 1
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-6)


def test_a_bfloat16_cache_changes_the_losses_by_less_than_a_thousandth(plain, tmp_path):
    cached = run(tmp_path / "run", f"encoder_cache={tmp_path / 'cache'}")
    assert losses(cached) != losses(plain)
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-3)


def test_every_picture_is_encoded_once_and_never_in_a_step(tmp_path, monkeypatch):
    encoded = []
    encoder_states = ImageCaptioner.encoder_states
    monkeypatch.setattr(
        ImageCaptioner,
        "encoder_states",
        lambda self, pixels: encoded.append(len(pixels)) or encoder_states(self, pixels),
    )
    cache = f"encoder_cache={tmp_path / 'cache'}"
    run(tmp_path / "first", cache)
    assert sum(encoded) == 24 + 6 + 4
    encoded.clear()
    run(tmp_path / "second", cache, "data.train_pictures=26")
    assert sum(encoded) == 2, "the new ones"


def test_the_table_of_pictures_still_shows_pictures_and_captions(tmp_path):
    run(tmp_path / "run", f"encoder_cache={tmp_path / 'cache'}", "logger=wandb", "sample_pictures=2")
    tables = sorted((tmp_path / "run").glob("wandb/offline-run-*/files/media/table/val/samples*.json"))
    rows = json.loads(tables[-1].read_text())["data"]
    assert len(rows) == 2 and all(row[1] and row[2] for row in rows)
    assert all(math.isfinite(row[-1]) for row in rows)


def test_a_resumed_run_is_served_by_the_encoder_of_its_checkpoint(tmp_path):
    cache = f"encoder_cache={tmp_path / 'cache'}"
    first = run(tmp_path / "run", "trainer.max_epochs=1")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name, weight in checkpoint["state_dict"].items():
        if "network.encoder." in name:
            weight.add_(0.05)  # as if an earlier stage had trained it
    torch.save(checkpoint, path)
    resumed = run(tmp_path / "run", f"resume={tmp_path / 'run'}", cache, "encoder_cache_dtype=float32")
    batch = next(iter(resumed.datamodule.val_dataloader()))
    pixels = torch.stack(list(resumed.datamodule.rows("val").pixels_of(range(len(batch))).values()))
    captioner = resumed.module.captioner
    assert torch.equal(
        captioner.network.state_dict()["encoder.layernorm.bias"],
        checkpoint["state_dict"]["captioner.network.encoder.layernorm.bias"],
    )
    torch.testing.assert_close(batch.encoder_hidden_states, captioner.encoder_states(pixels))
    assert first.module.captioner.encoder_fingerprint() != captioner.encoder_fingerprint()


def test_a_cache_that_cannot_be_written_is_refused_in_a_sentence_with_the_way_out(command, tmp_path):
    status, output = command("train.py", *SMALL, f"run_dir={tmp_path / 'run'}", "encoder_cache=/proc/nowhere")
    assert status == 1
    assert "name another folder in encoder_cache" in output and "Traceback" not in output
