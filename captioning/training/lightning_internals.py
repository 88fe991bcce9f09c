"""All that is used of Lightning behind its public interface.

`tests/training/test_lightning_internals.py` has a test for each, which fails where a version of Lightning changes it;
`pyproject.toml` admits the minor version that was tested.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy


def cluster_environment(trainer: L.Trainer) -> ClusterEnvironment | None:
    """What has started this run's processes, such as SLURM; Lightning keeps it where its launcher found it."""
    return trainer._accelerator_connector.cluster_environment


def started_processes(trainer: L.Trainer) -> list[Any]:
    """The other ranks (`subprocess.Popen`, of ranks 1 and up), where this process has started them."""
    return list(getattr(trainer.strategy.launcher, "procs", ()))


def dumped(trainer: L.Trainer) -> dict[str, Any]:
    """A whole checkpoint; `trainer.save_checkpoint` also writes it, with no word on whether that went well."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def validation_is_next(trainer: L.Trainer) -> bool:
    """In `on_train_batch_end`: whether a validation comes before the next batch."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def gradients_wait(trainer: L.Trainer) -> bool:
    """Whether the gradients of the last batch wait for more batches before there is a step."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def ends_here(trainer: L.Trainer) -> bool:
    """Between two steps: whether the fit ends before the next one, by `max_steps` or as a callback has asked it to."""
    asked = trainer.should_stop and trainer.fit_loop._can_stop_early
    return asked or 0 < trainer.max_steps <= trainer.global_step


def settle_loops(fit_loop: dict[str, Any], validation_due: bool) -> None:
    """Let the saved progress of Lightning's loops say what it means: this batch is done, and a validation is to come.

    Lightning saves it as it is in the middle of a hook, and infers from differences between its counters where that
    was. Saved before a validation, it would resume behind it; saved behind an epoch's last batch, it would leave out
    the epoch's end.
    """
    batches = fit_loop["epoch_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"]
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["total"], validation["current"]):
        counts.update(dict.fromkeys(counts, 0))
    if validation_due:  # a batch that was begun and not done
        validation["total"].update(ready=1, started=1)


def unfinished_epoch(checkpoint: dict[str, Any]) -> int | None:
    """The batches done of the epoch that the checkpoint stands in; None at an epoch's end."""
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["current"]
    return int(batches["completed"]) if epochs["processed"] < epochs["ready"] else None


def wrap_anew(strategy: DDPStrategy, module: L.LightningModule) -> None:
    """Let DDP wait for the gradients of exactly what trains now, and begin with the weights of rank 0."""
    strategy.model = module
    strategy.configure_ddp()


def close_bars(bar: TQDMProgressBar) -> None:
    """Leave the line of the bars, so that what is said next has one of its own."""
    for one in (bar._val_progress_bar, bar._train_progress_bar):
        if one is not None:
            one.close()


def without_anonymous(logger: WandbLogger) -> WandbLogger:
    """Lightning always passes `anonymous` to wandb, which warns of it ever since it has no effect."""
    logger._wandb_init.pop("anonymous", None)
    return logger


def log_offline(logger: WandbLogger) -> None:
    """Let a logger whose run could not be opened open it offline."""
    logger._wandb_init.update(mode="offline", resume=None)
    _ = logger.experiment


class BestOnly(ModelCheckpoint):
    """Lightning's, with the writing left to `save`; what that could not write is not remembered as the best."""

    @abstractmethod
    def save(self, trainer: L.Trainer, path: Path) -> bool:
        """Whether it was written."""

    def _update_best_and_save(self, current: torch.Tensor, trainer: L.Trainer, candidates: dict) -> None:
        before = {**self.__dict__, "best_k_models": dict(self.best_k_models)}
        self._saved = True
        super()._update_best_and_save(current, trainer, candidates)
        if not self._saved:
            self.__dict__.update(before)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        self._saved = self.save(trainer, Path(filepath))
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, filepath
