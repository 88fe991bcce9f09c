"""Checkpoints: written whole or not at all, and taken where a run can go on exactly; and being asked to stop.

`best.ckpt` is the best by `stage.best_by`; `last.ckpt` is what a run resumes from, taken between optimizer steps at
each epoch's end, every so often, and when Ctrl-C, a scheduler or SLURM's requeue signal asks to stop. Both are read as
data, never as code. What a resumed run may change is in `resume.py`.
"""

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from captioning.errors import Stopped, UserError
from captioning.files import atomic_file, link_atomically
from captioning.runs import SETTINGS
from captioning.training.lightning_internals import (
    BestOnly,
    cluster_environment,
    dumped,
    ends_here,
    gradients_wait,
    settle_loops,
    validation_is_next,
)

log = logging.getLogger(__name__)

SAID = b"\nfinishing the step and saving, then the run ends; a second signal ends it at once\n"


class StopSignals:
    """Notes the first SIGINT, SIGTERM or SLURM's requeue signal; a second one ends the process at once.

    SLURM sends SIGTERM after its requeue signal: that is not a second one.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._requeue: signal.Signals | None = None

    def listen(self, trainer: L.Trainer) -> None:
        """Take over from Lightning, whose handlers stop between accumulated batches, save in mid-step and do not end.

        At the end of the fit Lightning puts back what was there before it came.
        """
        if trainer.received_sigterm:  # before the first step
            self.received = signal.SIGTERM
        environment = cluster_environment(trainer)
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue = signal.Signals(environment.requeue_signal or signal.SIGUSR1)
        if threading.current_thread() is threading.main_thread():
            for number in filter(None, (signal.SIGINT, signal.SIGTERM, self._requeue)):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            os.write(2, SAID)  # a logger may be busy with a line of its own
        elif self.received != self._requeue:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def end(self, trainer: L.Trainer) -> None:
        """Raise Stopped, with the job back in SLURM's queue if that was what the signal meant."""
        received = self.received or signal.SIGTERM  # it may have been another rank's
        if received == self._requeue and trainer.is_global_zero:
            requeue()
        raise Stopped(128 + received, received.name)


def requeue(run: Callable[..., Any] = subprocess.run) -> None:
    """Put this SLURM job, or task of an array of jobs, back into the queue; what fails there is said in the log."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("SLURM's job %s could not be put back into the queue: %s", job, error)


class StopEarly(EarlyStopping):
    """Lightning's, for runs that resume: the configured patience counts, and a run that it has ended stays ended."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the score and the count over, not the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once where the run stopped when its last checkpoint was written."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves under a temporary name, syncs and renames; loads with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one file; until it is whole, the one that was there before stays.

        Raises:
            OSError: if the disk is full or the folder may not be written.
        """
        try:
            with atomic_file(Path(path)) as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # what torch's writer makes of the file's own error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Tensors and plain containers only; a file with anything else in it is refused."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


class Saving:
    """Saves on all ranks together, and where the disk objects, goes on with a warning or stops: as configured.

    Args:
        on_error: `stop` or `continue`.
    """

    def __init__(self, on_error: str):
        self._stops = on_error == "stop"
        self.fresh: Path | None = (
            None  # what was written last, as long as another file of this moment would be the same
        )

    def save(self, trainer: L.Trainer, path: Path, *, must: bool = False) -> bool:
        """Whether it was saved; if it was not, and must be, UserError is raised on every rank."""
        checkpoint = dumped(trainer)
        problem = ""
        try:
            trainer.strategy.save_checkpoint(checkpoint, path)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem := trainer.strategy.broadcast(problem):
            kept = "the checkpoint before it is kept" if path.is_file() else "there is none before it"
            said = f"{path} could not be written: {problem}; {kept}"
            if self._stops or must:
                raise UserError(f"{said}; mend that and resume, or go on regardless with checkpoints.on_error=continue")
            log.warning("%s, and training goes on", said)
        self.fresh = None if problem else path
        return not problem

    def linked(self, trainer: L.Trainer, path: Path) -> bool:
        """Let `path` be another name of what is fresh, on all ranks together; false where there is no such thing.

        At full size a checkpoint has 2.9 GB. Where the file system has no hard links, it is to be written again.
        """
        source, self.fresh, done = self.fresh, None, False
        if source is not None and trainer.is_global_zero:
            with contextlib.suppress(OSError):
                link_atomically(source, path)
                done = True
        return bool(trainer.strategy.broadcast(done)) if source is not None else False


class BestCheckpoint(BestOnly):
    """`best.ckpt`, for a run folder that may have been moved: what it remembers by path, it finds in `dirpath`."""

    def __init__(self, saving: Saving, **options: Any):
        super().__init__(filename="best", auto_insert_metric_name=False, enable_version_counter=False, **options)
        self._saving = saving

    @property
    def state_key(self) -> str:
        return "best"

    def save(self, trainer: L.Trainer, path: Path) -> bool:
        """Whether it was written, on all ranks together."""
        return self._saving.save(trainer, path)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the saved state over, its paths led into this run's folder."""
        here = {key: self._here(value) for key, value in state_dict.items() if key.endswith("_path")}
        best = {self._here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **here, "best_k_models": best, "dirpath": self.dirpath})

    def _here(self, path: str) -> str:
        assert self.dirpath is not None
        return str(Path(self.dirpath) / Path(path).name) if path else path


