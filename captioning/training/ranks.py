"""Several processes that train together: when one of them ends, all do, each with the reason, and soon."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from captioning.config import UNDIVIDED
from captioning.errors import Stopped, UserError
from captioning.files import write_atomically
from captioning.training.lightning_internals import started_processes

LOOK_SECONDS = 0.5
GRACE_SECONDS = 3.0  # for a rank to end by itself, before Lightning's observer, which looks every 5, kills all


def require_accelerator(name: str) -> None:
    """Raise UserError if this machine has no device of the kind that `trainer.accelerator` names."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["gpu"] = any(there.values())
    if not there.get(name, True):
        raise UserError(
            f"trainer.accelerator={name}: torch finds no such device on this machine; trainer=auto takes what is there"
        )


def check_strategy(trainer: L.Trainer) -> None:
    """Raise UserError for a strategy that divides the model itself."""
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise UserError(f"trainer.strategy={type(strategy).__name__} is not supported: {UNDIVIDED}")


@contextmanager
def one_fate(trainer: L.Trainer, run_dir: Path) -> Iterator[None]:
    """Around a fit: where one rank ends by an error or is killed, the others end with its reason within seconds.

    They would wait for it in a collective, with NCCL for half an hour. The reason goes through a file in the run's
    folder, which all ranks of several machines share. The rank that Lightning has started the others from sees when
    one is killed, and they see when it is; on several machines that is torchrun's part, or the scheduler's (`srun
    --kill-on-bad-exit`). What torchrun does by itself was measured: `docs/reliability.md`, "Many processes".
    """
    if trainer.world_size == 1:
        yield
        return
    fate = _Fate(trainer, run_dir)
    fate.watch()
    try:
        yield
    except Stopped:
        fate.wait_for_the_first()
        raise
    except Exception as error:
        if not isinstance(error, UserError) and (reason := fate.reason_of_another(GRACE_SECONDS)):
            raise UserError(reason) from error  # what a collective raises of a peer that is gone
        fate.write_reason(str(error) or type(error).__name__)
        raise
    finally:
        fate.end()


class _Fate:
    """One rank's view of the others."""

    def __init__(self, trainer: L.Trainer, run_dir: Path):
        self._trainer, self._rank = trainer, trainer.global_rank
        self._run_dir = run_dir
        started = "LOCAL_RANK" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ  # by rank 0, as Lightning does
        self._parent = os.getppid() if started and trainer.local_rank else None
        self._over = threading.Event()
        self._file(self._rank).unlink(missing_ok=True)  # of a run before this

    def watch(self) -> None:
        threading.Thread(target=self._watch, daemon=True, name="watch over the other ranks").start()

    def end(self) -> None:
        self._over.set()

    def write_reason(self, reason: str) -> None:
        """Let the others know."""
        write_atomically(self._file(self._rank), json.dumps(reason))

    def reason_of_another(self, seconds: float) -> str | None:
        """Why another rank ended, if that becomes known in so many seconds."""
        until = time.monotonic() + seconds
        while (reason := self._found()) is None and time.monotonic() < until:
            time.sleep(LOOK_SECONDS / 5)
        return reason

    def wait_for_the_first(self, seconds: float = 60) -> None:
        """Lightning kills rank 0 where another one ends before it; it has the last words to say."""
        until = time.monotonic() + seconds
        while self._parent is not None and os.getppid() == self._parent and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            reason = self._found()
            if reason and not self._over.wait(GRACE_SECONDS):  # the main thread waits in a collective
                print(f"error: {reason}", file=sys.stderr, flush=True)
                os._exit(1)

    def _found(self) -> str | None:
        for rank in range(self._trainer.world_size):
            if rank != self._rank and self._file(rank).is_file():
                return f"rank {rank} ended: {json.loads(self._file(rank).read_text(encoding='utf-8'))}"
        for number, process in enumerate(started_processes(self._trainer), start=1):
            if (code := process.poll()) is not None and code < 0:
                return f"rank {number} was ended by {signal.Signals(-code).name}, often because memory ran out"
        if self._parent is not None and os.getppid() != self._parent:
            return "rank 0, which started this one, is gone"
        return None

    def _file(self, rank: int) -> Path:
        return self._run_dir / f".ended-rank-{rank}.json"
