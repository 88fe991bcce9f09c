"""What share of a training step does `train.py` spend outside loading, forward, backward and optimizer?

python benchmarks/loop_overhead.py [--small] [--steps N]

A run through `train(cfg)` on drawn shapes, progress bar, logger and callbacks included, in which those four parts are
timed where Lightning calls them. The rest of a step is Lightning's loop and our callbacks. Shares are of medians, so
that a step which the machine interrupts does not count. Full size is ViT-B/16 and GPT-2 small but for the vocabulary,
which is small here, and 4 pictures a step; tiny is `model=tiny` and 16.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Ratio, at_most, publish, ratio_table, setting, table
from torch.utils.data.dataloader import _BaseDataLoaderIter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from captioning.cli import configured
from captioning.config import TrainConfig
from captioning.training import module
from captioning.training.reports import MetricRows
from captioning.training.run import train

PARTS = ("loading", "forward", "backward", "optimizer")
BOUNDS = {"tiny": 0.15, "full size": 0.05}
RUN = [
    "data=shapes",
    "model=tiny",
    "optimizer=adamw",
    "trainer=cpu",
    "logger=csv",
    "trainer.max_epochs=1",
    "trainer.num_sanity_val_steps=0",
]
ALL_TRAINS = "stage.phases=[{from_epoch:0,train:[cross_attention,decoder,encoder]}]"
SIZES = {
    "tiny": ["data.batch_size=16"],
    "full size": [
        *("data.batch_size=4", "model.image_size=224", "model.patch_size=16"),
        *(f"model.{half}_{what}" for half in ("encoder", "decoder") for what in ("width=768", "layers=12", "heads=12")),
    ],
}
WARM_UP_STEPS = 3

steps: list[dict[str, float]] = []  # seconds of each part of each step, and of the whole
now = dict.fromkeys(PARTS, 0.0)


def timed(part: str, function: Callable) -> Callable:
    """The function, its seconds added to `part` of the step."""

    def measured(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            now[part] += time.perf_counter() - start

    return measured


def without_closure(step: Callable) -> Callable:
    """AdamW's step without the forward and backward passes that Lightning has it call."""

    def measured(self: Any, closure: Callable) -> Any:
        loss = closure()
        return timed("optimizer", step)(self, lambda: loss)

    return measured


def end_step(function: Callable) -> Callable:
    """Our last callback of a step; from here to here is one step."""
    last = [time.perf_counter()]

    def measured(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        end = time.perf_counter()
        steps.append({**now, "step": end - last[0]})
        last[0] = end
        now.update(dict.fromkeys(PARTS, 0.0))
        return result

    return measured


def watch() -> None:
    """Time the parts of every step from now on."""
    _BaseDataLoaderIter.__next__ = timed("loading", _BaseDataLoaderIter.__next__)
    module.CaptioningModule.training_step = timed("forward", module.CaptioningModule.training_step)
    torch.Tensor.backward = timed("backward", torch.Tensor.backward)
    module.scale_and_clip = timed("optimizer", module.scale_and_clip)
    torch.optim.AdamW.zero_grad = timed("optimizer", torch.optim.AdamW.zero_grad)
    torch.optim.AdamW.step = without_closure(torch.optim.AdamW.step)
    MetricRows.on_train_batch_end = end_step(MetricRows.on_train_batch_end)


def run(size: str, count: int) -> list[dict[str, float]]:
    """The steps of one epoch, without its first few."""
    steps.clear()
    enough = (count + WARM_UP_STEPS) * 16  # pictures
    counts = [f"data.train_pictures={enough}", "data.val_pictures=4", "data.test_pictures=4"]
    counts += [f"trainer.limit_train_batches={count + WARM_UP_STEPS}"]
    with tempfile.TemporaryDirectory() as folder:
        train(configured(TrainConfig, *RUN, ALL_TRAINS, *counts, *SIZES[size], f"run_dir={folder}"))
    return steps[WARM_UP_STEPS:]


def row(size: str, measured: list[dict[str, float]]) -> tuple[list[str], Ratio]:
    """A line of the table: milliseconds; and the share of what is left."""
    parts = [statistics.median(step[part] for step in measured) for part in PARTS]
    rest = statistics.median(step["step"] - sum(step[part] for part in PARTS) for step in measured)
    whole = statistics.median(step["step"] for step in measured)
    milliseconds = [f"{1000 * seconds:.2f}" for seconds in (*parts, rest, whole)]
    what = f"training loop's share, {size}"
    share = at_most(what, f"{milliseconds[-2]} ms", f"step {milliseconds[-1]} ms", rest / whole, BOUNDS[size])
    return [size, *milliseconds], share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="model=tiny alone")
    parser.add_argument("--steps", type=int, default=100, help="of model=tiny; at full size a tenth of it")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    watch()
    sizes = (
        {"tiny": arguments.steps} if arguments.small else {"tiny": arguments.steps, "full size": arguments.steps // 10}
    )
    rows, shares = zip(*(row(size, run(size, count)) for size, count in sizes.items()), strict=True)
    print(f"{setting()}\n")
    print(table(["model", *(f"{part}, ms" for part in PARTS), "rest, ms", "step, ms"], rows), "\n")
    print(ratio_table(shares))
    sys.exit(publish(shares))


if __name__ == "__main__":
    main()
