"""What goes wrong in a long run: named, bounded, and nothing lost."""

import errno
import gc
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from data_sets import flickr8k
from interrupted import at_call, differences, kill_a_worker
from small_runs import TINY, composed, configured

from captioning.cli import LOADER_DIED
from captioning.config import TrainConfig
from captioning.data.datamodule import Photographs
from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner
from captioning.training.callbacks import SkippedSteps
from captioning.training.loggers import MetricsCsv
from captioning.training.module import CaptioningModule
from captioning.training.run import train
from captioning.training.wandb import WandbLogger, WandbRows


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux tells a process's children so")
def test_a_loader_worker_that_is_killed_ends_the_run_with_the_reason_and_the_run_goes_on_exactly(
    whole, tmp_path, monkeypatch
):
    # torch waits so long for the worker that is no more, when its loader is collected: in whichever test comes next.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    with monkeypatch.context() as patch, pytest.raises(UserError) as ended:
        at_call(11, kill_a_worker, CaptioningModule, "training_step", patch.setattr)
        train(composed(tmp_path, "data.num_workers=1"))
    words = str(ended.value)
    assert words.startswith(f"a process that reads pictures ended ({LOADER_DIED}")
    assert "memory ran out" in words and words.endswith(f"; then continue with python train.py resume={tmp_path}")
    train(composed(tmp_path, f"resume={tmp_path}"))
    assert differences(tmp_path, whole) == []
    del ended
    gc.collect()


class Losses:
    """`ImageCaptioner.loss` with other sums for some of the training batches, counted from 1."""

    def __init__(self, monkeypatch, batches, value=float("nan"), owner=ImageCaptioner):
        self.calls, original = 0, owner.loss

        def loss(captioner, batch, *smoothing):
            found = original(captioner, batch, *smoothing)
            self.calls += torch.is_grad_enabled()
            bad = torch.is_grad_enabled() and self.calls in batches
            return found._replace(nats=found.nats * value) if bad else found

        monkeypatch.setattr(owner, "loss", loss)


ONE_A_STEP = "trainer.accumulate_grad_batches=1"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_step_without_a_finite_loss_changes_nothing_and_is_counted(tmp_path, monkeypatch, caplog, value):
    weights = {}

    def keep(trainer):
        network = trainer.lightning_module
        moments = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
        weights[trainer.global_step] = [value.clone() for value in (*network.state_dict().values(), *moments)]

    original = SkippedSteps.on_train_batch_end
    monkeypatch.setattr(
        SkippedSteps,
        "on_train_batch_end",
        lambda self, trainer, *others: (keep(trainer), original(self, trainer, *others)),
    )
    Losses(monkeypatch, {3}, value)
    run = train(composed(tmp_path, ONE_A_STEP, "trainer.max_epochs=1"))
    same = [all(map(torch.equal, weights[n], weights[n + 1])) for n in range(1, len(weights))]
    assert same == [False, True, *[False] * (len(same) - 2)]
    said = [record.message for record in caplog.records if "not finite" in record.message]
    assert said == [
        "by step 4 the loss or its gradient was not finite in 1 more steps, which were skipped: "
        "1 of at most 20 of this run"
    ]
    assert run.metrics["train/loss_epoch"] < 10, "the mean of the other steps"
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["skipped_steps"] == 1


def test_one_batch_of_several_that_are_accumulated_spoils_its_whole_step(tmp_path, monkeypatch):
    Losses(monkeypatch, {3})
    run = train(composed(tmp_path, "trainer.max_epochs=1"))
    assert run.module.skipped_steps == 1 and all(p.isfinite().all() for p in run.module.parameters())


def test_too_many_of_them_end_the_run_with_the_last_good_checkpoint_and_the_count_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(UserError) as ended:
        Losses(patch, {3, 11, 12})
        train(composed(tmp_path, ONE_A_STEP, "max_skipped_steps=2"))
    assert "2 more steps, 3 in all, more than max_skipped_steps=2" in str(ended.value)
    assert f"the last good checkpoint is {tmp_path}/checkpoints/last.ckpt" in str(ended.value)
    with pytest.raises(UserError, match=r"3 in all, more than max_skipped_steps=2; none .*; then continue with"):
        Losses(monkeypatch, {1, 3})  # one was skipped before the checkpoint
        train(composed(tmp_path, ONE_A_STEP, "max_skipped_steps=2", f"resume={tmp_path}"))


def flickr(root, *overrides):
    """`TINY` on four photographs, two to train on."""
    tiny = [one for one in TINY if not one.startswith(("data", "scores", "trainer.val_check"))]
    data = ("data=flickr8k", f"data.root={root}", "data.num_workers=1", "data.batch_size=1", "data.tokenizer=null")
    return [*tiny, *data, "scores.pictures=1", "trainer.accumulate_grad_batches=1", *overrides]


