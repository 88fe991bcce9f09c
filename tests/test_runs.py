"""A run's folder has one owner; its checkpoints are read as data, and refused in a sentence when they are not ours."""

import os
import pickle
import signal
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from small_runs import composed
from support import Touches, checkpoint_of, small_captioner, trained_tokenizer

from captioning.cli import prepared_arguments
from captioning.errors import UserError
from captioning.model.build import load_captioner
from captioning.model.huggingface import save_model
from captioning.runs import checkpoint_file, disown, own, read_checkpoint
from captioning.training.run import train
from captioning.weights import HuggingFaceModel

TOKENIZER = trained_tokenizer()
CAPTIONER = small_captioner(TOKENIZER.vocab_size)


@pytest.fixture
def path(tmp_path) -> Path:
    torch.save(checkpoint_of(CAPTIONER, TOKENIZER), tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_a_captioner_comes_back_ready_to_generate(path):
    captioner, tokenizer = load_captioner(path)
    saved = CAPTIONER.state_dict()
    assert captioner.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in captioner.state_dict().items())
    assert captioner.picture_format == CAPTIONER.picture_format
    assert not captioner.training
    assert tokenizer.to_json() == TOKENIZER.to_json()


def test_the_best_checkpoint_of_a_run_is_meant_or_else_its_last(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    last, best = (tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    ZipFile(last, "w").close()
    assert checkpoint_file(tmp_path) == last
    ZipFile(best, "w").close()
    assert checkpoint_file(tmp_path) == best
    assert checkpoint_file(str(last)) == last
    best.write_text("words")
    with pytest.raises(UserError, match=rf"checkpoint={tmp_path}: {best} is damaged or is no checkpoint; give one"):
        checkpoint_file(tmp_path)


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"checkpoint={tmp_path}/none is not there; give a run folder of train\.py"):
        checkpoint_file(tmp_path / "none")
    with pytest.raises(
        UserError, match=r"holds no checkpoints/best\.ckpt or checkpoints/last\.ckpt, and no config\.json.*; give"
    ):
        checkpoint_file(tmp_path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "plain pickle"])
def test_a_checkpoint_with_code_in_it_is_refused_and_its_code_not_run(tmp_path, legacy):
    path, proof = tmp_path / "evil.ckpt", tmp_path / "proof"
    evil = {**checkpoint_of(CAPTIONER, TOKENIZER), "more": Touches(proof)}
    if legacy:
        path.write_bytes(pickle.dumps(evil["more"]))
    else:
        torch.save(evil, path)
    with pytest.raises(UserError, match=rf"checkpoint {path} .*[Gg]ive"):
        read_checkpoint(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Touches(proof)))
    assert proof.exists(), "it would have run"


@pytest.mark.parametrize("kept", [0, 10, 5000, -100])
def test_a_truncated_checkpoint_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"checkpoint {path} (is damaged|holds more).*[Gg]ive"):
        read_checkpoint(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "page.ckpt").write_text("<html>Not found</html>")
    with pytest.raises(UserError, match="is no checkpoint"):
        read_checkpoint(tmp_path / "page.ckpt")


