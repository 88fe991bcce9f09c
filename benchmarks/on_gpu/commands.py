"""Phases that run train.py and predict.py in this process, and the files that they read."""

import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from training_step import network_of

from on_gpu.package import (
    END_OF_TEXT,
    ROOT,
    CaptionTokenizer,
    ImageCaptioner,
    PictureFormat,
    batches_of_epoch,
    commands,
)
from on_gpu.profiling import Waits
from on_gpu.work import EVERYTHING, STAGES, TOKENS, Figures, Setting, figure, forget, peak_gib

WORDS = (  # of captions
    *("a", "red", "green", "blue", "yellow", "small", "large", "circle", "square", "triangle", "star", "left"),
    *("right", "above", "below", "of", "and", "the", "is", "are", "two", "three", "one", "man", "woman", "dog"),
    *("cat", "street", "table", "with", "on", "in", "next", "to", "standing", "sitting", "holding", "white", "black"),
)


def ready(setting: Setting) -> Path:
    """The folder of files, when all are written."""
    while not (setting.folder / "ready").is_file():
        if (setting.folder / "failed").is_file():
            raise RuntimeError((setting.folder / "failed").read_text())
        time.sleep(0.2)
    return setting.folder


def loop(setting: Setting) -> Figures:
    """train.py: three stages of drawn pictures, then JPEGs and packs, one of them with checkpoints."""
    folder = ready(setting)
    few = setting.batches[0]
    steps = 4 if setting.small else 32  # of an epoch of drawn pictures
    model = ["model=vit_gpt2", f"model.encoder={folder / 'vit'}", f"model.decoder={folder / 'gpt2'}"]
    usual = [*model, f"data.tokenizer={folder / 'gpt2'}", "logger=csv", "sample_pictures=0", "scores.pictures=0"]
    usual += [f"data.batch_size={few}", "trainer.log_every_n_steps=10", "stage.warmup_steps=10"]
    usual += [f"data.num_workers={0 if setting.small else min(16, os.cpu_count() or 1)}"]
    if setting.device.type == "cuda":
        usual += ["trainer.precision=bf16-mixed"]
    shapes = ["data=shapes", f"data.image_size={setting.size['image_size']}", f"data.train_pictures={steps * few}"]
    shapes += ["data.val_pictures=64", "data.test_pictures=0"] if not setting.small else ["data.val_pictures=4"]
    phases = ["[cross_attention]", "[cross_attention,decoder]", "[cross_attention,decoder,encoder]"]
    phases = [f"{{from_epoch:{2 * number},train:{groups}}}" for number, groups in enumerate(phases)]
    off = ["+trainer.enable_checkpointing=false", "trainer.max_epochs=6", f"stage.phases=[{','.join(phases)}]"]
    watch = Watch()
    epochs = [stage for stage in STAGES for _ in range(2)]
    yield from watch.run("drawn pictures", [*usual, *shapes, *off], folder, epochs, audit_from=5 * steps + 8)
    photographs = [f"data.root={folder / 'photographs'}", "data=flickr8k", *usual]
    all_train = "stage.phases=[{from_epoch:0,train:[cross_attention,decoder,encoder]}]"
    off = [all_train, "+trainer.enable_checkpointing=false", "trainer.max_epochs=3", "+trainer.limit_val_batches=1"]
    names = [EVERYTHING] * 3
    yield from loader_alone("JPEGs", [*photographs, *off], setting)
    yield from watch.run("JPEGs", [*photographs, *off], folder, names)
    seconds = time.perf_counter()
    command = [sys.executable, str(ROOT / "prepare.py"), "data=flickr8k", photographs[0]]
    subprocess.run(command, check=True, stdout=sys.stderr)
    yield figure("prepare.py", time.perf_counter() - seconds, "s, its start included")
    yield from loader_alone("packs", [*photographs, *off], setting)
    yield from watch.run("packs", [*photographs, *off], folder, names)
    one = [all_train, "trainer.max_epochs=1", "+trainer.limit_train_batches=5", "+trainer.limit_val_batches=1"]
    yield from watch.run("with checkpoints", [*photographs, *one], folder, [EVERYTHING], speed=False)


