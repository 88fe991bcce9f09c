"""Where metrics go: `metrics.csv` in every run folder, and Weights & Biases unless `logger=csv`.

`metrics.csv`: each logged row, in every run's folder.

Where metrics go: `metrics.csv` in every run folder, and Weights & Biases unless `logger=csv`.
"""

import csv
import io
import logging
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from captioning.errors import UserError
from captioning.files import readable, write_atomically

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
        self.rows, self.repeats = len(self._rows()), False
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
        rows = self._rows()
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
            self._rewrite([*self._columns, *new])
        size = self._path.stat().st_size
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(self._waiting)
        except OSError:
            os.truncate(self._path, size)
            raise
        self._waiting.clear()

    def _rewrite(self, columns: list[str]) -> None:
        self._write(columns, self._rows())
        self._columns = columns

    def _rows(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if (row["step"] or "").isdecimal()]  # a power cut may leave a part of a row

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._path, text.getvalue())


def _kind(row: dict[str, Any]) -> tuple[int, frozenset[str]]:
    """What tells a row from its neighbours: its step, and which metrics it has."""
    return int(row["step"]), frozenset(name for name, value in row.items() if value not in ("", None))


PROJECT_NAME = re.compile(r"[\w.-]{1,128}")


class WandbRows(WandbLogger):
    """W&B's logger for runs that resume, and for disks that fill up.

    W&B can't take rows back, so those that it has are not sent again. What it can't write it drops, and training goes
    on: its service says so in its own log alone, so the disk is looked at here.
    """

    LEAST_FREE_BYTES = 2**20  # under which rows are as good as lost: W&B writes in blocks of 32 KiB

    after: MetricsCsv | None = None  # which gets each row before
    _warned = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One row; or a table or pictures, which come before the row of their step."""
        if self.after is not None:
            is_row = all(isinstance(value, int | float) for value in metrics.values())
            if self.after.repeats if is_row else self.after.will_repeat(step):
                return
        problem = None
        try:
            super().log_metrics(metrics, step)
        except OSError as error:  # of a table or a picture, whose file this process writes
            problem = error.strerror
        if self.save_dir and shutil.disk_usage(self.save_dir).free < self.LEAST_FREE_BYTES:
            problem = "No space left on device"
        if problem and not self._warned:
            folder = readable(Path(str(self.save_dir)) / "wandb")
            said = "%s: W&B loses what does not fit into %s, from step %s on; metrics.csv has each row"
            log.warning(said, problem, folder, step)
        self._warned = bool(problem)


def run_loggers(run_dir: Path, others: list[Logger], *, continues: bool) -> list[Logger]:
    """`metrics.csv` and the others; a run that doesn't continue from a checkpoint begins with no row."""
    rows = MetricsCsv(run_dir)
    if not continues:
        rows.keep(0)
    for logger in others:
        if isinstance(logger, WandbRows):
            logger.after = rows
    return [rows, *others]


def wandb_logger(run_dir: str, project: str, name: str | None, group: str | None) -> WandbLogger:
    """A W&B logger whose run lies in `run_dir`, and continues there if the folder already has one.

    Without an API key it logs offline and never asks for one; `WANDB_MODE` is respected.
    """
    if not isinstance(project, str) or not PROJECT_NAME.fullmatch(project):
        raise UserError(f"logger.wandb.project={project} must be a name of letters, digits, '-', '_' and '.'")
    folder = Path(run_dir)
    id_file = folder / "wandb-run-id.txt"
    if not id_file.is_file():
        write_atomically(id_file, uuid.uuid4().hex[:8] + "\n")
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    logger = WandbRows(
        project=project,
        name=name or folder.name,
        group=group,
        save_dir=run_dir,
        id=id_file.read_text(encoding="utf-8").strip(),
        resume="allow" if mode == "online" else None,
        mode=mode,
        settings=wandb.Settings(console="off", silent=mode == "offline"),
    )
    del logger._wandb_init["anonymous"]  # Lightning always passes it, and wandb warns of it ever since it has no effect
    return logger


def log_config(loggers: list[Logger], config: dict[str, Any]) -> None:
    """The whole resolved configuration, to every logger that keeps one."""
    for logger in loggers:
        logger.log_hyperparams(config)


def log_split(
    loggers: list[Logger], split: str, metrics: dict[str, float], columns: list[str], rows: list[list[Any]]
) -> None:
    """The scores of a split's captions as `val/cider` and the like, and a W&B table `val/pictures` of all of them."""
    for logger in loggers:
        logger.log_metrics({f"{split}/{name.lower()}": figure for name, figure in metrics.items()})
        if isinstance(logger, WandbLogger):
            logger.log_table(f"{split}/pictures", columns=columns, data=rows)


@contextmanager
def wandb_runs(loggers: list[Logger], run_dir: Path) -> Iterator[None]:
    """Keeps all that W&B writes in `run_dir`; at the end, however it comes, ends the runs and says how to see them.

    An ended run lets the next job of a multirun begin its own.
    """
    runs = (
        [logger for logger in loggers if isinstance(logger, WandbLogger)]
        if not getattr(rank_zero_only, "rank", 0)
        else []
    )
    staging = "WANDB_DATA_DIR"  # tables wait there for their upload; W&B's default is in the home folder
    ours = staging not in os.environ
    if ours and runs:
        os.environ[staging] = str(run_dir.resolve() / "wandb")
    failed = True
    try:
        yield
        failed = False
    finally:
        for logger in runs:
            words = _how_to_browse(logger, run_dir)
            logger.experiment.finish(exit_code=int(failed))
            log.info("%s", words)
        if ours:
            os.environ.pop(staging, None)


def _how_to_browse(logger: WandbLogger, run_dir: Path) -> str:
    run = logger.experiment
    if not run.settings._offline:
        return f"W&B run: {run.url}"
    own = Path(sys.executable).with_name("wandb")
    command = "wandb" if shutil.which("wandb") == str(own) else readable(own)
    return (
        "W&B logged offline\n"
        f"  browse it in the terminal: {command} leet {readable(Path(run.dir).parent)}\n"
        f"  upload it:                 {command} sync {readable(run_dir)}/wandb/offline-run-*"
    )
