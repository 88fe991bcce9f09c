"""What the phases share: rows with what was predicted, a captioner and its peer with their batches and steps, clocks.

Letters: B pictures of a batch, P encoded patches (CLS included), S packed tokens of a row, N labelled positions of a
row, D width, L layers of each half, V vocabulary.
"""

import contextlib
import functools
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from training_step import STAGES as CACHED_TOO
from training_step import network_of, one_caption_a_row, random_rows

from captioning.data.batch import CaptionBatch, PictureFormat, Row, pack
from captioning.machine import PACKED_MULTIPLE
from captioning.model.captioner import group_of
from captioning.model.huggingface import captioner_of
from captioning.training.module import scale_and_clip
from captioning.training.optimizers import adamw

FULL = {"width": 768, "layers": 12, "heads": 12, "image_size": 224, "vocab_size": 50257}
TINY = {"width": 64, "layers": 2, "heads": 2, "image_size": 32, "vocab_size": 700}
STAGES = {name: groups for name, groups in CACHED_TOO.items() if name != "encoder cached"}
EVERYTHING = "everything"
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}  # under autocast; tf32 and fp32 are without
LOSS_UNIT = 1024  # tokens; keeps fp16 gradients in range, as training does
TOKENS = 20  # of a generated caption
NEVER = -1  # an EOS that no token is, so that no caption ends early

# What was predicted of the code as it was on 2026-11-28, and what is aimed at; in the rows' own units.
PREDICTED = {
    "copy": (4.3, None),
    "bf16, 8192 x 8192 x 8192": (790, None),
    "cross-attention, batch 256, bf16": (3200, 4400),
    "+ GPT-2, batch 256, bf16": (2560, 3650),
    "everything, batch 256, bf16": (1750, 2500),
    "host waits, of a step of train.py": (13, 0),
    "first seen, median, with cuDNN's attention": (990, None),
    "greedy, batch 64, eager": (580, None),
    "greedy, batch 256, eager": (2300, None),
    "greedy, batch 64, graphs": (None, 2300),
    "greedy, batch 256, graphs": (None, 4500),
    "beam 5, batch 64, graphs": (None, 1600),
    "greedy, batch 64, transformers": (360, None),
    "greedy, batch 256, transformers": (1250, None),
    "beam 5, batch 64, transformers": (240, None),
    "kernels of a greedy step": (300, None),
    "host, of a greedy step": (5.5, None),
    "checkpoint, everything trained": (2.9, None),
}


@dataclass(frozen=True)
class Setting:
    """What all phases are given."""

    small: bool
    folder: Path  # for files of this run alone
    device: torch.device

    @property
    def size(self) -> dict[str, int]:
        return TINY if self.small else FULL

    @property
    def seconds(self) -> float:
        """That a case is timed."""
        return 0.02 if self.small else 1.2

    @property
    def batches(self) -> tuple[int, int]:
        return (2, 3) if self.small else (64, 256)


Figures = Iterator[dict[str, Any]]


def figure(what: str, value: float | str, unit: str = "", **more: object) -> dict[str, Any]:
    """A row."""
    predicted, goal = PREDICTED.get(what, (None, None))
    return {"what": what, "value": value, "unit": unit, "predicted": predicted, "goal": goal, "more": more}


def wait(device: torch.device) -> None:
    """For all that the device has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], device: torch.device, seconds: float, lots: int = 3) -> float:
    """Seconds of a run: the median of a few lots, each timed as a whole; after a warm-up."""
    for _ in range(3 if device.type == "cuda" else 1):
        run()
    once = lot(run, device, 1)
    count = max(1, min(1000, int(seconds / lots / once)))
    return statistics.median(lot(run, device, count) for _ in range(lots))


def lot(run: Callable[[], object], device: torch.device, count: int) -> float:
    """Seconds of each of so many runs, one queued after the other."""
    wait(device)
    start = time.perf_counter()
    for _ in range(count):
        run()
    wait(device)
    return (time.perf_counter() - start) / count


def forget(device: torch.device) -> None:
    """Free what is not used, and let the peak of memory count from now on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Of this process's tensors on the device; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


@contextlib.contextmanager
def number_format(name: str, device: torch.device) -> Iterator[None]:
    """bf16 and fp16 under autocast; tf32 and fp32 as torch multiplies fp32."""
    with products(name), torch.autocast(device.type, FORMATS.get(name), enabled=name in FORMATS):
        yield


