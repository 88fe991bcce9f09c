"""Checkpoints are whole, or the ones before them stay; a disk that objects is told in a sentence."""

from types import SimpleNamespace

import pytest
import torch
from interrupted import at_call, composed, train

from captioning.errors import UserError
from captioning.training import checkpoints as checkpointing
from captioning.training.checkpoints import AtomicCheckpointIO, LastCheckpoint, Saving


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
    at_call(3, fill(full_disk), checkpointing.torch, "save", monkeypatch.setattr)
    with pytest.raises(UserError, match=r"best\.ckpt could not be written: File too large; .* is kept; mend that and"):
        train(composed(tmp_path))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_or_it_goes_on_regardless(tmp_path, full_disk, monkeypatch, caplog):
    at_call(3, fill(full_disk), checkpointing.torch, "save", monkeypatch.setattr)
    run = train(composed(tmp_path, "checkpoints.on_error=continue", "trainer.max_epochs=2"))
    said = [record.message for record in caplog.records if ".ckpt could not be written" in record.message]
    assert any("last.ckpt could not be written: File too large; the checkpoint before it" in line for line in said)
    assert all(line.endswith("and training goes on") for line in said)
    assert run.trainer.current_epoch == 2


def test_a_best_checkpoint_that_could_not_be_written_is_not_remembered(tmp_path, full_disk, monkeypatch):
    at_call(1, fill(full_disk), checkpointing.torch, "save", monkeypatch.setattr)
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
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: next(seconds))
    saved = []
    last = LastCheckpoint(tmp_path / "last.ckpt", Saving("stop"), {}, None, 2)
    last._saving = SimpleNamespace(save=lambda trainer, path, must: saved.append(trainer.global_step))
    loop = SimpleNamespace(_should_check_val_fx=lambda fetcher: False)
    fit = SimpleNamespace(epoch_loop=loop, _data_fetcher=object())
    for step in range(1, 9):
        trainer = SimpleNamespace(global_step=step, is_last_batch=False, fit_loop=fit, world_size=1)
        last.on_train_batch_end(trainer, None)
    assert saved == [4, 7], "each step takes 40 seconds, and so does a save"
