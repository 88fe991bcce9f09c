"""A run that was stopped, at whatever moment, ends as the run that was not; or is told what it may not change."""
# ruff: noqa: F811  # a fixture of another file

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from interrupted import die, die_half_written, differences, killed, killed_before_change
from small_runs import composed
from support import small_captioner
from test_runs import CAPTIONER, TOKENIZER, path  # noqa: F401

from captioning.errors import UserError
from captioning.training.checkpoints import LastCheckpoint
from captioning.training.lightning_internals import unfinished_epoch
from captioning.training.module import CaptioningModule
from captioning.training.resume import refuse_other_architecture, refuse_other_settings
from captioning.training.run import train

MOMENTS = {
    "in mid-step with workers": ((12, die, CaptioningModule, "training_step"), 2),
    "in a validation": ((10, die, CaptioningModule, "validation_step"), 0),
    "in the middle of a write": ((9, die_half_written, torch, "save"), 0),
}


@pytest.mark.parametrize(("moment", "workers"), MOMENTS.values(), ids=MOMENTS)
def test_a_killed_run_ends_as_if_it_had_not_been(whole, tmp_path, moment, workers):
    killed(tmp_path, *moment, workers=workers)
    train(composed(tmp_path, f"data.num_workers={workers}", f"resume={tmp_path}"))
    assert differences(tmp_path, whole) == []
    assert not list((tmp_path / "checkpoints").glob(".*")), "what was half-written is gone"


EVERY_MOMENT = [((number, die, CaptioningModule, "training_step"), 0) for number in range(1, 25)] + [
    *(((number, die, CaptioningModule, "validation_step"), 2) for number in range(2, 20, 2)),
    *(((number, die_half_written, torch, "save"), 0) for number in range(1, 13)),
    *(((number, die, LastCheckpoint, "on_train_epoch_end"), 0) for number in (1, 2, 3)),
    ((1, die, CaptioningModule, "on_test_epoch_end"), 0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "workers"), EVERY_MOMENT)
def test_a_run_killed_at_every_moment_in_turn_ends_as_if_it_had_not_been(whole, tmp_path, moment, workers):
    killed(tmp_path, *moment, workers=workers)
    train(composed(tmp_path, f"data.num_workers={workers}", f"resume={tmp_path}"))
    assert differences(tmp_path, whole) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_before_whichever_change_on_the_disk_a_run_is_killed_it_ends_as_if_it_had_not_been(whole, tmp_path):
    torch.set_num_threads(1)
    for n in range(1, 500):
        run_dir = tmp_path / str(n)
        if not killed_before_change(lambda run_dir=run_dir: train(composed(run_dir)), run_dir, n):
            break  # it makes fewer changes
        train(composed(run_dir, f"resume={run_dir}"))
        assert differences(run_dir, whole) == [], f"killed before change {n}"
        assert listing(run_dir) == listing(whole), f"killed before change {n}"
    assert n > 60


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_25_of_25_commands_killed_at_random_moments_come_back_identical():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "resume.py", "--kills", "25"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "25 of 25 came back identical" in done.stdout


@pytest.fixture(scope="module")
def in_mid_epoch(tmp_path_factory):
    """The folder of a run that was killed in its second epoch."""
    run_dir = tmp_path_factory.mktemp("killed")
    killed(run_dir, 13, die, CaptioningModule, "training_step")
    return run_dir


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "data.batch_size=8",
            r"data\.batch_size was 4 and is 8, .* in the middle of epoch 1, after 4 b",
        ),
        ("trainer.accumulate_grad_batches=1", r"trainer\.accumulate_grad_batches was 2 and is 1, .*other pictures"),
        ("data.captions_per_image=1", r"data\.captions_per_image was 5 and is 1, .*model\.init_from="),
        ("data.train_pictures=32", r"data\.train_pictures was 28 and is 32; training pictures was "),
        ("seed=7", r"seed was 42 and is 7, which a resumed run cannot change; leave it as it was, or start a new run"),
        ("optimizer=adamw", r"optimizer was muon and is adamw, which a resumed run cannot change"),
        ("stage.best_by=val/cider", r"stage\.best_by was val/perplexity and is val/cider"),
        ("stage=scst", r"stage\.self_critical was False and is True"),
        ("trainer.max_epochs=1", r"trainer\.max_epochs=1 is fewer than the 2 epochs"),
    ],
)
def test_what_would_be_half_applied_in_mid_epoch_is_refused(in_mid_epoch, override, said):
    with pytest.raises(UserError, match=said):
        train(composed(in_mid_epoch, f"resume={in_mid_epoch}", override))
    checkpoint = torch.load(in_mid_epoch / "checkpoints" / "last.ckpt", weights_only=True)
    assert unfinished_epoch(checkpoint) == 4, "nothing has happened to the run"


def test_more_processes_may_go_on_in_mid_epoch_with_as_many_rows_together(in_mid_epoch):
    last = in_mid_epoch / "checkpoints" / "last.ckpt"
    now = torch.load(last, weights_only=True)["settings"]
    assert (now["data.batch_size"], now["processes"]) == (4, 1)
    refuse_other_settings(last, {**now, "data.batch_size": 2, "processes": 2})
    with pytest.raises(UserError, match=r"processes was 1 and is 2, and the run stopped in the middle of epoch 1"):
        refuse_other_settings(last, {**now, "processes": 2})


def test_at_an_epochs_end_the_batches_may_change(whole):
    last = whole / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    assert unfinished_epoch(checkpoint) is None
    now = {**checkpoint["settings"], "data.batch_size": 8, "trainer.accumulate_grad_batches": 1}
    refuse_other_settings(last, now)
    with pytest.raises(UserError, match="data was shapes and is coco, which"):
        refuse_other_settings(last, {**now, "data": "coco"})


def test_a_checkpoint_of_before_there_were_settings_is_refused(whole, tmp_path):
    checkpoint = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    (tmp_path / "checkpoints").mkdir()
    torch.save({**checkpoint, "settings": None}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=rf"an older version, .* with model\.init_from=.*{tmp_path.name}$"):
        refuse_other_settings(tmp_path / "checkpoints" / "last.ckpt", checkpoint["settings"])


def test_the_same_architecture_passes_whatever_its_dropout(path):
    other = small_captioner(TOKENIZER.vocab_size, dropout=0.3, attention_dropout=0.1)
    refuse_other_architecture(path, other.description(), TOKENIZER.to_json())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"decoder_layers": 3}, r"network\.decoder\.n_layer was 2 and is 3"),
        ({"encoder_width": 64}, r"network\.encoder\.hidden_size was 32 and is 64"),
        ({"image_size": 24}, r"network\.encoder\.image_size was 16 and is 24"),
        ({"patch_size": 4}, r"network\.encoder\.patch_size was 8 and is 4"),
        ({"max_positions": 64}, r"network\.decoder\.n_positions was 48 and is 64"),
    ],
)
def test_another_architecture_is_refused_by_what_differs(path, changed, named):
    other = small_captioner(TOKENIZER.vocab_size, **changed)
    with pytest.raises(UserError, match=rf"another architecture \(.*{named}.*\); leave the model as it was"):
        refuse_other_architecture(path, other.description(), TOKENIZER.to_json())


def test_another_tokenizer_of_the_same_size_is_refused(path):
    other = TOKENIZER.to_json().replace('"man"', '"men"')
    with pytest.raises(UserError, match=r"trained with another tokenizer; leave data\.tokenizer as it was"):
        refuse_other_architecture(path, CAPTIONER.description(), other + " ")
