"""Does a run that was killed end as the run that was not? And how much work does a kill lose?

python benchmarks/resume.py [--kills 28] [--seed 0] [--processes 2]

Trains a tiny captioner through all three stages, once to its end and then once for each kill: a process that runs
train.py is killed with SIGKILL, at moments drawn from the seed, continued with `resume=`, and compared with the first:
every weight, average and optimizer state of last.ckpt, the weights and averages of best.ckpt, metrics.csv but for the
speed, and results.md, all to the bit. The kills take turns with 0 and 2 loader workers and with 1 and 3 accumulated
batches; every seventh run is killed twice. Processes are forked from one that has imported the libraries, which else
would take most of the time.
Ends with status 1 if one came back different.
"""

import argparse
import csv
import os
import random
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from measuring import setting, table

from captioning.runs import AVERAGE

ROOT = Path(__file__).resolve().parents[1]
EPOCHS, BATCHES = 4, 30  # of each epoch; divisible by 2 and 3
RUN = (
    *("data=shapes", "model=tiny", "stage=full", "trainer=cpu", "logger=csv", "trainer.deterministic=true"),
    *(f"data.train_pictures={8 * BATCHES}", "data.val_pictures=48", "data.test_pictures=8", "data.batch_size=8"),
    "data.captions_per_image=6",  # one row for each picture
    *("model.image_size=24", "model.encoder_width=32", "model.encoder_layers=1", "model.encoder_heads=2"),
    *("model.decoder_width=32", "model.decoder_layers=1", "model.decoder_heads=2", "model.dropout=0.1"),
    *("stage.warmup_steps=10", f"trainer.max_epochs={EPOCHS}", "trainer.log_every_n_steps=3", "scores.pictures=8"),
    *("checkpoints.every_n_steps=4", "checkpoints.every_minutes=null", "trainer.val_check_interval=0.5"),
    "ema_decay=0.9",
    "trainer.enable_progress_bar=false",
)
SPEED = "captions_per_second"


class Kill(NamedTuple):
    """One kill and what became of it."""

    moment: str
    workers: int
    accumulate: int
    step: int  # optimizer steps that metrics.csv had seen
    resumed_from: int  # step of the checkpoint; 0 where there was none yet
    different: list[str]


