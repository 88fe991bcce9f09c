"""What a run reports while it trains: rows for the loggers, `results.md`, and how far it is.

`MetricRows` makes rows of the sums of steps, and they go through checkpoints without a gap or a doubled row. Which
metrics the table and the bar show is written in `captioning/metrics.py`.
"""

import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from captioning.data.batch import CaptionBatch
from captioning.files import write_atomically
from captioning.metrics import METRICS, in_reading_order
from captioning.progress import ProgressLines
from captioning.training.lightning_internals import close_bars
from captioning.training.loggers import MetricsCsv
from captioning.training.module import CaptioningModule, TokenAverage

log = logging.getLogger(__name__)

SAVED_AS = "metric_rows"  # in a checkpoint
STEPS_TIMED = 20


class MetricRows(L.Callback):
    """The one place from which metrics reach the loggers, as rows: one per logged step, one per epoch, one per test.

    A step's row holds what the module makes of all steps since the row before, loss and perplexity exact to the token,
    with rates, gradient norm and speed. An epoch's row holds the whole epoch's, under the same names with `_epoch`, and
    the validation's. Steps are counted from 1: step n is the state after n optimizer steps.

    A checkpoint holds the sums so far and the number of rows, so that a resumed run's rows go on where its were.
    """

    def __init__(self) -> None:
        self._window, self._epoch = TokenAverage(), TokenAverage()
        self._captions = 0
        self._seconds, self._running_since = 0.0, 0.0  # of training since the last row; 0 while it stands still
        self._logged_step = 0
        self._metrics_so_far: dict[str, float] = {}  # of the epoch that a resumed run is in

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        pl_module.on_train_loss.append(self._add)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._running_since = time.perf_counter()
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._metrics_so_far.items()})

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the sums, those of all ranks together."""
        checkpoint[SAVED_AS] = {
            "window": _over_ranks(trainer, self._window.totals()),
            "epoch": _over_ranks(trainer, self._epoch.totals()),
            "captions": self._captions,
            "seconds": self._seconds_trained(),
            "logged_step": self._logged_step,
            "metrics": _evaluated(trainer, "val/"),
            "rows": sum(logger.rows for logger in trainer.loggers if isinstance(logger, MetricsCsv)),
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the sums over, and drop the rows that the run logged after this checkpoint."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        saved = checkpoint[SAVED_AS]
        for average, totals in ((self._window, saved["window"]), (self._epoch, saved["epoch"])):
            if trainer.is_global_zero:  # the other ranks begin at nothing: these are the sums of all
                average.reset(totals[0], int(totals[1]))
        self._captions, self._seconds = saved["captions"], saved["seconds"]
        self._logged_step, self._metrics_so_far = saved["logged_step"], saved["metrics"]
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.keep(saved["rows"])

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
        self._seconds, self._running_since = self._seconds_trained(), 0.0  # validation is not training speed

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._running_since = time.perf_counter()
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
        self._captions, self._seconds, self._running_since = 0, 0.0, time.perf_counter()

    def _seconds_trained(self) -> float:
        return self._seconds + (time.perf_counter() - self._running_since if self._running_since else 0.0)

    def _log_window(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule) and pl_module.gradient_norm is not None
        metrics = pl_module.training_metrics(*_over_ranks(trainer, self._window.totals()))
        shown = {**metrics, "captions_per_second": self._captions / self._seconds_trained()}
        # As tensors of the host: Lightning would take numbers to the GPU, and each look at them back from there.
        on_host = {name: torch.tensor(value) for name, value in shown.items()}
        pl_module.log_dict(on_host, prog_bar=True, logger=False, rank_zero_only=True)
        groups = sorted(trainer.optimizers[0].param_groups, key=lambda group: group["lr"])
        rates = {f"lr/{group['name']}": group["lr"] for group in groups}  # the highest, where layers differ
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


def _over_ranks(trainer: L.Trainer, totals: tuple[float, int]) -> tuple[float, float]:
    """Sums over all ranks."""
    if trainer.world_size == 1:
        return totals
    device = trainer.strategy.root_device
    return tuple(
        trainer.strategy.reduce(torch.tensor(totals, dtype=torch.float64, device=device), reduce_op="sum").tolist()
    )


class ResultsTable(L.Callback):
    """Keeps `results.md`, losses, perplexities and scores by epoch, up to date; a checkpoint holds its rows.

    Args:
        run_dir: where it lies.
        notes: what stands under the table now.
    """

    def __init__(self, run_dir: Path, notes: Callable[[], str] = str):
        self._path, self._notes = run_dir / "results.md", notes
        self._columns = [metric for metric in in_reading_order() if metric.column]
        self._rows: dict[int, list[float]] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        self._rows[trainer.current_epoch] = [float(metrics.get(one.name, math.nan)) for one in self._columns]
        try:
            write_atomically(self._path, self._table() + self._notes())
        except OSError as error:  # the next epoch writes all of it
            log.warning("results.md could not be written: %s", error.strerror or error)

    def _table(self) -> str:
        logged = [not all(map(math.isnan, column)) for column in zip(*self._rows.values(), strict=True)]
        shown = [i for i, metric in enumerate(self._columns) if (metric.curve and not metric.official) or logged[i]]
        lines = [["Epoch", *(str(self._columns[i].column) for i in shown)], ["---:"] * (len(shown) + 1)]
        for epoch, values in self._rows.items():  # an epoch may not be validated
            cells = [(values[i], self._columns[i].decimals) for i in shown]
            lines.append([str(epoch), *("-" if math.isnan(value) else f"{value:.{n}f}" for value, n in cells)])
        return f"| {' | '.join(lines[0])} |\n|{'|'.join(lines[1])}|\n" + "".join(
            f"| {' | '.join(line)} |\n" for line in lines[2:]
        )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows, "columns": [metric.name for metric in self._columns]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The rows, whose columns may be others by now."""
        now = [metric.name for metric in self._columns]
        before = state_dict.get("columns", now)
        rows = {epoch: dict(zip(before, row, strict=False)) for epoch, row in state_dict["rows"].items()}
        self._rows = {epoch: [row.get(name, math.nan) for name in now] for epoch, row in rows.items()}


