"""Runs that are asked to stop: saved first, and ended with the signal's status; at once if asked twice."""

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
import torch
from interrupted import at_call, composed, differences, forked, train

from captioning.cli import one_sentence_errors
from captioning.errors import Stopped
from captioning.training.checkpoints import StopEarly, StopSignals, requeue
from captioning.training.lightning_internals import unfinished_epoch
from captioning.training.module import CaptioningModule


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


def test_a_stopped_command_says_how_to_go_on_and_has_the_signals_status(capsys):
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        raise Stopped(130, "SIGINT; continue with python train.py resume=runs/a")
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped by SIGINT; continue with python train.py resume=runs/a\n"


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
