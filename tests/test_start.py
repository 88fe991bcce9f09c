"""Help and the commonest mistakes are answered at once: before torch, which takes seconds, is imported."""

import json
import subprocess
import sys
from zipfile import ZipFile

from conftest import ROOT

ANSWERS = [
    ("train.py --help", "flickr8k"),
    ("train.py trainer.max_epoch=3", "did you mean trainer.max_epochs"),
    ("train.py data=cocoo", "did you mean coco"),
    ("train.py data=coco data.root=nowhere run_dir={folder}", "data.root=nowhere does not exist"),
    ("train.py experiment=demo data.batch_size=abc run_dir={folder}/run", "must be auto, or a whole number of at"),
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
    ("predict.py checkpoint={folder}/a.ckpt output={folder} input=nowhere", "name another folder"),
    ("predict.py checkpoint={folder}/notes.txt output={folder}/c.jsonl input={folder}", "damaged or is no checkpoint"),
    ("predict.py checkpoint={folder}/a.ckpt input={folder} device=gpu", "device=gpu must be auto, cpu, cuda"),
    ("predict.py checkpoint={folder}/a.ckpt data=shapes split=vla", "split=vla is none of train, val, test"),
]

# Each script as a shell would run it, and then whether anything heavy came with it; all of them are forked from one
# process that has imported what they begin with, and remembers what was composed.
AS_A_SHELL_WOULD = """
import json, os, runpy, sys
sys.path[:0] = [os.getcwd(), "tests"]
import captioning.prediction.plan, small_runs
small_runs.remember_compositions()
for name in ("train", "predict", "prepare"):
    small_runs.composition(name)
for arguments, path in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        answers = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(answers, 1), os.dup2(answers, 2)
        sys.argv, status = arguments, 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):
                print(status)
                status = 1
        finally:
            heavy = {"torch", "torchvision", "lightning", "transformers", "wandb"} & sys.modules.keys()
            print("imported:", sorted(heavy), "status:", status, flush=True)
            os._exit(0)
    os.waitpid(child, 0)
"""


def test_help_and_mistakes_are_answered_without_torch(tmp_path):
    ZipFile(tmp_path / "a.ckpt", "w").close()  # as far as is looked
    (tmp_path / "notes.txt").write_text("words")
    asked = [
        (arguments.format(folder=tmp_path).split(), str(tmp_path / f"{number}.txt"))
        for number, (arguments, _) in enumerate(ANSWERS)
    ]
    subprocess.run([sys.executable, "-c", AS_A_SHELL_WOULD], input=json.dumps(asked), cwd=ROOT, text=True, check=True)
    for number, (arguments, said) in enumerate(ANSWERS):
        answer = (tmp_path / f"{number}.txt").read_text()
        status = 0 if "--help" in arguments else 1
        assert said in answer and answer.endswith(f"imported: [] status: {status}\n"), f"{arguments}: {answer}"


def test_a_mistake_ends_a_shells_command_with_status_1():
    command = [sys.executable, "train.py", "trainer.max_epoch=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "did you mean trainer.max_epochs" in done.stderr and done.returncode == 1
