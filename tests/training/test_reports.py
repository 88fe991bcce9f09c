"""What a run reports: the table of results, and how far it is, on a terminal and in a file."""

import logging
import math
import re
import sys
from types import SimpleNamespace

import pytest
from small_runs import TINY

from captioning import progress
from captioning.training.reports import Forecast, ProgressLog, ResultsTable, TerminalBar, progress_reports


def table_of(tmp_path, epochs: list[dict], saved: dict | None = None) -> list[list[str]]:
    """The cells of `results.md` after these epochs' metrics."""
    table = ResultsTable(tmp_path)
    if saved:
        table.load_state_dict(saved)
    for epoch, metrics in enumerate(epochs, start=len(saved["rows"]) if saved else 0):
        trainer = SimpleNamespace(is_global_zero=True, callback_metrics=metrics, current_epoch=epoch)
        table.on_train_epoch_end(trainer, None)
    lines = (tmp_path / "results.md").read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "---" not in line]


def test_scores_have_columns_where_they_were_logged(tmp_path):
    losses = {"train/loss_epoch": 1.0, "train/perplexity_epoch": 2.7, "val/loss": 1.5, "val/perplexity": 4.5}
    cells = table_of(tmp_path, [losses, {**losses, "val/cider": 0.25, "val/rouge_l": 0.5}])
    assert cells[0][:5] == ["Epoch", "Train Loss", "Train Perplexity", "Val Loss", "Val Perplexity"]
    assert cells[0][5:] == ["Val CIDEr", "Val ROUGE-L"]
    assert [row[5:] for row in cells[1:]] == [["-", "-"], ["0.2500", "0.5000"]]


def test_a_checkpoint_from_before_there_were_scores_goes_on(tmp_path):
    saved = {"rows": {0: [1.0, 2.0, 3.0, math.nan]}}
    cells = table_of(tmp_path, [{"val/bleu_4": 0.3}], saved)
    assert cells[1] == ["0", "1.0000", "2.0000", "3.0000", "-", "-"]
    assert cells[2] == ["1", "-", "-", "-", "-", "0.3000"]


WITH_PROGRESS = [one for one in TINY if "progress_bar" not in one]
NUMBERS = r"loss=\d\.\d{3}, perplexity=\d+\.\d\d, captions/s=\d+, val_perplexity=\d+\.\d\d, val_cider=\d\.\d{3}"


def test_where_the_output_is_no_terminal_a_line_an_epoch_says_how_far_it_is(command, tmp_path):
    status, output = command("train.py", *WITH_PROGRESS, f"run_dir={tmp_path}")
    assert status == 0, output
    assert "\r" not in output and "it/s" not in output
    lines = [line for line in output.splitlines() if "batches" in line]
    assert len(lines) == 3, output
    for epoch, line in enumerate(lines):
        assert re.fullmatch(rf"epoch {epoch}: 8 of 8 batches, [\d,.]+ batches/s, {NUMBERS}", line)
    assert lines == [line for line in (tmp_path / "train.log").read_text().splitlines() if "batches" in line]
    last_words = r"best val/perplexity [\d.]+, val/perplexity_floor 1\.\d+, test/perplexity [\d.]+$"
    assert re.search(last_words, output, re.MULTILINE)
    assert "`Trainer.fit` stopped" not in output


def test_long_epochs_validations_and_tests_have_lines_between_but_no_more_than_ten(command, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    longer = ("trainer.max_epochs=1", "data.train_pictures=60", "data.batch_size=2", "trainer.val_check_interval=30")
    given = [one for one in WITH_PROGRESS if "val_check" not in one and "max_epochs" not in one]
    status, output = command("train.py", *given, *longer, f"run_dir={tmp_path}")
    assert status == 0, output
    lines = [line for line in output.splitlines() if "batches/s" in line]
    counted = {kind: sum(line.startswith(f"{kind}: ") for line in lines) for kind in ("epoch 0", "validation", "test")}
    assert counted == {"epoch 0": 9, "validation": 6, "test": 1}
    assert re.search(r"epoch 0: 4 of 34 batches, .* left", lines[0])


def test_a_terminal_has_a_bar_with_the_same_numbers(command, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    status, output = command("train.py", *WITH_PROGRESS, "trainer.max_epochs=1", f"run_dir={tmp_path}")
    assert status == 0, output
    assert re.search(rf"\rEpoch 0: 100%.*, {NUMBERS}\]", output)
    assert "batches/s" not in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize("stdout", ["a terminal", "a file"])
def test_which_it_is_depends_on_stdout(stdout, monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: stdout == "a terminal"))
    assert isinstance(progress_reports(), TerminalBar if stdout == "a terminal" else ProgressLog)


def test_after_twenty_steps_a_run_says_how_long_it_will_take(caplog):
    now = [0.0]
    forecast = Forecast(lambda: now[0])
    trainer = SimpleNamespace(
        accumulate_grad_batches=1,
        num_training_batches=100,
        num_val_batches=[30],
        global_step=0,
        estimated_stepping_batches=300,
        check_val_every_n_epoch=1,
        is_global_zero=True,
        sanity_checking=False,
    )
    with caplog.at_level(logging.INFO):
        now[0] = 60.0  # of the first step, which is no measure
        for _ in range(100):
            trainer.global_step += 1
            forecast.on_train_batch_end(trainer, None, None, None, 0)
            now[0] += 2.0
        forecast.on_validation_start(trainer, None)
        now[0] += 45.0
        forecast.on_validation_end(trainer, None)
    assert caplog.messages == [
        "an epoch will take about 3 min, a validation 20 s without its captions, all that is left of the run 10 min",
        "the validation took 45 s with its captions; about 8 min are left of the run",
    ]
