"""What comes from strangers runs no code, and what a run leaves behind holds no secret."""

import pickle
import shutil

import pytest
import torch
from small_runs import TINY, composed
from support import Touches

from captioning.training.run import train

SECRETS = {
    "WANDB_API_KEY": "d1b2c3a4e5f60718293a4b5c6d7e8f9001122334",
    "HF_TOKEN": "hf_notARealTokenButLongEnough",
    "AWS_SECRET_ACCESS_KEY": "wJalrNotARealKeyButLongEnough",
    "SOME_VARIABLE": "an environment variable of mine",
}


PLACES = {
    "beside the weights": lambda checkpoint, evil: {**checkpoint, "more": evil},
    "in the optimizer's state": lambda checkpoint, evil: {**checkpoint, "optimizer_states": [evil]},
    "in a callback's state": lambda checkpoint, evil: {**checkpoint, "callbacks": {"best": evil}},
    "in the loops": lambda checkpoint, evil: {**checkpoint, "loops": evil},
    "in the model's description": lambda checkpoint, evil: {
        **checkpoint,
        "captioner": {**checkpoint["captioner"], "description": evil},
    },
    "as the whole file": lambda checkpoint, evil: evil,
}


EVERY_USE = [(use, "beside the weights") for use in ("checkpoint=", "model.init_from=", "resume=")]
EVERY_PLACE = [("checkpoint=", place) for place in list(PLACES)[1:]]


@pytest.mark.parametrize(("use", "place"), EVERY_USE + EVERY_PLACE)
def test_a_checkpoint_made_to_run_code_is_refused_by_name_and_runs_none(
    command, predict_command, whole, tmp_path, use, place
):
    run_dir, proof = shutil.copytree(whole, tmp_path / "run"), tmp_path / "proof"
    checkpoints = [run_dir / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    checkpoint = torch.load(checkpoints[0], weights_only=True)
    for path in checkpoints:
        torch.save(PLACES[place](checkpoint, Touches(proof)), path)
    (tmp_path / "a.png").touch()
    (run_dir / ".hydra").mkdir()
    (run_dir / ".hydra" / "overrides.yaml").write_text("".join(f"- '{one}'\n" for one in TINY))
    others = [one for one in TINY if not one.startswith("model.")]
    given = {
        "checkpoint=": [
            f"checkpoint={run_dir}",
            f"input={tmp_path / 'a.png'}",
            f"output={tmp_path}/c.jsonl",
        ],
        "model.init_from=": ["train.py", *others, f"model.init_from={run_dir}", f"run_dir={tmp_path / 'new'}"],
        "resume=": ["train.py", f"resume={run_dir}", "trainer.max_epochs=4"],
    }
    status, output = (predict_command if use == "checkpoint=" else command)(*given[use])
    assert status == 1 and "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert f"{run_dir}/checkpoints/" in line and "was not loaded, since that could run code" in line
    assert not proof.exists()
    pickle.loads(pickle.dumps(Touches(proof)))
    assert proof.exists(), "it would have run"


def test_logs_and_checkpoints_carry_no_key_and_no_environment_variable(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run_dir = train(composed(tmp_path / "run", "logger=wandb", "trainer.max_epochs=1")).run_dir
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {".ckpt", ".wandb", ".csv", ".md", ".png"} <= {path.suffix for path in files}
    for path in files:
        data = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in data], path