def composed(name: str, overrides: Sequence[str]) -> Any:
    """The configuration of a command line."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, list(overrides))


def loader_alone(what: str, overrides: Sequence[str], setting: Setting) -> Figures:
    """An epoch of training batches, of which nothing is made."""
    cfg = composed("train", overrides)
    batches = batches_of_epoch(cfg, setting.size["image_size"])
    for _ in batches:  # the workers start
        pass
    pictures, start = 0, time.perf_counter()
    for _ in range(2):
        pictures += sum(len(batch) for batch in batches)
    seconds = time.perf_counter() - start
    workers = cfg.data.num_workers
    yield figure(f"loader alone, {what}", pictures / seconds, "pictures/s", workers=workers, pictures=pictures)


class Watch:
    """Runs train(cfg) in this process and notes when its steps begin and how long its checkpoints take."""

    AUDITED = 20  # steps, after which the audit ends

    def __init__(self) -> None:
        self.commands = commands()
        module, writer = self.commands.module, self.commands.checkpoint_writer
        self.starts: list[float] = []
        self.saved: list[tuple[str, float, int]] = []
        self.waits: Waits | None = None
        self.audit_from: int | None = None
        step, save = module.training_step, writer.save_checkpoint

        def training_step(module: Any, *arguments: Any) -> Any:
            if self.audit_from is not None and len(self.starts) == self.audit_from:
                self.waits = Waits().__enter__()
            if self.waits and len(self.starts) == (self.audit_from or 0) + self.AUDITED:
                self.waits.__exit__(None, None, None)
                self.audit_from = None
            self.starts.append(time.perf_counter())
            return step(module, *arguments)

        def save_checkpoint(writer: Any, checkpoint: Any, path: Any, **named: Any) -> None:
            start = time.perf_counter()
            save(writer, checkpoint, path, **named)
            self.saved.append((Path(path).name, time.perf_counter() - start, Path(path).stat().st_size))

        module.training_step, writer.save_checkpoint = training_step, save_checkpoint

    def run(
        self, what: str, overrides: Sequence[str], folder: Path, epochs: Sequence[str], audit_from: int | None = None,
        speed: bool = True,
    ) -> Figures:  # fmt: skip
        """Rows of each epoch, which trains what `epochs` says: the median of its logged speeds but the first."""
        run_dir = Path(tempfile.mkdtemp(dir=folder))
        cfg = composed("train", [*overrides, f"run_dir={run_dir}"])
        cuda = torch.cuda.is_available()
        self.starts.clear()
        self.saved.clear()
        self.waits = None
        self.audit_from = audit_from if cuda else None
        start = time.perf_counter()
        self.commands.train(cfg)
        whole = time.perf_counter() - start
        before = self.starts[0] - start
        rows = [line.split(",") for line in (run_dir / "metrics.csv").read_text().splitlines()]
        table = [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
        for epoch, trained in enumerate(epochs if speed else []):
            speeds = [
                float(row["captions_per_second"])
                for row in table
                if row.get("captions_per_second") and int(float(row["epoch"])) == epoch
            ]
            usual = statistics.median(speeds[1:-2] if len(speeds) > 4 else speeds[1:] or speeds)
            told = {"captions/s": usual, "slowest": min(speeds), "windows": len(speeds), "epoch": epoch}
            batch = cfg.data.batch_size
            yield figure(f"train.py, {what}, {trained}, batch {batch}", usual / 5, "pictures/s", **told)
        yield figure(f"train.py, {what}: before the first step", before, "s", whole_seconds=whole)
        if self.waits:
            places = {place: count / self.AUDITED for place, count in self.waits.places.most_common()}
            yield figure("host waits, of a step of train.py", sum(places.values()), "", **places)
        for name, seconds, size in self.saved:
            whose = "checkpoint, everything trained" if name.startswith("last") else f"checkpoint {name}"
            yield figure(whose, size / 1e9, "GB", seconds=seconds, gb_a_second=size / 1e9 / seconds)
        if cuda:
            yield figure(f"train.py, {what}: peak", peak_gib(torch.device("cuda")), "GiB")
            forget(torch.device("cuda"))


def predicting(setting: Setting) -> Figures:
    """predict.py on JPEGs, from the first picture to the last row."""
    folder = ready(setting)
    _, predict, *_, caption_writer = commands()
    pictures = folder / "photographs" / "Images"
    count = len(list(pictures.glob("*.jpg")))
    cuda, largest = setting.device.type == "cuda", setting.batches[-1]
    cases = {
        f"batch {largest}, {'bf16' if cuda else '32'}, greedy": [
            f"batch_size={largest}", *(["precision=bf16"] if cuda else [])
        ],
        "as it is started by itself: batch 16, 32": [],
        f"batch {largest}, {'bf16' if cuda else '32'}, beam": [
            f"batch_size={largest}", "decoding=beam", *(["precision=bf16"] if cuda else [])
        ],
    }  # fmt: skip
    opened = {"at": 0.0}
    enter = caption_writer.__enter__

    def entered(writer: Any) -> Any:
        opened["at"] = time.perf_counter()
        return enter(writer)

    caption_writer.__enter__ = entered
    usual = [f"checkpoint={folder / 'random.ckpt'}", f"input={pictures}", "overwrite=true", "logger=csv"]
    for name, given in cases.items():
        output = f"output={folder / 'captions.jsonl'}"
        start = time.perf_counter()
        made = predict(composed("predict", [*usual, *given, f"decoding.max_new_tokens={TOKENS}", output]))
        end = time.perf_counter()
        if made.captioned != count:
            raise AssertionError(f"{made.captioned} of {count} pictures have a caption")
        more = {"seconds": end - opened["at"], "loading_seconds": opened["at"] - start, "pictures": count}
        yield figure(f"predict.py, {name}", count / (end - opened["at"]), "pictures/s", **more)


def write_files(setting: Setting) -> None:
    """What `loop` and `predict` read: both halves as transformers' checkpoints, a captioner of ours, photographs.

    Runs beside the other phases, on two cores.
    """
    torch.set_num_threads(2)
    folder, size = setting.folder, setting.size
    try:
        tokenizer_files(folder / "gpt2", size["vocab_size"])
        photographs(folder / "photographs", 20 if setting.small else 2048, (64, 48) if setting.small else (640, 480))
        torch.manual_seed(0)
        network = network_of(size, "gelu_new")
        end = size["vocab_size"] - 1
        network.decoder.config.bos_token_id = network.decoder.config.eos_token_id = end
        network.encoder.save_pretrained(folder / "vit")
        side = size["image_size"]
        processor = {"size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        processor |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
        processor |= {"image_processor_type": "ViTImageProcessor", "resample": 2}
        (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
        network.decoder.save_pretrained(folder / "gpt2")
        captioner = ImageCaptioner(network, PictureFormat((side, side)))
        tokenizer = CaptionTokenizer.from_pretrained(str(folder / "gpt2"))
        described = {"description": captioner.description(), "tokenizer": tokenizer.to_json()}
        weights = {f"captioner.{name}": value for name, value in captioner.state_dict().items()}
        torch.save({"captioner": described, "state_dict": weights}, folder / "random.ckpt")
        (folder / "ready").touch()
    except BaseException:
        (folder / "failed").write_text(traceback.format_exc())
        raise


def tokenizer_files(folder: Path, vocab_size: int) -> None:
    """vocab.json and merges.txt of so many tokens: those of a few words, and pairs of bytes that no word has."""
    folder.mkdir()
    learned = json.loads(CaptionTokenizer.train([f"{a} {b}" for a in WORDS for b in WORDS], 600).to_json())["model"]
    tokens = [token for token in learned["vocab"] if token != END_OF_TEXT]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned["merges"]]
    strange = [token for token in tokens if len(token) == 1 and ord(token) > 0xFF]
    strange += [a + b for a in strange for b in strange][: 60_000 // len(strange)]
    single = strange[: len([token for token in strange if len(token) == 1])]
    more = ((a, b) for a in strange for b in single)
    there = set(tokens)
    while len(tokens) < vocab_size - 1:
        a, b = next(more)
        if a + b not in there:
            merges.append(f"{a} {b}")
            tokens.append(a + b)
            there.add(a + b)
    numbers = {token: number for number, token in enumerate([*tokens, END_OF_TEXT])}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def photographs(root: Path, count: int, sides: tuple[int, int]) -> None:
    """JPEGs of about 90 kB as Flickr8k's release lays them out: 64 of noise on soft light, again and again."""
    (root / "Images").mkdir(parents=True)
    drawn, words = np.random.default_rng(0), random.Random(0)
    files = []
    for _ in range(min(count, 64)):
        shade = Image.fromarray(drawn.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        light = np.asarray(shade.resize(sides, Image.Resampling.BICUBIC))
        noisy = light + drawn.normal(0, 6, (*light.shape[:2], 1))
        files.append(io.BytesIO())
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(files[-1], "JPEG", quality=90)
    names = [f"{number:04d}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        (root / "Images" / name).write_bytes(files[number % len(files)].getvalue())
    captions = (
        f"{name}#{k}\t{' '.join(words.choices(WORDS, k=words.randint(9, 16)))}" for name in names for k in range(5)
    )
    (root / "Flickr8k.token.txt").write_text("\n".join(captions) + "\n")
    held_out = max(2, count // 32)
    for which, part in (("train", names[held_out:]), ("dev", names[:held_out])):
        (root / f"Flickr_8k.{which}Images.txt").write_text("\n".join(part) + "\n")
