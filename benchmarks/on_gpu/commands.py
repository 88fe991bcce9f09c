"""Phases that run train.py and predict.py in this process, and a step as model.compile=true makes it."""

import contextlib
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from torch import nn
from torch._dynamo.utils import counters

from captioning.cli import built, configured
from captioning.config import PredictConfig, TrainConfig
from captioning.data.batch import PictureFormat
from captioning.machine import for_training
from captioning.model.build import switched
from captioning.prediction import run
from captioning.training.checkpoints import AtomicCheckpointIO
from captioning.training.module import CaptioningModule
from captioning.training.run import train
from on_gpu.files import CHECKPOINT, PHOTOGRAPHS, trained_tokenizer
from on_gpu.profiling import Waits
from on_gpu.work import EVERYTHING, STAGES, TOKENS, Figures, Setting, Work, figure, forget, lot, peak_gib, timed

ROOT = Path(__file__).resolve().parents[2]
AUDITED = 20  # steps whose waits are counted
NO_FILES = "trainer.enable_checkpointing=false"
TWICE = [stage for stage in STAGES for _ in range(2)]  # what trains in the epochs of `drawn`


def loop(setting: Setting) -> Figures:
    """train.py: three stages of drawn pictures, then JPEGs and packs, one of them with checkpoints."""
    yield from trained(setting, "drawn pictures", drawn(setting), TWICE, audit_from=5 * steps_of(setting) + 8)
    photographs = [
        "data=flickr8k",
        root := f"data.root={setting.folder / PHOTOGRAPHS}",
        *usual_of(setting),
        f"stage.phases=[{{from_epoch:0,train:[{','.join(STAGES[EVERYTHING])}]}}]",
    ]
    three = [*photographs, NO_FILES, "trainer.max_epochs=3", "trainer.limit_val_batches=1"]
    for what in ("JPEGs", "packs"):
        if what == "packs":
            start = time.perf_counter()
            subprocess.run([sys.executable, ROOT / "prepare.py", "data=flickr8k", root], check=True, stdout=sys.stderr)
            yield figure("prepare.py", time.perf_counter() - start, "s, its start included")
        yield loader_alone(setting, what, three)
        yield from trained(setting, what, three, [EVERYTHING] * 3)
    one = ["trainer.max_epochs=1", "trainer.limit_train_batches=5", "trainer.limit_val_batches=1"]
    yield from trained(setting, "with checkpoints", [*photographs, *one], [])


def steps_of(setting: Setting) -> int:
    """Of an epoch of drawn pictures."""
    return 4 if setting.small else 32


def usual_of(setting: Setting) -> list[str]:
    """What all runs have; precision and loading processes are those that train.py chooses."""
    few = setting.batches[0]
    usual = ["model=vit_gpt2", f"model.init_from={setting.folder / CHECKPOINT}", "logger=csv", "sample_pictures=0"]
    usual += ["scores.pictures=0", f"data.batch_size={few}", "trainer.log_every_n_steps=10", "stage.warmup_steps=10"]
    usual += ["trainer.devices=1", "model.compile=false", *(["data.num_workers=0"] if setting.small else [])]
    return usual


def drawn(setting: Setting) -> list[str]:
    """Two epochs of each stage."""
    few = setting.batches[0]
    stages = [f"{{from_epoch:{2 * n},train:[{','.join(groups)}]}}" for n, groups in enumerate(STAGES.values())]
    shapes = [f"data.train_pictures={steps_of(setting) * few}", f"data.val_pictures={few}", "data.test_pictures=1"]
    phases = ["trainer.max_epochs=6", f"stage.phases=[{','.join(stages)}]"]
    return ["data=shapes", *shapes, *usual_of(setting), NO_FILES, *phases]


