"""What is measured and shown while a run trains."""

import logging
import math
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from captioning.files import write_atomically

log = logging.getLogger(__name__)


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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Also where the run resumes in mid-epoch, for which Lightning starts no epoch."""
        super().on_train_start()
        self.on_train_epoch_start(trainer)

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
        try:
            write_atomically(self._path, self._table())
        except OSError as error:  # the next epoch writes all of it
            log.warning("results.md could not be written: %s", error.strerror or error)

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