@contextlib.contextmanager
def products(name: str) -> Iterator[None]:
    """Those of fp32, convolutions too, in fp32, or for tf32 in that; around the backward pass too, unlike autocast."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Work:
    """A captioner and its peer of the same weights, which all phases of a process share, and batches for them."""

    def __init__(self, setting: Setting):
        self.size, self.device = setting.size, setting.device
        self._batches: dict[int, tuple[list[Row], CaptionBatch]] = {}
        torch.backends.cuda.enable_cudnn_sdp(False)  # as train.py has it
        self.multiple = PACKED_MULTIPLE if self.device.type == "cuda" else 1
        torch.manual_seed(0)
        network = network_of(self.size, "gelu_pytorch_tanh")
        side = self.size["image_size"]
        picture_format = PictureFormat((side, side), (0.5,) * 3, (0.5,) * 3)
        self.captioner = captioner_of(network, picture_format).to(self.device)
        for block in network.decoder.transformer.h:  # as model=vit_gpt2 sets it
            block.attn.attn_dropout.p = block.crossattention.attn_dropout.p = 0.0

    @functools.cached_property
    def peer(self) -> nn.Module:
        """transformers' own, with GPT-2's own activation and dropout."""
        peer = network_of(self.size, "gelu_new").to(self.device)
        peer.load_state_dict(self.captioner.network.state_dict())
        return peer

    def batch(self, pictures: int) -> tuple[list[Row], CaptionBatch]:
        """Of noise, with captions of COCO's lengths."""
        if pictures not in self._batches:
            rows = random_rows(pictures, self.size)
            self._batches[pictures] = rows, pack(rows, self.multiple).to(self.device)
        return self._batches[pictures]

    def of_length(self, pictures: int, length: int) -> CaptionBatch:
        """A batch whose rows have so many packed tokens."""
        _, batch = self.batch(pictures)
        assert batch.pixel_values is not None
        drawn, end = np.random.default_rng(length), self.size["vocab_size"] - 1
        shares = [length // 5 + (number < length % 5) for number in range(5)]
        captions = [np.array([end, *drawn.integers(0, end, share - 1), end]) for share in shares]
        rows = [Row(number, None, captions) for number in range(pictures)]
        packed = pack(rows).to(self.device)
        packed.pixel_values = batch.pixel_values
        return packed

    def step(self, groups: Sequence[str], format_name: str) -> Callable[[CaptionBatch], None]:
        """A training step as train.py makes it, of these groups, with an optimizer of its own."""
        captioner, fp16 = self.captioner, format_name == "fp16"
        captioner.set_trainable(groups)
        optimizer = adamw(captioner, weight_decay=0.01, betas=(0.9, 0.999), fused=not fp16)
        for group in optimizer.param_groups:
            group["lr"] = 1e-5
        scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)

        def step(batch: CaptionBatch) -> None:
            with products(format_name):
                with number_format(format_name, self.device):
                    nats, tokens = captioner.loss(batch)
                scaler.scale(nats / LOSS_UNIT).backward()
            if fp16:
                scaler.unscale_(optimizer)
            scale_and_clip(optimizer, LOSS_UNIT / tokens.float(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        return step

    def peer_step(self, groups: Sequence[str], pictures: int) -> Callable[[], None]:
        """The same with one caption a row, in bf16."""
        pixel_values, labels = (tensor.to(self.device) for tensor in one_caption_a_row(self.batch(pictures)[0]))
        peer = self.peer.train()
        for name, parameter in peer.named_parameters():
            parameter.requires_grad_(group_of(name) in groups)
        trained = [p for p in peer.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

        def step() -> None:
            with number_format("bf16", self.device):
                loss = peer(pixel_values=pixel_values, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


def step_flops(size: dict[str, int], groups: Sequence[str], packed: float, labelled: float) -> float:
    """Of forward and backward of one picture with its captions, packed in S tokens with N labels.

    A product of a gradient with the weights takes as many as the product itself, that with the inputs as many again.
    Full size, S = 73: 90 G with cross-attention trained, 108 G with GPT-2, 184 G with everything.
    """
    width, layers, vocabulary = size["width"], size["layers"], size["vocab_size"]
    patches = (size["image_size"] // 16) ** 2 + 1
    pixels = 2 * patches * 3 * 16**2 * width
    encoder = pixels + layers * (2 * 12 * patches * width**2 + 4 * patches**2 * width)
    own = layers * 2 * 12 * packed * width**2  # self-attention's four and the MLP's eight matrices D x D
    queries = layers * 2 * 2 * packed * width**2  # cross-attention's of the tokens
    keys = layers * 2 * 2 * patches * width**2  # and of the patches
    attention = layers * 4 * packed * (packed + patches) * width
    head = 2 * labelled * width * vocabulary
    backward = own + queries + 2 * attention + head  # to the activations
    backward += queries + keys  # to the cross-attention's weights
    if "decoder" in groups:
        backward += own + head
    if "encoder" in groups:
        backward += keys + 2 * encoder
    return encoder + own + queries + keys + attention + head + backward


@functools.cache
def ceiling(device: torch.device, side: int) -> float:
    """FLOP/s of a square bf16 matrix product of random numbers."""
    return product_rate(device, (side, side, side), torch.bfloat16)


def product_rate(device: torch.device, shape: tuple[int, int, int], dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of (rows, inner) x (inner, columns)."""
    rows, inner, columns = shape
    a, b = (torch.randn(sides, device=device, dtype=dtype) for sides in ((rows, inner), (columns, inner)))
    return 2 * rows * inner * columns / timed(lambda: F.linear(a, b), device, seconds)
