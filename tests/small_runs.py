"""The small runs that tests train, and what they logged."""

import copy
import csv
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from captioning.cli import CONF, parsed_override, spelled_out
from captioning.config import KINDS, Kind, TrainConfig, checked

# Through all three stages as a pretrained model, in seconds; by Muon, which is AdamW too.
TINY = (
    *("data=shapes", "model=tiny", "stage=full", "~stage/of_model@stage", "trainer=cpu", "logger=csv"),
    "trainer.deterministic=true",
    "optimizer=muon",
    *("data.train_pictures=28", "data.val_pictures=12", "data.test_pictures=4", "data.batch_size=4"),
    *("model.image_size=24", "model.encoder_width=32", "model.encoder_layers=1", "model.encoder_heads=2"),
    *("model.decoder_width=32", "model.decoder_layers=1", "model.decoder_heads=2", "model.dropout=0.2"),
    *("trainer.max_epochs=3", "trainer.log_every_n_steps=2", "scores.pictures=2", "decoding.max_new_tokens=4"),
    *("checkpoints.every_n_steps=2", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=3"),
    "stage.warmup_steps=3",
    "ema_decay=0.9",
    "trainer.enable_progress_bar=false",
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


def remember_compositions() -> None:
    """Hydra composes equal choices of groups once a process, and sets values in a copy; it parses an override once.

    Composing takes it an eighth of a second, a command does so three times, and the suite starts some 150 in its own
    processes. Files that a test may change, in other folders than `conf/`, are read anew.
    """
    remembered: dict[tuple, Any] = {}
    listed, composed = config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
    parsed = OverridesParser.parse_rule

    def once(key: tuple, repo: Any, make: Any) -> Any:
        paths = [source.path for source in repo.get_sources()]
        if any(path not in (str(CONF), "hydra.conf", "") for path in paths):
            return make()
        if key not in remembered:
            remembered[key] = make()
        return copy.deepcopy(remembered[key])

    def create_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing):
        choices = [one for one in overrides_list if repo.group_exists(one.key_or_group)]
        key = ("list", config_name, skip_missing, *(one.input_line for one in choices))
        found = once(key, repo, lambda: listed(repo, config_name, choices, prepend_hydra, skip_missing))
        found.config_overrides = [
            one
            for one in overrides_list
            if not (one.is_sweep_override() or one in choices) or one in found.config_overrides
        ]
        return found

    def compose_config(loader, defaults, repo):
        return once(("config", repr(defaults)), repo, lambda: composed(loader, defaults, repo))

    def parse_rule(parser, line, rule):
        key = (line, rule)
        if key not in remembered:
            remembered[key] = parsed(parser, line, rule)
        return copy.copy(remembered[key])

    config_loader_impl.create_defaults_list = create_defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = compose_config
    OverridesParser.parse_rule = parse_rule


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