class Command:
    """train.py with these arguments, in a process of its own."""

    def __init__(self, *arguments: str):
        self._arguments, self.status = arguments, None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self._pid = os.fork() or self._run()

    def _run(self) -> NoReturn:
        for stream in (1, 2):
            os.dup2(self._said.fileno(), stream)
        os.chdir(ROOT)
        sys.argv[:] = ["train.py", *self._arguments]
        try:
            runpy.run_path("train.py", run_name="__main__")
        except SystemExit as end:
            print(end.code)
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)

    def ended(self) -> bool:
        """Whether it has come to an end."""
        if self.status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def finish(self) -> None:
        """Wait for its end; if that was none in peace, end the benchmark with what it said."""
        if self.status is None:
            self.status = os.waitpid(self._pid, 0)[1]
        if self.status:
            self._said.seek(0)
            raise RuntimeError(f"{self._arguments} ended with {self.status}:\n{self._said.read().decode()[-3000:]}")

    def kill(self) -> None:
        """With SIGKILL; loader workers notice it and end themselves."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def differences(run: Path, other: Path) -> list[str]:
    """What two runs have left that is not equal to the bit."""
    found = []
    for name in ("last", "best"):
        ours, theirs = (torch.load(at / "checkpoints" / f"{name}.ckpt", weights_only=True) for at in (run, other))
        keys = ("state_dict", "optimizer_states", AVERAGE) if name == "last" else ("state_dict", AVERAGE)
        found += [f"{name}.ckpt {key}" for key in keys if not _equal(ours.get(key), theirs.get(key))]
    if _rows(run) != _rows(other):
        found.append("metrics.csv")
    if (run / "results.md").read_bytes() != (other / "results.md").read_bytes():
        found.append("results.md")
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _rows(run: Path) -> list[dict[str, str]]:
    if not (run / "metrics.csv").is_file():
        return []
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop(SPEED, None)
    return rows


def steps_seen(run: Path) -> int:
    """The last optimizer step that metrics.csv has a row of."""
    return max((int(row["step"]) for row in _rows(run)), default=0)


def saved_step(run: Path) -> int:
    """The step of the checkpoint that a resumed run would go on from; loading it proves that it is whole."""
    path = run / "checkpoints" / "last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.is_file() else 0


def in_validation(run: Path) -> bool:
    """Whether the last row is that of the last step before a validation, in mid-epoch or at its end."""
    rows = _rows(run)
    steps = (BATCHES // 2, BATCHES // 3)  # one of them, with 1 and 3 accumulated batches
    return bool(rows) and not rows[-1].get("val/loss") and any(int(rows[-1]["step"]) % n == 0 for n in steps)


def writes_checkpoint(run: Path) -> bool:
    """Whether a checkpoint is half-written."""
    return any(run.glob("checkpoints/.*.tmp"))


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "at any time": lambda run: True,
    "in a validation": in_validation,
    "while a checkpoint is written": writes_checkpoint,
    "at a stage switch": lambda run: "epoch 1: training" in _log(run),
}


def _log(run: Path) -> str:
    return (run / "train.log").read_text() if (run / "train.log").is_file() else ""


def run_and_kill(run: Path, moment: str, at: float, *arguments: str) -> tuple[str, int, int]:
    """Kill it at such a moment, the first that comes so many seconds after its first row.

    Returns:
        What was hit, the steps seen, and the step saved.
    """
    command = Command(*arguments)
    while not steps_seen(run) and not command.ended():
        time.sleep(0.01)
    time.sleep(0 if moment == "at a stage switch" else at)
    while not MOMENTS[moment](run) and not command.ended():
        time.sleep(0.0005)
    if command.ended():
        command.finish()
        return "not, it had ended", steps_seen(run), saved_step(run)
    command.kill()
    return moment, steps_seen(run), saved_step(run)


def uninterrupted(folder: Path, accumulate: int) -> float:
    """Train to the end; the seconds from the first row on."""
    run = folder / f"whole{accumulate}"
    command = Command(*RUN, f"trainer.accumulate_grad_batches={accumulate}", f"run_dir={run}")
    while not steps_seen(run) and not command.ended():
        time.sleep(0.01)
    begun = time.perf_counter()
    command.finish()
    return time.perf_counter() - begun


def killed_and_compared(folder: Path, seconds: dict[int, float], seed: int, number: int) -> Kill:
    """One run, killed, continued and compared with the uninterrupted one, which took so many seconds."""
    random_ = random.Random(f"{seed} {number}")
    workers, accumulate = (0, 2)[number % 2], (1, 3)[number // 2 % 2]
    moment = list(MOMENTS)[max(0, number % 7 - 3)]  # of seven, four at any time
    run = folder / f"killed{number}"
    settings = (f"data.num_workers={workers}", f"trainer.accumulate_grad_batches={accumulate}", f"run_dir={run}")
    latest = (0.9 if moment == "at any time" else 0.5) * seconds[accumulate]  # the moment has to come yet
    hit, step, saved = run_and_kill(run, moment, random_.uniform(0, latest), *RUN, *settings)
    if number % 7 == 0:
        run_and_kill(run, moment, random_.uniform(0, latest / 2), f"resume={run}")
    Command(f"resume={run}").finish()
    done = Kill(hit, workers, accumulate, step, saved, differences(run, folder / f"whole{accumulate}"))
    print(f"{number}: {done}", flush=True)
    return done


def main(kills: int, seed: int, processes: int, folder: Path) -> int:
    """Print the table of kills; 1 if a run came back different."""
    print(f"{setting()}\n", flush=True)
    torch.set_num_threads(1)
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        seconds = dict(zip((1, 3), pool.map(partial(uninterrupted, folder), (1, 3)), strict=True))
        return report(list(pool.map(partial(killed_and_compared, folder, seconds, seed), range(kills))))


def report(done: Sequence[Kill]) -> int:
    """The table for docs/reliability.md."""
    rows = []
    for moment in dict.fromkeys(one.moment for one in done):
        of = [one for one in done if one.moment == moment]
        lost = [max(0, one.step - one.resumed_from) for one in of]
        same = sum(not one.different for one in of)
        rows.append([moment, str(len(of)), str(same), f"{sum(lost) / len(of):.1f}", str(max(lost))])
    print("\n" + table(["killed", "kills", "identical", "steps lost, mean", "steps lost, most"], rows))
    same = sum(not one.different for one in done)
    print(f"\n{same} of {len(done)} came back identical")
    return int(same < len(done))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sys.exit(main(given.kills, given.seed, given.processes, Path(name)))
