"""Rows that continue: none missing and none twice, in metrics.csv and in W&B."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import Logger, WandbLogger
from small_runs import composed

from captioning.training.loggers import MetricsCsv, run_loggers
from captioning.training.run import train
from captioning.training.wandb import WandbRows


@pytest.fixture
def sent(monkeypatch):
    """What reaches W&B."""
    rows = []
    monkeypatch.setattr(WandbLogger, "log_metrics", lambda self, metrics, step=None: rows.append((step, metrics)))
    return rows


def logged(loggers, *rows):
    for step, metrics in rows:
        for logger in loggers:
            logger.log_metrics(metrics, step)


def loggers_of(tmp_path, continues):
    logger = WandbRows.__new__(WandbRows)
    logger._save_dir = str(tmp_path)
    return run_loggers(tmp_path, [logger], continues=continues)


ROWS = [(2, {"train/loss": 3.5}), (4, {"train/loss": 3.25}), (4, {"val/loss": 3.0}), (6, {"train/loss": 2.5})]


def test_rows_behind_the_checkpoint_are_dropped_and_not_sent_to_wandb_again(tmp_path, sent):
    logged(loggers_of(tmp_path, continues=False), *ROWS[:3])
    resumed = loggers_of(tmp_path, continues=True)
    resumed[0].keep(1)
    table = SimpleNamespace(rows=[])
    logged(resumed, ROWS[1])
    resumed[1].log_metrics({"val/samples": table}, 4)  # of the validation that was logged before
    logged(resumed, *ROWS[2:])
    assert sent == ROWS
    text = (tmp_path / "metrics.csv").read_text()
    assert text.split() == ["step,train/loss,val/loss", "2,3.5,", "4,3.25,", "4,,3.0", "6,2.5,"]
    assert resumed[0].rows == 4


def test_other_rows_in_the_place_of_those_dropped_are_sent(tmp_path, sent):
    logged(loggers_of(tmp_path, continues=False), ROWS[0], (2, {"test/loss": 1.0}))
    resumed = loggers_of(tmp_path, continues=True)
    resumed[0].keep(1)
    logged(resumed, *ROWS[1:])
    assert sent[2:] == ROWS[1:], "a finished run that is extended has trained on"


def test_a_run_that_begins_anew_begins_with_no_row(tmp_path, sent):
    logged(loggers_of(tmp_path, continues=False), *ROWS)
    logged(loggers_of(tmp_path, continues=False), *ROWS[:1])
    assert MetricsCsv(tmp_path).rows == 1
    assert sent == ROWS


def test_a_row_that_a_power_cut_has_torn_is_none(tmp_path):
    (tmp_path / "metrics.csv").write_text("train/loss,step\n3.5,2\n3.25")
    rows = MetricsCsv(tmp_path)
    assert rows.rows == 1
    rows.keep(1)
    rows.log_metrics({"train/loss": 3.0}, 4)
    assert MetricsCsv(tmp_path).rows == 2


class OneLineEach(Logger):
    """A user's own logger: a line for each row."""

    name, version = "mine", ""

    def __init__(self, path: str):
        super().__init__()
        self._path = Path(path)

    def log_hyperparams(self, params, *_, **__):
        self._path.write_text(f"seed {params['seed']}\n")

    def log_metrics(self, metrics, step=None):
        with self._path.open("a") as file:
            file.write(f"{step} {' '.join(metrics)}\n")


def test_a_users_own_logger_is_one_entry(tmp_path):
    own = f"+logger.mine={{_target_:test_loggers.OneLineEach,path:{tmp_path}/mine.txt}}"
    train(composed(tmp_path / "run", own, "trainer.max_epochs=1"))
    lines = (tmp_path / "mine.txt").read_text().splitlines()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert lines[0] == "seed 42" and len(lines) == len(file.readlines())
    assert any("val/perplexity" in line and "train/loss_epoch" in line for line in lines)
