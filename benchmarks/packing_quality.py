"""How much sooner does training reach a validation perplexity when a picture's captions share one row?

python benchmarks/packing_quality.py [--small] [--photographs ROOT] [--seconds N]

Two runs of model=tiny through `train(cfg)`, alike but for `data.captions_per_image`: all of a picture's captions in a
row (packed), or one. Both take as many captions a step, so the packed run's steps see a fifth of the pictures. They run
side by side, one thread each, so that whatever else the machine does meets both. Validation is not counted. ROOT is a
folder with Flickr8k: photographs instead of drawn shapes. Packing gains what it saves of encoding: a demo
whose encoder is a smaller part of its work begins 2.3 times faster and is 1.2 times sooner at the end.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
from measuring import at_least, publish, ratio_table, setting, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from captioning.cli import configured
from captioning.config import TrainConfig
from captioning.training.run import train

Curve = list[tuple[float, float]]  # (seconds of training, validation perplexity)
LEAST = 2.0  # times sooner
SHOWN = 8  # points of a curve
RUNS = {  # captions of a row at most (shapes' pictures have 4 to 6, Flickr8k's 5), and rows of a step
    "packed": (6, 32),
    "one a row": (1, 160),
}

COMMON = [
    *("model=tiny", "optimizer=adamw", "optimizer.betas=[0.9,0.95]"),
    *("trainer=cpu", "trainer._target_=__main__.clocked_trainer", "trainer.max_epochs=100000", "logger=csv"),
    *("sample_pictures=0", "stage.warmup_steps=50", "stage.decay=none", "trainer.num_sanity_val_steps=0"),
    *("trainer.limit_train_batches=20", "trainer.limit_test_batches=1"),
    "stage.learning_rates={cross_attention:1e-3,decoder:1e-3,encoder:1e-3}",
    "stage.phases=[{from_epoch:0,train:[cross_attention,decoder,encoder]}]",
]
SHAPES = ["data=shapes", "data.train_pictures=16000", "data.val_pictures=200", "data.test_pictures=4"]
PHOTOGRAPHS = [
    *("data=flickr8k", "data.tokenizer=null", "data.num_workers=0", "data.on_missing=skip"),
]


class Clock(L.Callback):
    """Notes the validation perplexity against seconds of training, and ends the run when they are spent."""

    def __init__(self, seconds: float):
        self.curve: Curve = []
        self._limit, self._spent, self._since = seconds, 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._spent += time.perf_counter() - self._since

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.curve.append((self._spent, float(trainer.callback_metrics["val/perplexity"])))
        trainer.should_stop = self._spent > self._limit


clock = Clock(0)


def clocked_trainer(callbacks: list[L.Callback], **arguments: Any) -> L.Trainer:
    """`lightning.Trainer` with the clock among its callbacks."""
    return L.Trainer(callbacks=[clock, *callbacks], **arguments)


def curve_of(run: str, seconds: float, root: str | None) -> Curve:
    """Train for so many seconds."""
    clock.__init__(seconds)  # type: ignore[misc]
    data = SHAPES if root is None else [*PHOTOGRAPHS, f"data.root={root}"]
    captions, rows = RUNS[run]
    packing = [f"data.captions_per_image={captions}", f"data.batch_size={rows}"]
    with tempfile.TemporaryDirectory() as folder:
        train(configured(TrainConfig, *data, *COMMON, *packing, f"run_dir={folder}"))
    return clock.curve


def side_by_side(options: list[str]) -> dict[str, Curve]:
    """Both runs at once, each a process with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = {
        run: subprocess.Popen(
            [sys.executable, __file__, "--one", run, *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for run in RUNS
    }
    outputs = {run: process.communicate()[0] for run, process in started.items()}
    if any(process.returncode for process in started.values()):
        sys.exit(f"a run failed; see it with python {__file__} --one packed {' '.join(options)}")
    return {run: json.loads(output.splitlines()[-1]) for run, output in outputs.items()}


def seconds_to(curve: Curve, perplexity: float) -> float:
    """When the curve first reaches `perplexity`, straight between its points; infinite if it never does."""
    before = (0.0, math.inf)
    for seconds, reached in curve:
        if reached <= perplexity:
            part = (before[1] - perplexity) / (before[1] - reached) if math.isfinite(before[1]) else 1.0
            return before[0] + part * (seconds - before[0])
        before = (seconds, reached)
    return math.inf


def curves_table(curves: dict[str, Curve]) -> str:
    """When each run first reached perplexities between the first and the last of the packed run."""
    highest, lowest = curves["packed"][0][1], min(perplexity for _, perplexity in curves["packed"])
    levels = [highest * (lowest / highest) ** (n / (SHOWN - 1)) for n in range(SHOWN - 1)] + [lowest]
    reached = [[seconds_to(curve, level) for curve in curves.values()] for level in levels]
    rows = [
        [f"{level:.3f}", *(f"{seconds:.1f}" if math.isfinite(seconds) else "-" for seconds in row)]
        for level, row in zip(levels, reached, strict=True)
    ]
    return table(["validation perplexity", *(f"{run}, s" for run in curves)], rows)


def times_sooner(packed: Curve, other: Curve) -> tuple[float, float]:
    """The lowest perplexity that both reach, and how many times sooner packing does."""
    target = max(min(perplexity for _, perplexity in curve) for curve in (packed, other))
    return target, seconds_to(other, target) / seconds_to(packed, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="15 seconds of training")
    parser.add_argument("--seconds", type=float, default=120, help="of training")
    parser.add_argument("--photographs", metavar="ROOT", help="a folder with Flickr8k")
    parser.add_argument("--one", choices=list(RUNS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seconds = 15.0 if arguments.small else arguments.seconds
    if arguments.one:
        with contextlib.redirect_stdout(sys.stderr):
            curve = curve_of(arguments.one, seconds, arguments.photographs)
        print(json.dumps(curve))
        return
    data = "Flickr8k's photographs" if arguments.photographs else "shapes"
    print(
        f"{setting()}\n{data}, model=tiny; {seconds:.0f} seconds of training each, side by side, a thread each\n",
        flush=True,
    )
    photographs = ["--photographs", arguments.photographs] if arguments.photographs else []
    curves = side_by_side(["--seconds", str(seconds), *photographs])
    print(f"{curves_table(curves)}\n")
    target, sooner = times_sooner(curves["packed"], curves["one a row"])
    reached = [f"{run} {seconds_to(curve, target):.1f} s" for run, curve in curves.items()]
    ratio = at_least(f"packing: to perplexity {target:.2f}, {data}", *reached, sooner, LEAST)
    print(ratio_table([ratio]))
    sys.exit(publish([ratio]))


if __name__ == "__main__":
    main()