FOREIGN = [
    {"state_dict": {}},
    {"captioner": {}},
    {"captioner": 3, "state_dict": {}},
    {"captioner": {"tokenizer": ""}, "state_dict": {}},
    torch.zeros(3),
    [1, 2],
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_another_programs_checkpoint_is_refused(tmp_path, foreign):
    torch.save(foreign, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"of another program or architecture; give one that train\.py wrote"):
        read_checkpoint(tmp_path / "foreign.ckpt")


def test_weights_that_do_not_fit_their_own_description_are_refused(tmp_path):
    changed = checkpoint_of(CAPTIONER, TOKENIZER)
    changed["state_dict"].popitem()
    torch.save(changed, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match="weights that do not fit its own description"):
        load_captioner(tmp_path / "odd.ckpt")


def test_a_tokenizer_of_more_tokens_than_the_decoder_has_is_refused(tmp_path):
    save_model(small_captioner(50), tmp_path, {})
    TOKENIZER.save_pretrained(tmp_path, pad_token_id=0)
    with pytest.raises(
        UserError, match=rf"={tmp_path} has a tokenizer of {TOKENIZER.vocab_size} tokens and a decoder of 50"
    ):
        load_captioner(HuggingFaceModel(str(tmp_path), "checkpoint"))


@contextmanager
def held_by_another_process(*folders: Path):
    """A process, forked from this one, that owns these folders until it is killed."""
    ready, say = os.pipe()
    if (child := os.fork()) == 0:
        for folder in folders:
            own(folder)
        os.write(say, b"!")
        time.sleep(60)
        os._exit(1)
    try:
        assert os.read(ready, 1) == b"!"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


COMMAND = ["data=shapes", "model=tiny"]


@pytest.mark.parametrize("key", ["run_dir", "hydra.run.dir", "hydra.sweep.dir"])
def test_a_folder_has_one_owner_whatever_key_names_it(tmp_path, key):
    command = [*(["-m"] if "sweep" in key else []), *COMMAND, f"{key}={tmp_path}"]
    with held_by_another_process(tmp_path), pytest.raises(UserError, match=f"^{key}={tmp_path} belongs to a run that"):
        prepared_arguments(command, "train")
    own(tmp_path)  # the other one was killed
    disown(tmp_path)
    assert not list(tmp_path.iterdir())


def test_of_two_processes_that_resume_one_run_one_is_refused(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- data=shapes\n- model=tiny\n")
    with held_by_another_process(tmp_path), pytest.raises(UserError, match="belongs to a run that is going on"):
        prepared_arguments([f"resume={tmp_path}"], "train")
    with held_by_another_process(tmp_path), pytest.raises(UserError, match="belongs to a run that is going on"):
        train(composed(tmp_path, f"resume={tmp_path}"))


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_run_is_not_replaced_whatever_key_names_its_folder(tmp_path, key):
    run = tmp_path / "0" if "sweep" in key else tmp_path
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    command = [*(["-m"] if "sweep" in key else []), *COMMAND, f"{key}={tmp_path}"]
    with pytest.raises(UserError, match=rf"{key}={tmp_path} already holds .*resume={run}, or choose another"):
        prepared_arguments(command, "train")
    with pytest.raises(UserError, match=f"resume={run}"):  # where a multirun's jobs have names of their own
        train(composed(run))


class Noon:
    """A clock that stands still."""

    @staticmethod
    def now():
        return datetime(2026, 1, 31, 12)  # as Hydra's


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hydra.core.utils.datetime", Noon)
    given = [prepared_arguments(command, "train")[-1] for command in (COMMAND, COMMAND, ["-m", *COMMAND])]
    assert given == [
        "run_dir=runs/2026-01-31_12-00-00",
        "run_dir=runs/2026-01-31_12-00-00-2",
        "hydra.sweep.dir=runs/multirun/2026-01-31_12-00-00",
    ]


def test_of_many_processes_that_want_one_folder_at_once_one_gets_it(tmp_path):
    go, start = os.pipe()
    children = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            os.read(go, 1)
            try:
                own(tmp_path)
                time.sleep(0.8)
            except UserError:
                os._exit(3)
            os._exit(0)
        children.append(child)
    os.write(start, b"!!!!")
    assert sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children) == [0, 3, 3, 3]


def test_other_ranks_leave_the_folder_to_the_first(tmp_path, monkeypatch):
    with held_by_another_process(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        own(tmp_path)


def test_a_loader_that_outlives_its_killed_run_does_not_keep_the_folder(tmp_path):
    ready, say = os.pipe()
    if (run := os.fork()) == 0:
        own(tmp_path)
        if (loader := os.fork()) == 0:
            time.sleep(60)
        os.write(say, str(loader).encode())
        time.sleep(60)
    loader = int(os.read(ready, 20))
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    own(tmp_path, resumes=True)
    os.kill(loader, signal.SIGKILL)
    disown(tmp_path)
