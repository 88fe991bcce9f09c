"""What is measured and shown while a run trains."""

import math
import time
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from captioning.batch import CaptionBatch
from captioning.files import write_atomically
from captioning.training.averages import TokenAverage
from captioning.training.loggers import MetricsCsv
from captioning.training.module import CaptioningModule


class MetricRows(L.Callback):
    """The one place from which metrics reach the loggers, as rows: one per logged step, one per epoch, one per test.

    A step's row holds what the module makes of all steps since the row before, loss and perplexity exact to the token,
    with rates, gradient norm and speed. An epoch's row holds the whole epoch's, under the same names with `_epoch`, and
    the validation's. Steps are counted from 1: step n is the state after n optimizer steps.
    """

    def __init__(self) -> None:
        self._window, self._epoch = TokenAverage(), TokenAverage()
        self._captions, self._seconds, self._resumed_at = 0, 0.0, 0.0
        self._logged_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        self._logged_step = trainer.global_step
        pl_module.on_train_loss.append(self._add)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.forget_after(trainer.global_step)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch.reset()
        self._start_window()
        for name in [name for name in trainer.callback_metrics if name.startswith("val/")]:
            del trainer.callback_metrics[name]  # an epoch without a validation must not show the last one's

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: CaptionBatch, batch_idx: int
    ) -> None:
        self._captions += batch.caption_count * trainer.world_size
        step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        if step != self._logged_step and (step % every == 0 or trainer.is_last_batch):
            self._logged_step = step
            self._log_window(trainer, pl_module)
            self._start_window()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seconds += time.perf_counter() - self._resumed_at  # validation is not training speed

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._resumed_at = time.perf_counter()
        if not trainer.sanity_checking and not trainer.is_last_batch:  # in mid-epoch: trainer.val_check_interval
            _to_loggers(trainer, _epoch_and(trainer, _evaluated(trainer, "val/")))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        metrics = pl_module.training_metrics(*_over_ranks(trainer, self._epoch.totals()))
        whole = {f"{name}_epoch": value for name, value in metrics.items()}
        pl_module.log_dict(whole, logger=False, rank_zero_only=True)
        _to_loggers(trainer, _epoch_and(trainer, {**whole, **_evaluated(trainer, "val/")}))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _to_loggers(trainer, _evaluated(trainer, "test/"))

    def _add(self, nats: Tensor, tokens: Tensor) -> None:
        self._window.add(nats, tokens)
        self._epoch.add(nats, tokens)

    def _start_window(self) -> None:
        self._window.reset()
        self._captions, self._seconds, self._resumed_at = 0, 0.0, time.perf_counter()

    def _log_window(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule) and pl_module.gradient_norm is not None
        metrics = pl_module.training_metrics(*_over_ranks(trainer, self._window.totals()))
        seconds = self._seconds + time.perf_counter() - self._resumed_at
        shown = {**metrics, "captions_per_second": self._captions / seconds}
        pl_module.log_dict(shown, prog_bar=True, logger=False, rank_zero_only=True)
        rates = {f"lr/{group['name']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        state = {
            "gradient_norm": float(pl_module.gradient_norm),
            "trainable_parameters": pl_module.captioner.trainable_count(),
        }
        _to_loggers(trainer, _epoch_and(trainer, {**shown, **rates, **state}))


def _evaluated(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def _epoch_and(trainer: L.Trainer, metrics: dict[str, float]) -> dict[str, float]:
    return {"epoch": trainer.current_epoch, **metrics}


def _to_loggers(trainer: L.Trainer, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with the numbers that matter under short names, and without exponents."""

    SHOWN: ClassVar = {  # name on the bar, decimals
        "train/loss": ("loss", 3),
        "train/perplexity": ("perplexity", 2),
        "train/reward": ("reward", 3),
        "captions_per_second": ("captions/s", 0),
        "val/perplexity": ("val_perplexity", 2),
        "val/cider": ("val_cider", 3),
        "test/perplexity": ("test_perplexity", 2),
    }

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the line, so that what is said next has one of its own."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, int | str | float | dict]:
        """The metrics to show behind the bar."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        shown = ((*self.SHOWN[name], metrics[name]) for name in self.SHOWN if name in metrics)
        return {label: f"{float(value):.{decimals}f}" for label, decimals, value in shown}


class KnownFloor(L.Callback):
    """Logs the lowest perplexity that any model can reach on the validation split, where that is known (shapes)."""

    def __init__(self, floor: float):
        self._floor = floor

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("val/perplexity_floor", self._floor, logger=False, rank_zero_only=True)


class ResultsTable(L.Callback):
    """Keeps `results.md`, the run's losses and perplexities by epoch, up to date in the run folder.

    Stands after `MetricRows` and before the checkpoints in the list of callbacks: it reads the one's metrics, and
    its rows go into the other, so that a resumed run has them all.
    """

    COLUMNS: ClassVar = {  # metric, heading; those after the fourth only where they were logged
        "train/loss_epoch": "Train Loss",
        "train/perplexity_epoch": "Train Perplexity",
        "val/loss": "Val Loss",
        "val/perplexity": "Val Perplexity",
        "val/cider": "Val CIDEr",
        "val/bleu_4": "Val BLEU-4",
        "val/rouge_l": "Val ROUGE-L",
    }
    ALWAYS = 4

    def __init__(self, run_dir: Path):
        self._path = run_dir / "results.md"
        self._rows: dict[int, list[float]] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        self._rows[trainer.current_epoch] = [float(metrics.get(name, math.nan)) for name in self.COLUMNS]
        write_atomically(self._path, self._table())

    def _table(self) -> str:
        logged = [not all(math.isnan(value) for value in column) for column in zip(*self._rows.values(), strict=True)]
        shown = [i for i, name in enumerate(self.COLUMNS) if i < self.ALWAYS or logged[i]]
        headings = list(self.COLUMNS.values())
        lines = [["Epoch", *(headings[i] for i in shown)], ["---:"] * (len(shown) + 1)]
        for epoch, values in self._rows.items():  # an epoch may not be validated
            lines.append([str(epoch), *("-" if math.isnan(values[i]) else f"{values[i]:.4f}" for i in shown)])
        return f"| {' | '.join(lines[0])} |\n|{'|'.join(lines[1])}|\n" + "".join(
            f"| {' | '.join(line)} |\n" for line in lines[2:]
        )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        missing = [math.nan] * len(self.COLUMNS)  # of runs from before a column was there
        self._rows = {epoch: (row + missing)[: len(self.COLUMNS)] for epoch, row in state_dict["rows"].items()}


def _over_ranks(trainer: L.Trainer, totals: tuple[float, int]) -> tuple[float, float]:
    """Sums over all ranks."""
    if trainer.world_size == 1:
        return totals
    device = trainer.strategy.root_device
    return tuple(
        trainer.strategy.reduce(torch.tensor(totals, dtype=torch.float64, device=device), reduce_op="sum").tolist()
    )
