"""A very small run through all three stages by two processes, which write down what each of them sees.

python tests/two_ranks.py RUN_DIR DO [OVERRIDE ...]; DO is `train`, `base_finetuning` or something that goes wrong. It
is a script because Lightning starts the other rank by starting it again. W&B is not installed, as it seems to it.
"""

import gc
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # and not where it is only looked at for doctests
    gc.disable()  # imports leave no garbage, as in `conftest.py`
    sys.modules["wandb"] = None  # type: ignore[assignment]  # an import of it fails

import lightning as L
import torch
from interrupted import kill_a_worker
from lightning.pytorch.callbacks import BaseFinetuning
from small_runs import TINY

from captioning.cli import configured, one_sentence_errors
from captioning.config import TrainConfig
from captioning.data.records import DamagedPicture
from captioning.data.rows import CaptionRows
from captioning.training import run
from captioning.training.stages import ApplyStages


def main(run_dir: str, do: str, *overrides: str) -> None:
    """Train, with what is to be done beside it."""
    original = run.callbacks_of
    run.callbacks_of = lambda *arguments: with_watchers(original(*arguments), Path(run_dir), do)
    if do == "a picture is damaged" and rank() == 1:
        CaptionRows.__getitem__ = damaged
    config = configured(TrainConfig, *TINY, "trainer.devices=2", f"run_dir={run_dir}", *overrides)
    with one_sentence_errors():
        run.train(config)


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def damaged(rows, index):
    raise DamagedPicture("b.jpg cannot be read: truncated")


def with_watchers(callbacks: list, run_dir: Path, do: str) -> list:
    """The run's own callbacks, the watchers behind them, and where it is asked for, Lightning's in place of ours."""
    if do == "base_finetuning":
        callbacks = [AsLightningDoes(c._schedule) if isinstance(c, ApplyStages) else c for c in callbacks]
    return [*callbacks, Watcher(run_dir), Mishap(do)]


class Watcher(L.Callback):
    """Writes into `rank-N.jsonl`, at each epoch's start and end, a digest of all weights, and how long batches were."""

    def __init__(self, run_dir: Path):
        self._run_dir, self._lengths = run_dir, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._lengths.append(tuple(batch.input_ids.shape))
        if batch_idx == 0:
            self._write(trainer, module, "start")

    def on_train_epoch_end(self, trainer, module):
        self._write(trainer, module, "end")

    def _write(self, trainer, module, when):
        digest = hashlib.blake2b(digest_size=8)
        for parameter in module.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        told = {"epoch": trainer.current_epoch, "when": when, "weights": digest.hexdigest(), "batches": self._lengths}
        with (self._run_dir / f"rank-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")
        self._lengths = []


class Mishap(L.Callback):
    """Does to rank 1, in the second epoch, what its name says."""

    def __init__(self, do: str):
        self._do = do

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step != 5 or trainer.global_rank != (0 if "rank 0" in self._do else 1):
            return
        if self._do == "a loader dies":
            kill_a_worker()
        elif self._do.endswith("is killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._do.endswith("is asked to stop"):
            os.kill(os.getpid(), signal.SIGTERM)


class AsLightningDoes(BaseFinetuning):
    """The stages through Lightning's own means: what it unfreezes, DDP does not know of."""

    def __init__(self, schedule):
        super().__init__()
        self._schedule = schedule

    def freeze_before_training(self, module):
        module.captioner.set_trainable(self._schedule.trainable(0))

    def finetune_function(self, module, epoch, optimizer):
        module.captioner.set_trainable(self._schedule.trainable(epoch))
        for group in optimizer.param_groups:
            group["lr"] = self._schedule.learning_rates[group["name"]]

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self._schedule.learning_rates[group["name"]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
