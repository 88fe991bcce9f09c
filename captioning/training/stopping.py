"""Being asked to stop: by Ctrl-C, by a scheduler, or because the run was over already."""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import EarlyStopping

from captioning.errors import Stopped

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
        environment = trainer._accelerator_connector.cluster_environment
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
