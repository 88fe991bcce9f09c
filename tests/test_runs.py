"""Checkpoints are read as data, and refused in one sentence when they are not ours."""

import pickle
from pathlib import Path

import pytest
import torch
from support import Touches, checkpoint_of, small_captioner, trained_tokenizer

from captioning.errors import UserError
from captioning.model.build import load_captioner
from captioning.model.huggingface import save_model
from captioning.runs import checkpoint_file, read_checkpoint
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
    last.touch()
    assert checkpoint_file(tmp_path) == last
    best.touch()
    assert checkpoint_file(tmp_path) == best
    assert checkpoint_file(str(last)) == last


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