class LastCheckpoint(Checkpoint):
    """`last.ckpt`, from which a run resumes: at each epoch's end, every so often, and when a signal asks to stop.

    At an epoch's end that has the best metric it is a hard link to `best.ckpt`, which is of that very moment.

    It is taken between optimizer steps alone. Where a validation comes next, or goes on, it says that the validation
    is still to be made, which a resumed run then begins with; so a long one needs not be waited for.

    Where a limit or a callback ends the run in the middle of an epoch, it is of that middle, so that a run with a
    higher limit goes on there; Lightning would take the epoch for done.

    Args:
        path: of the file.
        saving: how.
        settings: plain values for the checkpoints, to compare a resumed run's with.
        every_n_steps: optimizer steps; None saves by time alone.
        every_minutes: since the last save; None saves by steps alone.
    """

    def __init__(
        self,
        path: Path,
        saving: Saving,
        settings: dict[str, Any],
        every_n_steps: int | None,
        every_minutes: float | None,
    ):
        self._path, self._saving, self._settings = path, saving, settings
        self._every_n_steps, self._every_seconds = every_n_steps, 60 * every_minutes if every_minutes else None
        self._signals = StopSignals()
        self._step, self._saved_at = 0, 0.0
        self._validation_due = self._stop_due = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._signals.listen(trainer)
        self._step, self._saved_at = trainer.global_step, time.monotonic()
        if self._step:
            log.info("going on from epoch %d, after step %d", trainer.current_epoch, self._step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:  # the gradients of a step are being accumulated
            self._put_off_stop(trainer)
            return
        self._step = trainer.global_step
        trainer.should_stop, self._stop_due = trainer.should_stop or self._stop_due, False
        validation_due = validation_is_next(trainer)
        if trainer.is_last_batch and not validation_due:
            return  # the end of the epoch comes at once
        stop = self._asked_to_stop(trainer)
        if stop or ends_here(trainer) or self._is_time(trainer):
            self._save(trainer, validation_due=validation_due, must=stop)
        if stop:
            self._signals.end(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        alone = trainer.world_size == 1  # ranks may have unequally many batches, and would wait for each other
        if alone and self._between_steps(trainer) and self._signals.received:
            self._save(trainer, validation_due=True, must=True)
            self._signals.end(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saving.fresh = None  # an epoch's end, which may come next, is another moment
        if trainer.sanity_checking or trainer.is_last_batch:
            return
        if not self._between_steps(trainer):
            self._put_off_stop(trainer)
            return
        stop = self._asked_to_stop(trainer)
        if stop or ends_here(trainer):
            self._save(trainer, must=stop)
        if stop:
            self._signals.end(trainer)

    def _put_off_stop(self, trainer: L.Trainer) -> None:
        """Let a callback that ends the run in mid-step do so behind the step."""
        self._stop_due, trainer.should_stop = self._stop_due or trainer.should_stop, False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_last_batch:
            return  # cut short, and saved so
        stop = self._asked_to_stop(trainer)
        if self._saving.linked(trainer, self._path):  # the best one, of just now
            self._saved_at = time.monotonic()
        else:
            self._save(trainer, must=stop)
        if stop:
            self._signals.end(trainer)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.received_sigterm or self._signals.received:  # the training is over and saved; Lightning tests on
            self._signals.end(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[SETTINGS] = self._settings | {"processes": trainer.world_size}
        settle_loops(checkpoint["loops"]["fit_loop"], self._validation_due)

    def _between_steps(self, trainer: L.Trainer) -> bool:
        """In a validation: whether no gradients wait for more batches."""
        return not trainer.sanity_checking and not gradients_wait(trainer)

    def _asked_to_stop(self, trainer: L.Trainer) -> bool:
        return _on_any_rank(trainer, self._signals.received is not None)

    def _is_time(self, trainer: L.Trainer) -> bool:
        by_steps = self._every_n_steps is not None and trainer.global_step % self._every_n_steps == 0
        waited = time.monotonic() - self._saved_at
        return _on_any_rank(trainer, by_steps or (self._every_seconds is not None and waited >= self._every_seconds))

    def _save(self, trainer: L.Trainer, *, validation_due: bool = False, must: bool = False) -> None:
        self._validation_due = validation_due
        self._saving.save(trainer, self._path, must=must)
        self._validation_due, self._saving.fresh = False, None
        self._saved_at = time.monotonic()


def _on_any_rank(trainer: L.Trainer, here: bool) -> bool:
    return here if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(here, all=False)