def rots(monkeypatch, name):
    """A file that is found damaged at the third time that it is read for training."""
    original, reads = Photographs.__call__, []

    def read(files, i):
        reads.append(files.stored.name(i))
        if reads.count(reads[-1]) >= 3 and reads[-1].endswith(name):
            Path(reads[-1]).write_bytes(b"\xff\xd8\xff damaged \xff\xd9")
        return original(files, i)

    monkeypatch.setattr(Photographs, "__call__", read)


def test_a_picture_found_damaged_in_training_is_named_and_the_run_can_go_on_without_it(tmp_path, monkeypatch, caplog):
    root, run_dir = flickr8k(tmp_path / "data"), tmp_path / "run"

    def started(*overrides):
        return train(configured(TrainConfig, *flickr(root, "data.num_workers=0", f"run_dir={run_dir}", *overrides)))

    with monkeypatch.context() as patch, pytest.raises(UserError) as ended:
        rots(patch, "b.jpg")
        started()
    said = str(ended.value)
    assert f"{root}/Images/b.jpg cannot be read: " in said
    assert said.endswith(
        "; replace it, or go on without it by data.on_missing=skip; "
        f"then continue with python train.py resume={run_dir}"
    )
    with pytest.raises(UserError, match="of 1 pictures none is left"):  # a batch of nothing has no loss
        started(f"resume={run_dir}", "data.on_missing=skip")
    shutil.rmtree(run_dir)
    run = started("data.on_missing=skip", "data.batch_size=2")
    assert run.trainer.current_epoch == 3
    assert "b.jpg cannot be read" in caplog.text and "it is left out here" in caplog.text
    assert len(run.datamodule.splits["train"]) == 2, "set-up took it as sound"


class FullDisk:
    """Where files are written: by this object's word there is no room, or there is."""

    def __init__(self, monkeypatch, *names):
        self.full, original = True, Path.open

        def opened(path, *arguments, **named):
            if self.full and path.name.strip(".").startswith(names):
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(path, *arguments, **named)

        monkeypatch.setattr(Path, "open", opened)


def test_rows_that_a_full_disk_does_not_take_wait_for_their_turn(tmp_path, monkeypatch, caplog):
    rows = MetricsCsv(tmp_path)
    rows.log_metrics({"a": 1.0}, 1)
    disk = FullDisk(monkeypatch, "metrics.csv")
    rows.log_metrics({"a": 2.0}, 2)
    rows.log_metrics({"a": 3.0, "b": 4.0}, 3)
    assert caplog.text.count("metrics.csv can't be written: No space left on device; its rows wait until it can") == 1
    disk.full = False
    rows.log_metrics({"a": 5.0}, 4)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a,b", "1,1.0,", "2,2.0,", "3,3.0,4.0", "4,5.0,"]
    disk.full = True
    rows.log_metrics({"a": 6.0}, 5)
    rows.finalize("success")
    assert "metrics.csv lacks its last 1 rows: No space left on device" in caplog.text


def test_a_disk_without_room_for_wandb_is_told_once_and_nothing_ends(tmp_path, monkeypatch, caplog):
    def refuses(self, metrics, step=None):
        if "table" in metrics:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WandbLogger, "log_metrics", refuses)
    monkeypatch.setattr(WandbRows, "save_dir", tmp_path)
    logger = WandbRows.__new__(WandbRows)
    free = [2**30, 1000, 1000, 2**30, 2**30]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, free.pop(0)))
    for step, metrics in enumerate([{"a": 1.0}, {"a": 1.0}, {"a": 1.0}, {"a": 1.0}, {"table": object()}]):
        logger.log_metrics(metrics, step)
    said = [record.message for record in caplog.records]
    lost = (
        f"No space left on device: W&B loses what does not fit into {tmp_path}/wandb, from step %d on; metrics.csv has"
    )
    assert [line.startswith(lost % step) for line, step in zip(said, (1, 4), strict=True)] == [True, True]


@pytest.mark.slow
def test_a_whole_run_on_a_full_disk_goes_on_where_it_may_and_stops_in_a_sentence_where_not(tmp_path):
    """On a file system of 900 kB that lives as long as the command; mounting it takes rights that not everyone has."""
    mounted = f"mount -t tmpfs -o size=900k tmpfs {tmp_path} && exec "
    if subprocess.run(["unshare", "-rm", "sh", "-c", mounted + "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")

    def run(*overrides):
        command = [sys.executable, str(ROOT / "train.py"), *TINY, "logger=wandb", f"run_dir={tmp_path}/run", *overrides]
        quoted = " ".join(f"'{word}'" for word in command)
        return subprocess.run(["unshare", "-rm", "sh", "-c", mounted + quoted], capture_output=True, text=True)

    stopped, going_on = run(), run("checkpoints.on_error=continue")
    assert stopped.returncode == 1 and going_on.returncode == 0
    assert "ckpt could not be written: No space left on device; " in stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr + going_on.stderr
    assert "W&B loses what does not fit" in going_on.stdout + going_on.stderr
