"""How long until something happens: an answer to a mistake, the first training step, the first caption?

python benchmarks/start.py [--small]

Whole commands, as a person starts them, until they end or until their first row is in its file. Beside each stands
the import of torch, lightning and transformers alone, which every program of this kind waits for. --small takes the
median of 1, not of 3.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measuring import Ratio, at_most, publish, ratio_table, setting

ROOT = Path(__file__).resolve().parents[1]
LONGEST_ANSWER = 2.0  # seconds
IMPORTS = ("-c", "import torch, lightning, transformers")
ANSWERS = {  # a command that is answered at once, and its status
    "train.py --help": 0,
    "predict.py --help": 0,
    "train.py data=cocoo": 1,
    "train.py data.batchsize=4": 1,
    "train.py data.batch_size=abc": 1,
    "train.py data=coco data.root=/nowhere": 1,
    "prepare.py data.root=/nowhere": 1,
    "predict.py checkpoint=/nowhere input=/nowhere": 1,
}
TRAIN = (
    *("train.py", "data=shapes", "model=tiny", "trainer=cpu", "logger=csv", "trainer.max_epochs=1"),
    *("trainer.log_every_n_steps=1", "trainer.num_sanity_val_steps=0", "data.train_pictures=640"),
)


def seconds_to_end(*arguments: str, status: int = 0) -> float:
    """Of a Python command in the project's root, which must end with this status."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != status:
        sys.exit(f"python {' '.join(arguments)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def seconds_to_rows(pattern: str, lines: int, folder: Path, *arguments: str) -> float:
    """Until a file of this pattern in the folder has so many lines; the command then runs to its end."""
    start, seen = time.perf_counter(), 0.0
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not seen:
            if any(path.read_bytes().count(b"\n") >= lines for path in folder.glob(pattern)):
                seen = time.perf_counter() - start
            elif process.poll() is not None:
                sys.exit(f"python {' '.join(arguments)} ended without a row of {pattern}")
            time.sleep(0.01)
    return seen


def main(repeats: int) -> int:
    """Print the table; 1 if an answer takes too long."""
    print(f"{setting()}\n", flush=True)
    imports = median(lambda: seconds_to_end(*IMPORTS), repeats)
    beside, ratios = f"imports alone {imports:.1f} s", []
    for command, status in ANSWERS.items():
        seconds = median(partial(seconds_to_end, *command.split(), status=status), repeats)
        bound = f"{LONGEST_ANSWER:.0f} s"
        ratios.append(at_most(command, f"{seconds:.2f} s", bound, seconds / LONGEST_ANSWER, 1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = iter(range(repeats + 1))

        def first_step() -> float:
            run_dir = folder / f"run{next(runs)}"
            return seconds_to_rows(f"{run_dir.name}/metrics.csv", 2, folder, *TRAIN, f"run_dir={run_dir}")

        first = median(first_step, repeats)
        pictures, output = folder / "pictures", folder / "captions.jsonl"
        seconds_to_end("-m", "captioning.shapes", "draw", str(pictures))
        caption = ("predict.py", f"checkpoint={folder / 'run0'}", f"input={pictures}", f"output={output}")

        def first_caption() -> float:
            output.unlink(missing_ok=True)
            (folder / "captions.settings.json").unlink(missing_ok=True)
            return seconds_to_rows("captions*.jsonl", 1, folder, *caption)

        captioned = median(first_caption, repeats)
    ratios.append(Ratio("train.py to the first step, tiny", f"{first:.1f} s", beside, first / imports))
    ratios.append(Ratio("predict.py to the first caption", f"{captioned:.1f} s", beside, captioned / imports))
    print(ratio_table(ratios))
    return publish(ratios)


def median(measured: Callable[[], float], repeats: int) -> float:
    """After one unmeasured turn, which fills the system's file cache."""
    measured()
    return statistics.median(measured() for _ in range(repeats))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the median of 1, not of 3")
    sys.exit(main(1 if parser.parse_args().small else 3))
