"""The small runs that tests train, and what they logged."""

import csv
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from captioning.cli import CONF, parsed_override, spelled_out
from captioning.config import KINDS, Kind, TrainConfig, checked

# Through all three stages, in seconds; by Muon, which is AdamW too.
TINY = (
    *("data=shapes", "model=tiny", "stage=full", "trainer=cpu", "logger=csv", "+trainer.deterministic=true"),
    "optimizer=muon",
    *("data.train_pictures=28", "data.val_pictures=12", "data.test_pictures=4", "data.batch_size=4"),
    *("model.image_size=24", "model.encoder_width=32", "model.encoder_layers=1", "model.encoder_heads=2"),
    *("model.decoder_width=32", "model.decoder_layers=1", "model.decoder_heads=2", "model.dropout=0.2"),
    *("trainer.max_epochs=3", "trainer.log_every_n_steps=2", "scores.pictures=2", "decoding.max_new_tokens=4"),
    *("checkpoints.every_n_steps=2", "trainer.accumulate_grad_batches=2", "+trainer.val_check_interval=3"),
    "stage.warmup_steps=3",
    "+trainer.enable_progress_bar=false",
)  # 8 batches and 4 steps an epoch, validated after the 3rd batch, in mid-step, and the 6th

# The demo with every report, W&B's among them; one stage an epoch.
SMALL_DEMO = (
    "experiment=demo",
    "data.train_pictures=48",
    "data.val_pictures=12",
    "data.test_pictures=8",
    "data.batch_size=8",
    "data.captions_per_image=6",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "model.encoder_width=32",
    "model.decoder_width=32",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=4",
    "stage.phases=[{from_epoch:0,train:[cross_attention]},{from_epoch:1,train:[cross_attention,decoder]},"
    "{from_epoch:2,train:[cross_attention,decoder,encoder]}]",
    "sample_pictures=3",
)

# A model to predict with.
SMOKE = (
    "experiment=demo",
    "debug=smoke",
    "logger=csv",
    "sample_pictures=0",
    "data.train_pictures=24",
    "data.val_pictures=8",
    "data.test_pictures=4",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "model.encoder_width=32",
    "model.decoder_width=32",
)


@cache
def _choices(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def composition(name: str, *overrides: str) -> DictConfig:
    """What Hydra composes, which takes it a tenth of a second: so once of all that makes the same choices.

    The values are set in a copy afterwards, as Hydra sets them.
    """
    parsed = [parsed_override(override) for override in spelled_out(list(overrides))]
    values = [one for one in parsed if not one.is_delete() and not (CONF / one.key_or_group).is_dir()]
    config = _choices(name, *(one.input_line or "" for one in parsed if one not in values)).copy()
    for one in values:
        OmegaConf.update(
            config, one.key_or_group, one.value(), merge=True, force_add=one.is_add() or one.is_force_add()
        )
    return config


def configured(kind: type[Kind], *overrides: str) -> Kind:
    """As `captioning.cli.configured`."""
    return checked(composition(next(name for name, known in KINDS.items() if known is kind), *overrides), kind)


def composed(run_dir: Path, *overrides: str, run: tuple[str, ...] = TINY) -> TrainConfig:
    return configured(TrainConfig, *run, f"run_dir='{run_dir}'", *overrides)


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def row(step: int, epoch: int | str = "", **metrics: float | str) -> dict:
    """A row of metrics.csv; names are written with `_` for `/` after their first part."""
    return {"step": str(step), "epoch": str(epoch)} | {
        name.replace("_", "/", 1): str(value) for name, value in metrics.items()
    }


def written(folder: Path, rows: list[dict]) -> Path:
    """The folder, with these rows as its metrics.csv."""
    names = list(dict.fromkeys(name for one in rows for name in one))
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return folder
