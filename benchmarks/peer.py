"""What the benchmarks share: full-size models on random weights, the peer beside them, and medians taken in turn.

The peer is Hugging Face's `VisionEncoderDecoderModel`, fed as its users feed it: one caption a row, padded to the
longest of the batch, with fused AdamW.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from captioning.batch import IGNORE, CaptionBatch
from captioning.data.packing import Row, pack
from captioning.model.build import from_scratch
from captioning.model.captioner import ImageCaptioner

# GPT-2 tokens, EOS counted, of five captions each of 16 photographs drawn from COCO's validation part: 13.03 on
# average, as the whole part has 12.88.
CAPTION_LENGTHS = (
    *((10, 13, 9, 17, 11), (12, 12, 14, 15, 10), (14, 13, 16, 17, 20), (10, 10, 16, 12, 12)),
    *((14, 10, 12, 10, 13), (11, 11, 13, 13, 13), (14, 11, 11, 14, 11), (13, 12, 10, 15, 9)),
    *((18, 13, 47, 11, 11), (10, 14, 11, 12, 10), (13, 12, 12, 15, 11), (13, 13, 10, 13, 17)),
    *((12, 9, 17, 13, 10), (13, 11, 12, 13, 14), (10, 15, 13, 11, 13), (12, 13, 13, 15, 14)),
)
STAGES = {
    "only cross-attention trains": ("cross_attention",),
    "cross-attention and GPT-2 train": ("cross_attention", "decoder"),
    "everything trains": ("cross_attention", "decoder", "encoder"),
}


@dataclass(frozen=True)
class Size:
    """Widths, layers, heads and vocabulary of a captioner; pixels of its pictures."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    vocab_size: int


FULL = Size(image_size=224, patch_size=16, width=768, layers=12, heads=12, vocab_size=50_257)  # ViT-B/16, GPT-2 small
SMALL = Size(image_size=64, patch_size=16, width=128, layers=2, heads=4, vocab_size=2_000)


def captioner_of(size: Size, *, dropout: float = 0.1, attention_dropout: float = 0.0) -> ImageCaptioner:
    """Random weights, the same at every call."""
    torch.manual_seed(0)
    return from_scratch(
        image_size=size.image_size,
        patch_size=size.patch_size,
        encoder_width=size.width,
        encoder_layers=size.layers,
        encoder_heads=size.heads,
        decoder_width=size.width,
        decoder_layers=size.layers,
        decoder_heads=size.heads,
        max_positions=1024,
        initializer_range=0.02,
        pixel_mean=0.5,
        pixel_std=0.5,
        dropout=dropout,
        attention_dropout=attention_dropout,
        gradient_checkpointing=False,
        compile=False,
        vocab_size=size.vocab_size,
        bos_token_id=size.vocab_size - 1,
        eos_token_id=size.vocab_size - 1,
    )


def packed_batch(size: Size, pictures: int, device: torch.device | str = "cpu") -> CaptionBatch:
    """Noise with five captions a picture, of COCO's lengths."""
    generator = np.random.default_rng(0)
    end = size.vocab_size - 1
    rows = []
    for number in range(pictures):
        lengths = CAPTION_LENGTHS[number % len(CAPTION_LENGTHS)]
        captions = [np.array([end, *generator.integers(0, end, length - 1), end]) for length in lengths]
        pixels = generator.integers(0, 256, (3, size.image_size, size.image_size), np.uint8)
        rows.append(Row(number, torch.from_numpy(pixels), captions))
    return pack(rows).to(device)


def one_caption_a_row(batch: CaptionBatch) -> dict[str, Tensor]:
    """The same captions as the peer takes them: `pixel_values` repeated, `decoder_input_ids`, a mask and `labels`."""
    pixels, ids, labels = [], [], []
    normalised = batch.pixel_values.float() / 127.5 - 1
    for row in range(len(batch)):
        for number in range(1, int(batch.caption_index[row].max()) + 1):
            mine = batch.caption_index[row] == number
            pixels.append(normalised[row])
            ids.append(batch.input_ids[row][mine])
            labels.append(batch.labels[row][mine])
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    length = torch.tensor([len(one) for one in ids], device=padded.device)
    return {
        "pixel_values": torch.stack(pixels),
        "decoder_input_ids": padded,
        "decoder_attention_mask": (torch.arange(padded.shape[1], device=padded.device) < length[:, None]).long(),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE),
    }


def medians_in_turn(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, one after the other in every round, so that a machine's drift meets all alike."""
    for run in contestants.values():
        run()  # warm-up: allocations, kernels chosen
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> str:
    """Hardware and versions in two lines, for the head of every table."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    device = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, {name}{device}\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with its columns aligned."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
