"""AdamW beside Muon at equal time: the best of some rates for each, with several seeds.

python benchmarks/optimizers.py [--seconds S] [--scales X ...] [--seeds N ...] -- OVERRIDE ...

The overrides are those of `python train.py`; what they compose is trained on one thread for as many steps as AdamW and
Muon each take in S CPU seconds, a step of each measured first. X multiplies the stage's learning rates. The rate is
chosen by seed 0, which is not among the seeds that count; a line is printed for each training.
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from statistics import mean, stdev

from measuring import Ratio, publish, ratio_table, setting, table

from captioning.cli import configured
from captioning.config import GROUPS, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
OPTIMIZERS = ("adamw", "muon")
ONLY_TRAINING = ("logger=csv", "scores=0", "sample_pictures=0", "trainer.num_sanity_val_steps=0")
CHOOSING_SEED = 0


class Training:
    """`train.py` with some overrides, as a process of its own on one thread."""

    def __init__(self, overrides: Sequence[str], epochs: int):
        self._overrides, self._epochs = overrides, epochs
        rates = configured(TrainConfig, *overrides).stage.learning_rates
        self._rates = {group: rate for group in GROUPS if (rate := getattr(rates, group))}

    def __call__(self, optimizer: str, scale: float, seed: int, steps: int) -> tuple[float, float]:
        """The lowest validation perplexity, and the process's CPU seconds, start and validations included."""
        rates = [f"stage.learning_rates.{group}={rate * scale:g}" for group, rate in self._rates.items()]
        with tempfile.TemporaryDirectory() as folder:
            own = [f"optimizer={optimizer}", f"seed={seed}", f"trainer.max_epochs={self._epochs}"]
            own += [f"trainer.limit_train_batches={steps // self._epochs}", "trainer.limit_test_batches=1"]
            own.append(f"run_dir={folder}/run")
            command = [sys.executable, "train.py", *self._overrides, *ONLY_TRAINING, *own, *rates]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode:
                sys.exit(f"{' '.join(command)} ended with status {done.returncode}\n{done.stderr[-2000:]}")
            with Path(folder, "run", "metrics.csv").open(newline="", encoding="utf-8") as file:
                found = [float(row["val/perplexity"]) for row in csv.DictReader(file) if row["val/perplexity"]]
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        what = f"{optimizer}, rates x {scale:g}, seed {seed}"
        print(f"{what}: {steps} steps, {seconds:.0f} CPU s, {min(found):.4g}", flush=True)
        return min(found), seconds

    def seconds_a_step(self, optimizer: str, few: int, many: int) -> float:
        """Of CPU, in the mean of the steps that one training takes more than the other."""
        few, many = few * self._epochs, many * self._epochs
        return (self(optimizer, 1, 0, many)[1] - self(optimizer, 1, 0, few)[1]) / (many - few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=50, help="of AdamW's and of Muon's steps")
    parser.add_argument("--epochs", type=int, default=3, help="into which the steps are divided, for validations")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--steps", type=int, nargs=2, metavar=OPTIMIZERS, help="instead of measuring a step of each")
    parser.add_argument("overrides", nargs="*", default=["data=shapes", "model=tiny", "stage=together"])
    arguments = parser.parse_args()
    training, steps, rows, best = Training(arguments.overrides, arguments.epochs), {}, [], {}
    print(f"{setting()}\n{' '.join(arguments.overrides)}\n", flush=True)
    for place, optimizer in enumerate(OPTIMIZERS):
        if arguments.steps:
            steps[optimizer] = arguments.steps[place]
        else:
            steps[optimizer] = round(arguments.seconds / training.seconds_a_step(optimizer, 2, 15))
    for optimizer in OPTIMIZERS:
        tried = {scale: training(optimizer, scale, CHOOSING_SEED, steps[optimizer])[0] for scale in arguments.scales}
        scale = min(tried, key=tried.__getitem__)
        found = [training(optimizer, scale, seed, steps[optimizer])[0] for seed in arguments.seeds]
        best[optimizer] = exp(mean(map(log, found)))
        spread = f"{stdev(map(log, found)):.1%}" if len(found) > 1 else ""
        rows.append(
            [optimizer, str(steps[optimizer]), ", ".join(f"x {at:g}: {value:.4g}" for at, value in tried.items()),
             ", ".join(f"{value:.4g}" for value in found), f"{best[optimizer]:.4g}", spread]
        )  # fmt: skip
    seeds = ", ".join(map(str, arguments.seeds))
    print("\n" + table(["optimizer", "steps", "rates, seed 0", f"seeds {seeds}", "mean", "spread"], rows) + "\n")
    peer = f"AdamW {best['adamw']:.4g}"
    ratio = Ratio("perplexity at equal time", f"Muon {best['muon']:.4g}", peer, best["muon"] / best["adamw"])
    print(ratio_table([ratio]))
    sys.exit(publish([ratio]))


if __name__ == "__main__":
    main()
