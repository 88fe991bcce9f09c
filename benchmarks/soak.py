"""Does a run that goes on for hours keep its memory and its file handles?

python benchmarks/soak.py [--small] [--epochs N]

`train.py` on drawn shapes in a process of its own, with everything that a long run does again and again: 20 optimizer
steps an epoch, then a validation, captions and their scores, W&B's table and heat maps, curves, two checkpoints; with
two loader workers and W&B offline. 360 epochs are 7,200 steps, two hours at a step a second. Once an epoch it is read
from /proc (Linux) what the run and each of its loader workers have: resident memory, and open file handles. The slope
is that of the least-squares line through all but the first quarter, in which allocators find their size.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from measuring import Ratio, at_most, publish, ratio_table, setting, table

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
STEPS_AN_EPOCH = 20
EPOCHS, SMALL_EPOCHS = 360, 40
RUN = (
    *("data=shapes", "model=tiny", "stage=full", "trainer=cpu", "logger=wandb", "data.num_workers=2"),
    *(f"data.train_pictures={8 * STEPS_AN_EPOCH}", "data.batch_size=8", "data.val_pictures=16", "data.test_pictures=8"),
    *("model.image_size=32", "model.encoder_layers=1", "model.decoder_layers=1", "scores.pictures=8"),
    *("sample_pictures=4", "decoding.max_new_tokens=12", "trainer.enable_progress_bar=false"),
)
MOST_GROWTH = 0.05  # of resident memory, over the whole run
QUIET_SECONDS = 0.2  # between looks at whether an epoch has ended


class Reading(NamedTuple):
    """What the run's processes have at an epoch's end."""

    epoch: int
    training_mb: float  # resident memory of the process that trains
    workers_mb: float  # and of its loader workers together
    handles: int  # open files, pipes and sockets of all of them


def main() -> int:
    """Run, read, and print the slopes."""
    parser = argparse.ArgumentParser(description="memory and file handles of a long run")
    parser.add_argument("--small", action="store_true", help=f"{SMALL_EPOCHS} epochs")
    parser.add_argument("--epochs", type=int)
    arguments = parser.parse_args()
    epochs = arguments.epochs or (SMALL_EPOCHS if arguments.small else EPOCHS)
    print(f"{setting()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        readings = soaked(Path(folder), epochs)
        minutes = (time.perf_counter() - start) / 60
    print(f"{epochs} epochs, {epochs * STEPS_AN_EPOCH} steps in {minutes:.1f} minutes\n")
    print(table(list(Reading._fields), [[f"{value:.0f}" for value in r] for r in readings[:: max(1, epochs // 12)]]))
    settled = readings[len(readings) // 4 :]
    ratios = [
        growth("memory of the training process, MB", settled, [r.training_mb for r in settled], epochs),
        growth("memory of its loader workers, MB", settled, [r.workers_mb for r in settled], epochs),
        growth("file handles of all", settled, [float(r.handles) for r in settled], epochs),
    ]
    print(f"\n{ratio_table(ratios)}")
    return publish(ratios)


def soaked(folder: Path, epochs: int) -> list[Reading]:
    """A reading for each epoch that was met; the run must end well."""
    with (folder / "output.txt").open("w+") as output:
        command = [sys.executable, str(TRAIN), *RUN, f"trainer.max_epochs={epochs}", f"run_dir={folder / 'run'}"]
        run = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        readings: list[Reading] = []
        while run.poll() is None:
            time.sleep(QUIET_SECONDS)
            done = epochs_done(folder / "run" / "results.md")
            if 0 < done < epochs and (not readings or done > readings[-1].epoch):
                readings.append(reading(run.pid, done))
        if run.returncode:
            output.seek(0)
            sys.exit(f"the run ended with status {run.returncode}:\n{output.read()[-3000:]}")
    return readings


def epochs_done(results: Path) -> int:
    """Rows of the table of epochs."""
    return max(0, len(results.read_text(encoding="utf-8").splitlines()) - 2) if results.is_file() else 0


def reading(training: int, epoch: int) -> Reading:
    """What /proc says now; W&B's own service, which is another program, is left out."""
    workers = [pid for pid in children(training) if "wandb" not in (Path("/proc") / str(pid) / "comm").read_text()]
    return Reading(
        epoch,
        resident_mb(training),
        sum(map(resident_mb, workers)),
        sum(len(list((Path("/proc") / str(pid) / "fd").iterdir())) for pid in (training, *workers)),
    )


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    threads = (Path("/proc") / str(pid) / "task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def resident_mb(pid: int) -> float:
    """RSS of a process."""
    status = (Path("/proc") / str(pid) / "status").read_text()
    return next(int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmRSS"))


def growth(what: str, readings: Sequence[Reading], values: Sequence[float], epochs: int) -> Ratio:
    """The slope by epoch, and what it would come to over the run beside what there is."""
    line = statistics.linear_regression([r.epoch for r in readings], values)
    typical = statistics.median(values)
    beside = f"{line.slope:+.4f} an epoch"
    return at_most(what, f"{typical:.1f}", beside, line.slope * epochs / typical, MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
