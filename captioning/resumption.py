"""What a run that resumes may change, and what it must leave: refused in a sentence, never half applied."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from captioning.checkpoint import read_checkpoint
from captioning.errors import UserError
from captioning.files import readable

SAVED_AS = "settings"  # in a checkpoint
# These make a run what it is. A seed also divides photographs into splits where no list does.
OF_A_RUN = ("seed", "data", "stage.best_by", "stage.self_critical")
# On these depends which pictures the rest of an epoch, told by the number of batches done, would be.
OF_AN_EPOCH = (
    *("data.batch_size", "data.captions_per_image", "data.overfit_images", "data.fraction", "data.use_restval"),
    *("data.train_pictures", "trainer.accumulate_grad_batches", "trainer.limit_train_batches", "training pictures"),
    "processes",
)


def settings_of(cfg: DictConfig, training_pictures: Sequence[int | str], processes: int) -> dict[str, Any]:
    """What `refuse_other_settings` compares, as plain values; goes into every `last.ckpt`."""
    pictures = repr(list(training_pictures)).encode()  # their image ids, in order
    special = {
        "data": cfg.data.get("dataset") or _package(str(cfg.data._target_)),
        "stage.self_critical": cfg.stage.self_critical is not None,
        "training pictures": hashlib.blake2b(pictures, digest_size=8).hexdigest(),
        "processes": processes,
    }
    return {key: special.get(key, OmegaConf.select(cfg, key)) for key in (*OF_A_RUN, *OF_AN_EPOCH)}


def _package(target: str) -> str:
    """Of a data set without a name: `shapes` for `captioning.data.shapes.datamodule.ShapesDataModule`."""
    return target.removeprefix("captioning.data.").split(".")[0]


def refuse_other_settings(path: Path, now: dict[str, Any]) -> None:
    """Raise UserError if a run cannot go on from the checkpoint at `path` with these settings."""
    checkpoint = read_checkpoint(path)
    saved = checkpoint.get(SAVED_AS)
    anew = f"start a new run from its weights with model.init_from={readable(path.parents[1])}"
    if saved is None:
        raise UserError(f"{path} was written by an older version, which cannot be resumed exactly; {anew}")
    if changed := _changed(OF_A_RUN, saved, now):
        raise UserError(f"{changed}, which a resumed run cannot change; leave it as it was, or {anew}")
    batches = unfinished_epoch(checkpoint)
    if batches is not None and (changed := _changed(OF_AN_EPOCH, saved, now)):
        raise UserError(
            f"{changed}, and the run stopped in the middle of epoch {checkpoint['epoch']}, after {batches} batches, "
            f"whose rest would be other pictures; leave it as it was until a run has ended, or {anew}"
        )


def unfinished_epoch(checkpoint: dict[str, Any]) -> int | None:
    """The batches done of the epoch that the checkpoint stands in; None at an epoch's end."""
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["current"]
    return int(batches["completed"]) if epochs["processed"] < epochs["ready"] else None


def _changed(keys: tuple[str, ...], saved: dict[str, Any], now: dict[str, Any]) -> str:
    differing = [f"{key} was {saved.get(key)} and is {now[key]}" for key in keys if saved.get(key) != now[key]]
    return "; ".join(differing[:2])