class Forecast(L.Callback):
    """Says after `STEPS_TIMED` steps how long the run will take, and once more when a validation has been timed.

    Until then a validation is taken for a third of as many training batches: it has no backward pass.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._batches, self._began = 0, 0.0  # timed, the first one aside, which warms up
        self._each, self._validation = 0.0, 0.0  # seconds of a batch, and of a validation
        self._measured = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: CaptionBatch, batch_idx: int
    ) -> None:
        if self._batches == 0:
            self._began = self._clock()
        self._batches += 1
        if self._each or self._batches <= STEPS_TIMED * trainer.accumulate_grad_batches:
            return
        self._each = (self._clock() - self._began) / (self._batches - 1)
        if not self._measured:
            self._validation = self._each / 3 * sum(trainer.num_val_batches)
        if trainer.is_global_zero and self._left(trainer) > 0:
            words = "an epoch will take about %s, a validation %s without its captions, all that is left of the run %s"
            log.info(
                words, *map(lasts, (self._each * trainer.num_training_batches, self._validation, self._left(trainer)))
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated_from = self._clock()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        took = self._clock() - self._validated_from
        if not self._each:
            self._began += took  # no part of a step
        first, self._measured, self._validation = not self._measured, True, took
        if first and self._each and trainer.is_global_zero and (left := self._left(trainer)) > 0:
            log.info("the validation took %s with its captions; about %s are left of the run", lasts(took), lasts(left))

    def _left(self, trainer: L.Trainer) -> float:
        """Seconds of the run that are left."""
        steps = trainer.estimated_stepping_batches - trainer.global_step
        batches = steps * trainer.accumulate_grad_batches
        if not math.isfinite(batches) or not trainer.num_training_batches:
            return 0.0
        validations = batches / trainer.num_training_batches / (trainer.check_val_every_n_epoch or 1)
        return batches * self._each + int(validations + 0.5) * self._validation


def lasts(seconds: float) -> str:
    """A time in few digits.

    >>> lasts(7.1), lasts(400), lasts(9000)
    ('7 s', '7 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def progress_reports(every_n_batches: int = 1) -> L.Callback:
    """How far the run is: a bar on a terminal, drawn so often, and lines in a file, under CI or SLURM."""
    return TerminalBar(refresh_rate=every_n_batches) if sys.stdout.isatty() else ProgressLog()


def shown_numbers(trainer: L.Trainer) -> dict[str, str]:
    """The metrics that the list shows on a bar, under their short names and without exponents."""
    metrics = trainer.callback_metrics
    shown = [(*metric.bar, metrics[metric.name]) for metric in METRICS if metric.bar and metric.name in metrics]
    return {label: f"{float(value):.{decimals}f}" for label, decimals, value in shown}


class TerminalBar(TQDMProgressBar):
    """Lightning's bar, with the numbers that matter behind it."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Also where the run resumes in mid-epoch, for which Lightning starts no epoch."""
        super().on_train_start()
        self.on_train_epoch_start(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        close_bars(self)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, int | str | float | dict]:
        """The metrics to show behind the bar."""
        return dict(shown_numbers(trainer))


class ProgressLog(ProgressBar):
    """A line at each epoch's end; where an epoch or a validation takes long, one now and then, ten at most."""

    def __init__(self) -> None:
        super().__init__()
        self._training: ProgressLines | None = None
        self._evaluation: ProgressLines | None = None
        self._enabled = True

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        """On all ranks but the first."""
        self._enabled = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        if self._training is None:  # of an epoch that a run resumes in the middle, some are done
            self._training = _lines(f"epoch {trainer.current_epoch}", self.total_train_batches, batch_idx)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._training and self._enabled:
            self._training.update(1, lambda: _behind(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._training and self._enabled:
            self._training.end(_behind(trainer))
        self._training = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluation = _lines("validation", sum(trainer.num_val_batches))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluation = _lines("test", sum(trainer.num_test_batches))

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if self._evaluation and self._enabled:
            self._evaluation.update()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluation = None  # its end is the epoch's line

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        self.on_validation_batch_end(trainer, pl_module)


def _lines(desc: str, total: float, done: int = 0) -> ProgressLines:
    finite = int(total) if math.isfinite(total) else sys.maxsize  # of a user's own data
    return ProgressLines(finite, desc, "batches", done, least=total / 10)


def _behind(trainer: L.Trainer) -> str:
    return "".join(f", {label}={value}" for label, value in shown_numbers(trainer).items())
