"""Help and the commonest mistakes are answered at once: before torch, which takes seconds, is imported."""

import subprocess
import sys

import pytest
from conftest import ROOT

# The script as a shell would run it, and then whether anything heavy came with it.
AS_A_SHELL_WOULD = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    heavy = {"torch", "torchvision", "lightning", "transformers", "wandb"} & sys.modules.keys()
    print("imported:", sorted(heavy))
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train.py --help", "flickr8k"),
        ("train.py trainer.max_epoch=3", "did you mean trainer.max_epochs"),
        ("train.py data=cocoo", "did you mean coco"),
        ("train.py data=coco data.root=nowhere run_dir={folder}", "data.root=nowhere does not exist"),
        ("train.py experiment=demo data.batch_size=abc run_dir={folder}/run", "must be a whole number of at least 1"),
        ("prepare.py --help", "size: 256"),
        ("prepare.py data.root=nowhere", "data.root=nowhere does not exist"),
        ("train.py resume={folder}/none", "is not a run folder"),
        (
            "train.py model.init_from=nowhere experiment=demo run_dir={folder}/run",
            "model.init_from=nowhere is not there",
        ),
        (
            "predict.py checkpoint=nobody/none output={folder}/c.jsonl input={folder}",
            "could not be fetched from the Hug",
        ),
        ("predict.py --help", "sampling"),
        ("predict.py decoding=gredy", "did you mean greedy"),
        ("predict.py checkpoint={folder}/none output={folder}/c.jsonl input={folder}", "none is not there"),
        ("predict.py checkpoint={folder}/a.ckpt output={folder}/c.jsonl input=nowhere", "neither a folder nor a file"),
        ("predict.py checkpoint={folder}/a.ckpt output={folder} input=nowhere", "is a folder; name a file"),
    ],
)
def test_it_is_answered_without_torch(tmp_path, arguments, said):
    (tmp_path / "a.ckpt").touch()
    done = subprocess.run(
        [sys.executable, "-c", AS_A_SHELL_WOULD, *arguments.format(folder=tmp_path).split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said in done.stdout + done.stderr
    assert "imported: []" in done.stdout
    assert done.returncode == (0 if "--help" in arguments else 1)
