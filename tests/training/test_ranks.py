"""Two processes train as one, and end as one."""

import csv
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from small_runs import TINY, composed

from captioning.errors import Stopped, UserError
from captioning.model.build import load_captioner
from captioning.runs import AVERAGE
from captioning.training import ranks
from captioning.training.ranks import check_strategy, one_fate
from captioning.training.run import train

# 29 rows of at most two captions an epoch, so that batches are of unequal lengths and the last one is uneven.
BOTH = ("data.train_pictures=13", "data.captions_per_image=2", "model.dropout=0", "trainer.accumulate_grad_batches=1")
EACH = ("data.batch_size=2", *BOTH)  # of two
ALONE = ("data.batch_size=4", *BOTH)


def started(run_dir, do, *overrides):
    """Two ranks: (status, what they said, seconds)."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    command = [sys.executable, str(ROOT / "tests" / "two_ranks.py"), str(run_dir), do, *EACH, *overrides]
    start = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start


def told_by(run_dir, rank):
    return [json.loads(line) for line in (run_dir / f"rank-{rank}.jsonl").read_text().splitlines()]


def losses(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [
            {
                name: float(row[name])
                for name in row
                if row[name] and name.startswith(("train/", "val/", "test/", "lr/", "grad"))
            }
            for row in csv.DictReader(file)
        ]


def weights(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def averages(run_dir):
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)[AVERAGE]
    return {f"average of {name}": value for name, value in saved["weights"].items()}


@pytest.fixture(scope="module")
def two(once):
    def make(folder):
        (folder / "run").mkdir()
        status, said, _ = started(folder / "run", "train")
        assert status == 0, said
        (folder / "said.txt").write_text(said)

    folder = once("two", make)
    return SimpleNamespace(run_dir=folder / "run", said=(folder / "said.txt").read_text())


@pytest.fixture(scope="module")
def alone(once):
    return once("alone", lambda run_dir: train(composed(run_dir, *ALONE)))


def require_identical_weights(run_dir):
    ours, theirs = told_by(run_dir, 0), told_by(run_dir, 1)
    assert [(one["epoch"], one["when"]) for one in ours] == [(e, when) for e in range(3) for when in ("start", "end")]
    assert [one["weights"] for one in ours] == [one["weights"] for one in theirs]
    assert len({one["weights"] for one in ours}) == 4, "each epoch changed them"


def test_after_every_stage_switch_all_ranks_hold_identical_weights(two):
    require_identical_weights(two.run_dir)
    assert [phase.from_epoch for phase in composed(two.run_dir).stage.phases] == [0, 1, 2]
    shapes = [[shape for one in told_by(two.run_dir, rank) for shape in one["batches"]] for rank in (0, 1)]
    assert shapes[0] != shapes[1], "their captions are of different lengths"
    assert {len(shapes) for shapes in zip(*shapes, strict=True)} == {2} and {2, 1} <= {rows for rows, _ in shapes[1]}


def test_losses_scores_and_weights_equal_those_of_one_process_with_the_same_global_batch(two, alone):
    assert len(losses(two.run_dir)) == len(losses(alone)) > 15
    for ours, expected in zip(losses(two.run_dir), losses(alone), strict=True):
        assert ours == pytest.approx(expected, rel=1e-5, abs=1e-9)
    found = weights(two.run_dir) | averages(two.run_dir)
    for name, value in (weights(alone) | averages(alone)).items():
        # No softmax sees a bias of keys: its gradient is rounding, of which Adam makes a step.
        seen = slice(len(value) // 2, None) if name.endswith("crossattention.c_attn.bias") else slice(None)
        torch.testing.assert_close(found[name][seen], value[seen], rtol=1e-5, atol=1e-7, msg=name)


def test_training_on_the_same_captions_gives_the_same_tokenizer_in_every_process(two, alone):
    ours, theirs = (load_captioner(run_dir / "checkpoints" / "last.ckpt")[1] for run_dir in (two.run_dir, alone))
    assert ours.to_json() == theirs.to_json()


def test_only_the_first_rank_talks(two):
    for line in ("run folder", "epoch 0: training", "epoch 2: training", "train 13 pictures", "best val/perplexity"):
        assert two.said.count(line) == (line in two.said), two.said
    assert "GLOBAL_RANK" not in two.said and "Warning" not in two.said


def test_a_run_with_another_logger_needs_no_wandb(two):
    """Neither process could import it, see `two_ranks.py`."""
    assert (two.run_dir / "results.md").is_file()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_with_lightnings_base_finetuning_the_ranks_drift_apart(tmp_path):
    status, said, _ = started(tmp_path, "base_finetuning")
    assert status == 0, said
    with pytest.raises(AssertionError):
        require_identical_weights(tmp_path)
    start = [told_by(tmp_path, rank)[0]["weights"] for rank in (0, 1)]
    assert start[0] == start[1], "they began alike"


MISHAPS = {
    "a loader dies": ("a process that reads pictures ended (DataLoader worker (pid", "data.num_workers=1"),
    "a picture is damaged": ("b.jpg cannot be read: truncated",),
    "rank 1 is killed": ("rank 1 was ended by SIGKILL, often because memory ran out",),
    "rank 0 is killed": ("rank 0, which started this one, is gone",),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("do", MISHAPS)
def test_where_one_rank_ends_both_do_with_the_reason_and_soon(tmp_path, do):
    reason, *overrides = MISHAPS[do]
    status, said, seconds = started(tmp_path, do, *overrides)
    assert status != 0
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert reason in said and len(errors) == (1 if "killed" in do else 2), said
    assert "killed" in do or any(line.startswith("error: rank 1 ended: ") for line in errors)
    assert "Traceback" not in said
    assert seconds < 120, "most of it is starting: without this they would wait for half an hour"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_signal_to_one_rank_saves_and_stops_both_and_the_run_goes_on_exactly(tmp_path, two):
    status, said, _ = started(tmp_path, "rank 1 is asked to stop")
    assert status == 143 and "stopped by SIGTERM; continue with python train.py resume=" in said, said
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    status, said, _ = started(tmp_path, "train", f"resume={tmp_path}")
    assert status == 0, said
    for name, value in weights(two.run_dir).items():
        assert torch.equal(weights(tmp_path)[name], value), name
    assert losses(tmp_path) == losses(two.run_dir)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tasks_of_a_slurm_job_train_as_one(tmp_path, two):
    """As srun starts them on one machine; there is no SLURM here."""
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "train",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_NODEID": "0",
    }
    job |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    job |= {"SLURM_NODELIST": "localhost", "OMP_NUM_THREADS": "1"}
    cpu = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32")
    tiny = [one for one in (*TINY, *EACH) if not one.startswith("trainer=")]
    command = [sys.executable, str(ROOT / "train.py"), *tiny, "trainer=slurm", *cpu, f"run_dir={tmp_path / 'run'}"]
    tasks = [
        subprocess.Popen(
            command,
            env={**os.environ, **job, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for task in (0, 1)
    ]
    said = [task.communicate(timeout=240)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "best val/perplexity" in said[0] and not said[1].strip(), said
    assert losses(tmp_path / "run") == losses(two.run_dir)
    for name, value in weights(two.run_dir).items():
        assert torch.equal(weights(tmp_path / "run")[name], value), name


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_starts_ranks_that_train_as_one_and_stop_as_one(tmp_path, two):
    def run(*command):
        torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node", "2", *command]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        return subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=240)

    tiny = (*TINY, *EACH, "trainer.devices=2", f"run_dir={tmp_path / 'run'}")
    done = run(ROOT / "train.py", *tiny)
    assert done.returncode == 0, done.stderr
    for name, value in weights(two.run_dir).items():
        assert torch.equal(weights(tmp_path / "run")[name], value), name
    done = run(ROOT / "tests" / "two_ranks.py", tmp_path, "rank 1 is killed", *EACH)
    assert done.returncode == 1 and "exitcode  : -9" in done.stderr, "torchrun says which was the first"


def test_a_strategy_that_divides_the_model_is_refused():
    for strategy in (DDPStrategy(), DDPStrategy(find_unused_parameters=True)):
        check_strategy(SimpleNamespace(strategy=strategy))
    with pytest.raises(
        UserError,
        match=r"trainer\.strategy=FSDPStrategy is not supported: .*; take trainer=ddp, and .* model\.lora\.rank",
    ):
        check_strategy(SimpleNamespace(strategy=FSDPStrategy()))


def trainer_of(rank, launcher=None):
    strategy = SimpleNamespace(launcher=launcher)
    return SimpleNamespace(world_size=2, global_rank=rank, local_rank=rank, strategy=strategy)


def test_the_reason_of_one_rank_is_the_others_too(tmp_path):
    with pytest.raises(UserError, match="no room"), one_fate(trainer_of(1), tmp_path):
        raise UserError("no room")
    with pytest.raises(UserError, match="rank 1 ended: no room"), one_fate(trainer_of(0), tmp_path):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(UserError, match="other"), one_fate(trainer_of(0), tmp_path):
        raise UserError("other: its own reason is the better one")


def test_a_rank_that_waits_for_ever_is_ended_with_the_reason(tmp_path, monkeypatch, capfd):
    ended = threading.Event()
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(ranks.os, "_exit", lambda status: ended.set() if status == 1 else None)
    with one_fate(trainer_of(0), tmp_path):
        with pytest.raises(UserError), one_fate(trainer_of(1), tmp_path):
            raise UserError("no room")
        assert ended.wait(10)
    assert "error: rank 1 ended: no room" in capfd.readouterr().err


def test_a_run_begins_without_the_reasons_of_the_one_before(tmp_path):
    for rank in (0, 1):
        with pytest.raises(UserError), one_fate(trainer_of(rank), tmp_path):
            raise UserError("no room")
    with one_fate(trainer_of(1), tmp_path), one_fate(trainer_of(0), tmp_path):
        time.sleep(1)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".ended")]


def test_a_rank_that_was_asked_to_stop_lets_the_first_one_speak(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    parents = iter([7, 7, 7, 1])
    monkeypatch.setattr(ranks.os, "getppid", lambda: next(parents, 1))
    monkeypatch.setattr(ranks.threading.Thread, "start", lambda thread: None)
    with pytest.raises(Stopped), one_fate(trainer_of(1), tmp_path):
        raise Stopped(143, "SIGTERM")
    assert next(parents, None) is None
    assert not list(Path(tmp_path).iterdir())
