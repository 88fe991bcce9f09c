"""Where metrics go: `metrics.csv` in every run's folder, and the loggers of `conf/logger`, such as W&B (`wandb.py`).

Another logger is an entry there with the `_target_` of any class of Lightning's kind, of Lightning or your own.
"""

import csv
import io
import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from captioning.files import readable, write_atomically
from captioning.runs import logged_rows

log = logging.getLogger(__name__)


class MetricsCsv(Logger):
    """Writes every logged row to `RUN_DIR/metrics.csv`, columns `step` and the metrics' names.

    Unlike Lightning's `CSVLogger` it keeps the rows of a run that resumes in the same folder. Each row is in the file
    when `log_metrics` returns; a new column rewrites the file, atomically. What a full disk does not take waits for a
    later row's turn.

    Attributes:
        rows: how many there are.
        repeats: whether the last one was logged before, by the part of the run that a resumed one takes again.
    """

    def __init__(self, run_dir: Path):
        super().__init__()
        self._path = Path(run_dir) / "metrics.csv"
        self._columns: list[str] = []
        if self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file), [])
        self.rows, self.repeats = len(logged_rows(self._path.parent)), False
        self._waiting: list[dict[str, Any]] = []
        self._dropped: list[tuple[int, frozenset[str]]] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: `.hydra/config.yaml` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        row: dict[str, Any] = {"step": step, **metrics}
        self._waiting.append(row)
        try:
            self._write_waiting()
        except OSError as error:
            if len(self._waiting) == 1:
                problem = error.strerror or error
                log.warning("%s can't be written: %s; its rows wait until it can", readable(self._path), problem)
        self.rows += 1
        self.repeats = self._dropped[:1] == [_kind(row)]
        self._dropped = self._dropped[1:] if self.repeats else []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """The last chance of rows that wait."""
        try:
            self._write_waiting()
        except OSError as error:
            count, problem = len(self._waiting), error.strerror or error
            log.error("%s lacks its last %d rows: %s", readable(self._path), count, problem)

    @rank_zero_only
    def keep(self, count: int) -> None:
        """Keep the first rows and drop the others, which a resumed run logs again, or others in their place."""
        rows = logged_rows(self._path.parent)
        self._dropped = [_kind(row) for row in rows[count:]]
        if self._dropped:
            self._write(self._columns, rows[:count])
        self.rows = len(rows[:count])

    def will_repeat(self, step: int | None) -> bool:
        """Whether a row of this step, to be logged next, was logged before."""
        return any(dropped == step for dropped, _ in self._dropped[:1])

    def _write_waiting(self) -> None:
        """All rows that wait or, where the disk is full, none of them."""
        if not self._waiting:
            return
        if new := {name: None for row in self._waiting for name in row if name not in self._columns}:
            columns = [*self._columns, *new]
            self._write(columns, logged_rows(self._path.parent))
            self._columns = columns
        size = self._path.stat().st_size
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(self._waiting)
        except OSError:
            os.truncate(self._path, size)
            raise
        self._waiting.clear()

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._path, text.getvalue())


class Follower:
    """A logger that gets each row after `metrics.csv`, to drop those that a resumed run logs again."""

    before: MetricsCsv | None = None

    def follow(self, rows: MetricsCsv) -> None:
        self.before = rows


def _kind(row: dict[str, Any]) -> tuple[int, frozenset[str]]:
    """What tells a row from its neighbours: its step, and which metrics it has."""
    return int(row["step"]), frozenset(name for name, value in row.items() if value not in ("", None))


def run_loggers(run_dir: Path, others: list[Logger], *, continues: bool) -> list[Logger]:
    """`metrics.csv` and the others; a run that doesn't continue from a checkpoint begins with no row."""
    rows = MetricsCsv(run_dir)
    if not continues:
        rows.keep(0)
    for logger in others:
        if isinstance(logger, Follower):
            logger.follow(rows)
    return [rows, *others]


def log_config(loggers: list[Logger], config: dict[str, Any]) -> None:
    """The whole resolved configuration, to every logger that keeps one."""
    for logger in loggers:
        logger.log_hyperparams(config)


def log_split(
    loggers: list[Logger], split: str, metrics: dict[str, float], columns: list[str], rows: list[list[Any]]
) -> None:
    """The scores of a split's captions as `val/cider` and the like; in loggers with tables, `val/pictures` of all."""
    for logger in loggers:
        logger.log_metrics({f"{split}/{name.lower()}": figure for name, figure in metrics.items()})
        if hasattr(logger, "log_table"):
            logger.log_table(f"{split}/pictures", columns=columns, data=rows)
