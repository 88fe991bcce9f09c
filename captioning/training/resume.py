"""What a run that resumes may change, and what it must leave: refused in a sentence, never half applied.

Where a run goes on is said by `last.ckpt` (`checkpoints.py`); which rows it logs again, by `reports.py`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from captioning.config import TrainConfig, data_set_of
from captioning.errors import UserError
from captioning.files import readable
from captioning.runs import SETTINGS, read_checkpoint
from captioning.training.lightning_internals import unfinished_epoch

# These make a run what it is. A seed also divides photographs into splits where no list does.
OF_A_RUN = ("seed", "data", "optimizer", "stage.best_by", "stage.self_critical", "stage.encoder_layer_decay")
# On these depends which pictures the rest of an epoch, known by the number of batches done, would be.
OF_AN_EPOCH = (
    *("data.captions_per_image", "data.overfit_images", "data.fraction", "data.use_restval"),
    *("data.train_pictures", "trainer.accumulate_grad_batches", "trainer.limit_train_batches", "training pictures"),
)
TOGETHER = ("data.batch_size", "processes")  # and on their product
MAY_CHANGE = ("trainer.precision",)  # kept to be said


def settings_of(config: TrainConfig, training_pictures: Sequence[int | str]) -> dict[str, Any]:
    """What `refuse_other_settings` compares, as plain values; with the number of processes in every `last.ckpt`."""
    pictures = repr(list(training_pictures)).encode()  # their image ids, in order
    values = OmegaConf.create(config.plain())
    special = {
        "data": data_set_of(values.data),
        "optimizer": config.optimizer.target.rpartition(".")[2],
        "stage.self_critical": config.stage.self_critical is not None,
        "training pictures": hashlib.blake2b(pictures, digest_size=8).hexdigest(),
    }
    return {
        key: special.get(key, OmegaConf.select(values, key))
        for key in (*OF_A_RUN, TOGETHER[0], *OF_AN_EPOCH, *MAY_CHANGE)
    }


def refuse_other_settings(path: Path, now: dict[str, Any]) -> None:
    """Raise UserError if a run cannot go on from the checkpoint at `path` with these settings."""
    checkpoint = read_checkpoint(path)
    saved = checkpoint.get(SETTINGS)
    anew = f"start a new run from its weights with model.init_from={readable(path.parents[1])}"
    if saved is None:
        raise UserError(f"{path} was written by an older version, which cannot be resumed exactly; {anew}")
    saved = {"optimizer": "adamw", "stage.encoder_layer_decay": 1.0} | saved  # before they were written down
    if changed := _changed(OF_A_RUN, saved, now):
        raise UserError(f"{changed}, which a resumed run cannot change; leave it as it was, or {anew}")
    batches = unfinished_epoch(checkpoint)
    together = () if _rows_together(saved) == _rows_together(now) else TOGETHER
    if batches is not None and (changed := _changed((*together, *OF_AN_EPOCH), saved, now)):
        raise UserError(
            f"{changed}, and the run stopped in the middle of epoch {checkpoint['epoch']}, after {batches} batches, "
            f"whose rest would be other pictures; leave it as it was until a run has ended, or {anew}"
        )


def _rows_together(settings: dict[str, Any]) -> int:
    return int((settings.get("data.batch_size") or 0) * settings["processes"])


def _changed(keys: tuple[str, ...], saved: dict[str, Any], now: dict[str, Any]) -> str:
    differing = [f"{key} was {saved.get(key)} and is {now[key]}" for key in keys if saved.get(key) != now[key]]
    return "; ".join(differing[:2])


def refuse_other_architecture(path: Path, description: dict[str, Any], tokenizer: str) -> None:
    """Raise UserError if the checkpoint at `path` is not of the described model or its tokenizer is another."""
    saved = read_checkpoint(path)["captioner"]
    if differing := sorted(_differences(saved["description"], description)):
        raise UserError(
            f"checkpoint {path} is of another architecture ({'; '.join(differing[:3])}); "
            "leave the model as it was, or start a new run"
        )
    if saved["tokenizer"] != tokenizer:
        raise UserError(f"checkpoint {path} was trained with another tokenizer; leave data.tokenizer as it was")


def refuse_fewer_epochs(path: Path, max_epochs: int) -> None:
    """Raise UserError if the run of the checkpoint at `path` has more epochs behind it than `max_epochs`."""
    done = read_checkpoint(path)["epoch"] + 1
    if max_epochs < done:
        raise UserError(
            f"trainer.max_epochs={max_epochs} is fewer than the {done} epochs that {path} has behind it; "
            "give at least as many, or leave it out"
        )


def changes_of(run_dir: Path, config: TrainConfig) -> list[str]:
    """What a resumed run does otherwise than it did so far, such as `trainer.max_epochs was 3 and is 6`."""
    saved = run_dir / ".hydra" / "config.yaml"
    if not saved.is_file():
        return []
    before, now = OmegaConf.to_container(OmegaConf.load(saved)), config.plain()
    return sorted(d for d in _differences(before, now, but=()) if not d.startswith(("resume ", "run_dir ")))


# What may differ between two descriptions of one architecture: the library's version, and what shapes no weight.
SHAPES_NO_WEIGHT = ("pdrop", "dropout", "version", "name_or_path", "dtype", "use_cache", "attn_implementation")


def _differences(saved: Any, now: Any, key: str = "", but: Sequence[str] = SHAPES_NO_WEIGHT) -> list[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        keys = (saved.keys() | now.keys()) - {
            k for k in saved.keys() | now.keys() if any(part in str(k) for part in but)
        }
        return [d for k in keys for d in _differences(saved.get(k), now.get(k), f"{key}.{k}" if key else k, but)]
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        saved, now = list(saved), list(now)
    return [] if saved == now else [f"{key} was {saved} and is {now}"]
