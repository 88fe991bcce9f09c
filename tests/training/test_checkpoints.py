"""Checkpoints are whole, or the ones before them stay; runs that are asked to stop are saved first."""

import os
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from interrupted import at_call, differences, forked
from small_runs import composed

from captioning.errors import Stopped, UserError
from captioning.training.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    Saving,
    StopEarly,
    StopSignals,
    requeue,
)
from captioning.training.lightning_internals import unfinished_epoch
from captioning.training.module import CaptioningModule
from captioning.training.run import train


def fill(full_disk):
    """For a checkpoint and a picture the disk is full, for a line of text it isn't."""
    return lambda *_: full_disk(20_000)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, full_disk):
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"a": torch.zeros(3)}, path)
    full_disk(20_000)
    with pytest.raises(OSError, match="File too large"):
        io.save_checkpoint({"a": torch.zeros(100_000)}, path)
    assert io.load_checkpoint(path)["a"].tolist() == [0, 0, 0]
    assert [child.name for child in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_run_on_a_full_disk_says_so_and_stops_with_the_checkpoint_before(tmp_path, full_disk, monkeypatch):
    at_call(3, fill(full_disk), torch, "save", monkeypatch.setattr)
    with pytest.raises(UserError, match=r"best\.ckpt could not be written: File too large; .* is kept; mend that and"):
        train(composed(tmp_path))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_or_it_goes_on_regardless(tmp_path, full_disk, monkeypatch, caplog):
    at_call(3, fill(full_disk), torch, "save", monkeypatch.setattr)
    run = train(composed(tmp_path, "checkpoints.on_error=continue", "trainer.max_epochs=2"))
    said = [record.message for record in caplog.records if ".ckpt could not be written" in record.message]
    assert any("last.ckpt could not be written: File too large; the checkpoint before it" in line for line in said)
    assert all(line.endswith("and training goes on") for line in said)
    assert run.trainer.current_epoch == 2


def test_a_best_checkpoint_that_could_not_be_written_is_not_remembered(tmp_path, full_disk, monkeypatch):
    at_call(1, fill(full_disk), torch, "save", monkeypatch.setattr)
    run = train(composed(tmp_path, "checkpoints.on_error=continue", "trainer.max_epochs=1"))
    assert not [name for name in run.metrics if name.startswith("best/")]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_read_only_folder_is_told_as_one(tmp_path):
    def refuses(checkpoint, path):
        raise PermissionError(13, "Permission denied", str(path))

    strategy = SimpleNamespace(save_checkpoint=refuses, broadcast=lambda value: value)
    connector = SimpleNamespace(dump_checkpoint=lambda weights_only: {})
    trainer = SimpleNamespace(strategy=strategy, _checkpoint_connector=connector)
    said = r"last\.ckpt could not be written: Permission denied; there is none before it"
    with pytest.raises(UserError, match=said):
        Saving("stop").save(trainer, tmp_path / "last.ckpt")
    assert not Saving("continue").save(trainer, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=said):
        Saving("continue").save(trainer, tmp_path / "last.ckpt", must=True)


def test_a_checkpoint_is_taken_when_its_time_has_come(tmp_path, monkeypatch):
    seconds = iter(range(0, 100_000, 40))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    saved = []
    last = LastCheckpoint(tmp_path / "last.ckpt", Saving("stop"), {}, None, 2)
    last._saving = SimpleNamespace(save=lambda trainer, path, must: saved.append(trainer.global_step))
    loop = SimpleNamespace(_should_check_val_fx=lambda fetcher: False)
    fit = SimpleNamespace(epoch_loop=loop, _data_fetcher=object())
    for step in range(1, 9):
        at = {"global_step": step, "max_steps": -1, "should_stop": False, "is_last_batch": False}
        trainer = SimpleNamespace(**at, fit_loop=fit, world_size=1)
        last.on_train_batch_end(trainer, None)
    assert saved == [4, 7], "each step takes 40 seconds, and so does a save"


def sends(*numbers):
    return lambda *_: [os.kill(os.getpid(), number) for number in numbers]


def saved(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_signal_ends_a_run_behind_its_step_and_the_run_goes_on_exactly(whole, tmp_path, monkeypatch, capfd):
    ended = tmp_path / "ended"
    stops = {"training_step": (3, 4), "validation_step": (2, 6)}  # at which call, and the batches done then
    for name, (call, batches) in stops.items():
        with monkeypatch.context() as patch, pytest.raises(Stopped, match="143") as stopped:
            at_call(call, sends(signal.SIGTERM), CaptioningModule, name, patch.setattr)
            train(composed(ended, *([f"resume={ended}"] if ended.exists() else [])))
        assert f"SIGTERM; continue with python train.py resume={ended}" in stopped.value.words
        assert unfinished_epoch(saved(ended)) == batches
        assert "a second signal ends it at once" in capfd.readouterr().err
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "as it was before"
    train(composed(ended, f"resume={ended}"))
    assert differences(ended, whole) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_run_at_once(tmp_path, number):
    def action():
        at_call(3, sends(number, number), CaptioningModule, "training_step")
        train(composed(tmp_path))

    status = forked(action)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_slurms_requeue_signal_saves_and_puts_the_job_back_into_the_queue(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    monkeypatch.setattr("captioning.training.checkpoints.requeue", lambda: requeue(subprocess.run))
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "JOB_NAME": "train", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_PROCID", "0")
    # SLURM sends SIGTERM behind it, which is no second one.
    at_call(3, sends(signal.SIGUSR1, signal.SIGTERM), CaptioningModule, "training_step", monkeypatch.setattr)
    with pytest.raises(Stopped, match=str(128 + signal.SIGUSR1)):
        train(composed(tmp_path))
    assert asked == [["scontrol", "requeue", "7"]]
    assert unfinished_epoch(saved(tmp_path)) == 4


def test_a_task_of_an_array_is_requeued_by_its_own_number_and_a_failure_is_told(monkeypatch, caplog):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")

    def missing(command, check):
        raise FileNotFoundError(2, "No such file or directory", command[0])

    requeue(missing)
    assert "SLURM's job 7_2 could not be put back into the queue" in caplog.text


def test_a_signal_before_the_first_step_is_heeded():
    signals = StopSignals()
    environment = SimpleNamespace(cluster_environment=None)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        signals.listen(SimpleNamespace(received_sigterm=True, _accelerator_connector=environment))
    finally:
        signal.signal(signal.SIGINT, handlers[0])
        signal.signal(signal.SIGTERM, handlers[1])
    with pytest.raises(Stopped, match="143"):
        signals.end(SimpleNamespace(is_global_zero=True))


def test_a_run_that_stopped_early_stays_stopped_and_goes_on_with_more_patience():
    before = StopEarly("val/perplexity", patience=2)
    before.wait_count = 2
    for patience, stopped in ((2, True), (3, False)):
        resumed, trainer = StopEarly("val/perplexity", patience=patience), SimpleNamespace(should_stop=False)
        resumed.load_state_dict(before.state_dict())
        resumed.on_train_start(trainer, None)
        assert trainer.should_stop == stopped


def ends_an_epoch_with_its_best(run_dir, *overrides):
    """Two epochs, each validated at its end alone."""
    return composed(run_dir, "trainer.val_check_interval=1.0", "checkpoints.every_n_steps=null", *overrides)


def test_the_last_checkpoint_is_the_best_ones_file_where_both_are_of_one_moment_and_a_run_goes_on_from_it(
    tmp_path, monkeypatch
):
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    usual = ("trainer.max_epochs=2", "stage.learning_rates={cross_attention:1e-2,decoder:1e-3,encoder:1e-3}")
    train(ends_an_epoch_with_its_best(whole, *usual))
    files = [whole / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    assert files[0].samefile(files[1])
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        at_call(10, lambda *_: 1 // 0, CaptioningModule, "training_step", patch.setattr)  # in the second epoch
        train(ends_an_epoch_with_its_best(ended, *usual))
    assert saved(ended)["epoch"] == 0
    train(ends_an_epoch_with_its_best(ended, *usual, f"resume={ended}"))
    assert differences(ended, whole) == []


def test_where_the_disk_has_no_hard_links_it_is_written_twice(tmp_path, monkeypatch):
    def refuses(source, aside):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuses)
    train(ends_an_epoch_with_its_best(tmp_path, "trainer.max_epochs=1"))
    best, last = (tmp_path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    assert last.is_file() and not last.samefile(best)
    assert len(list(best.parent.iterdir())) == 2


def test_a_worse_epoch_gets_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(BestCheckpoint, "check_monitor_top_k", lambda self, trainer, current: not self.best_model_path)
    train(ends_an_epoch_with_its_best(tmp_path, "trainer.max_epochs=2"))
    assert saved(tmp_path)["epoch"] == 1
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 0