def loader_alone(setting: Setting, what: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Two epochs of training batches, of which nothing is made, after one in which the workers start."""
    config = for_training(configured(TrainConfig, *overrides, f"run_dir={setting.folder}"), {})
    datamodule, side = built(config.data, "data"), setting.size["image_size"]
    datamodule.connect(trained_tokenizer(), PictureFormat((side, side)), max_positions=1024)
    batches = datamodule.train_dataloader()
    sum(len(batch) for batch in batches)
    start = time.perf_counter()
    pictures = sum(len(batch) for _ in range(2) for batch in batches)
    rate = pictures / (time.perf_counter() - start)
    return figure(f"loader alone, {what}", rate, "pictures/s", workers=config.data.num_workers, pictures=pictures)


def trained(
    setting: Setting, what: str, overrides: Sequence[str], epochs: Sequence[str], audit_from: int | None = None
) -> Figures:
    """A run of `train(config)`: the speed of each epoch, which trains what `epochs` says; its start and checkpoints."""
    starts: list[float] = []
    saved: list[tuple[str, float, int]] = []
    waits, cuda = Waits(), setting.device.type == "cuda"
    step, save = CaptioningModule.training_step, AtomicCheckpointIO.save_checkpoint

    def training_step(*arguments: Any) -> Any:
        if cuda and audit_from is not None and len(starts) in (audit_from, audit_from + AUDITED):
            waits.switch(len(starts) == audit_from)
        starts.append(time.perf_counter())
        return step(*arguments)

    def save_checkpoint(io: AtomicCheckpointIO, checkpoint: Any, path: Any, **options: Any) -> None:
        start = time.perf_counter()
        save(io, checkpoint, path, **options)
        saved.append((Path(path).name, time.perf_counter() - start, Path(path).stat().st_size))

    run_dir = Path(tempfile.mkdtemp(dir=setting.folder))
    config = configured(TrainConfig, *overrides, f"run_dir={run_dir}")
    forget(setting.device)
    begun = time.perf_counter()
    with (
        mock.patch.object(CaptioningModule, "training_step", training_step),
        mock.patch.object(AtomicCheckpointIO, "save_checkpoint", save_checkpoint),
    ):
        train(config)
    whole = time.perf_counter() - begun
    yield from epoch_speeds(f"train.py, {what}", run_dir / "metrics.csv", epochs, config.data.batch_size)
    more = {"whole_seconds": whole, "gib": peak_gib(setting.device)}
    yield figure(f"train.py, {what}: before the first step", starts[0] - begun, "s", **more)
    if cuda and audit_from is not None:
        places = {place: count / AUDITED for place, count in waits.places.most_common()}
        yield figure("host waits, of a step of train.py", sum(places.values()), "", **places)
    for name, seconds, size in saved:
        whose = "checkpoint, everything trained" if name.startswith("last") else f"checkpoint {name}"
        yield figure(whose, size / 1e9, "GB", seconds=seconds, gb_a_second=size / 1e9 / seconds)


def epoch_speeds(what: str, metrics: Path, epochs: Sequence[str], batch_size: int) -> Figures:
    """Of each epoch the median of its logged speeds but the first, where it has more."""
    with metrics.open(newline="") as file:
        logged = [row for row in csv.DictReader(file) if row.get("captions_per_second")]
    for epoch, trains in enumerate(epochs):
        speeds = [float(row["captions_per_second"]) for row in logged if int(float(row["epoch"])) == epoch]
        usual = statistics.median(speeds[1:] or speeds)
        more = {"captions/s": usual, "slowest": min(speeds), "windows": len(speeds), "epoch": epoch}
        yield figure(f"{what}, {trains}, batch {batch_size}", usual / 5, "pictures/s", **more)


def predicting(setting: Setting) -> Figures:
    """predict.py on JPEGs, from the first picture to the last row."""
    pictures = setting.folder / PHOTOGRAPHS / "Images"
    count, largest = len(list(pictures.glob("*.jpg"))), setting.batches[-1]
    cases = {
        "as it is started by itself, greedy": [],
        f"batch {largest}, beam": [f"batch_size={largest}", "decoding=beam"],
        "precision=32, greedy": ["precision=32"],
    }
    opened = 0.0

    class Clock(run.Journal):  # type: ignore[misc, name-defined]
        """Notes when the model is ready."""

        def __enter__(self) -> Any:
            nonlocal opened
            opened = time.perf_counter()
            return super().__enter__()

    usual = [f"checkpoint={setting.folder / CHECKPOINT}", f"input={pictures}", "overwrite=true", "logger=csv"]
    usual += [f"output={setting.folder / 'captions.jsonl'}", f"decoding.max_new_tokens={TOKENS}"]
    for name, given in cases.items():
        config, start = configured(PredictConfig, *usual, *given), time.perf_counter()
        with mock.patch.object(run, "Journal", Clock):
            made = run.predict(config)
        seconds = time.perf_counter() - opened
        if made.captioned != count:
            raise AssertionError(f"{made.captioned} of {count} pictures have a caption")
        more = {"seconds": seconds, "loading_seconds": opened - start, "pictures": count}
        yield figure(f"predict.py, {name}", count / seconds, "pictures/s", **more)


def compiled(setting: Setting) -> Figures:
    """model.compile=true: seconds until a length is compiled and steps from then on; train.py with three stages."""
    work, device, pictures = Work(setting), setting.device, setting.batches[0]
    compile_one = nn.Module.compile
    quick = mock.patch.object(nn.Module, "compile", lambda half, **how: compile_one(half, **how, backend="aot_eager"))
    with quick if setting.small else contextlib.nullcontext():  # which writes and compiles no C++
        switched(work.captioner, gradient_checkpointing=False, compile=True)
        step = work.step(STAGES[EVERYTHING], "bf16")
        step(work.of_length(pictures, 80))  # as it is written: the first of its rows
        for length in (80, 64, 96):
            batch = work.of_length(pictures, length)
            yield figure(f"first step at length {length}", lot(lambda batch=batch: step(batch), device, 1), "s")
        for pictures in setting.batches:
            _, batch = work.batch(pictures)
            seconds = timed(lambda batch=batch: step(batch), device, setting.seconds)
            what = f"everything, batch {pictures}, bf16, compiled"
            yield figure(what, pictures / seconds, "pictures/s", ms=1e3 * seconds)
        before = counters["stats"]["unique_graphs"]
        yield from trained(setting, "drawn pictures, compiled", [*drawn(setting), "model.compile=true"], TWICE)
        yield figure("graphs of a run of three stages", counters["stats"]["unique_graphs"] - before, "", **breaks())


def breaks() -> dict[str, int]:
    """Why torch.compile has given up a graph, or a layer, and how often."""
    return {f"{kind}: {why}"[:110]: n for kind in ("graph_break", "unimplemented") for why, n in counters[kind].items()}
