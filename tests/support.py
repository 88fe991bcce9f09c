"""Drawn data and small random models that several test files share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioning.data.packing import Row
from captioning.data.tokenizer import CaptionTokenizer
from captioning.model.build import from_scratch
from captioning.model.captioner import ImageCaptioner

CAPTIONS = [
    "A brown dog runs across the grass.",
    "Two children play with a ball, near the water!",
    "a man",
    "The woman in a red coat is riding a bicycle down a wet street at night.",
    "Several people are waiting for the bus",
    "A café's sign, half in the dark — nobody there.",
    "A cat sleeps on a chair.",
    "A plane flies over the sea .",
]


def trained_tokenizer() -> CaptionTokenizer:
    """A small BPE learned from `CAPTIONS`."""
    return CaptionTokenizer.train(CAPTIONS, vocab_size=300)


def small_captioner(vocab_size: int, *, spread: float = 0.15, end_of_text: int = 0, **changed: Any) -> ImageCaptioner:
    """16-pixel pictures, two layers a side, in eval mode; every weight is drawn with standard deviation `spread`.

    At the usual 0.02 attention is nearly uniform, and a wrong mask would hardly show.
    """
    settings: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 8,
        "encoder_width": 32,
        "encoder_layers": 2,
        "encoder_heads": 4,
        "decoder_width": 32,
        "decoder_layers": 2,
        "decoder_heads": 4,
        "max_positions": 48,
        "initializer_range": 0.02,
        "pixel_mean": 0.5,
        "pixel_std": 0.5,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "gradient_checkpointing": False,
        "compile": False,
        "vocab_size": vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }
    captioner = from_scratch(**settings | changed)
    randomise(captioner, spread)
    return captioner.eval()


def randomise(module: torch.nn.Module, spread: float, seed: int = 0) -> None:
    """Draw every weight anew; norms stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(float(is_norm) + spread * torch.randn(parameter.shape, generator=generator))


def random_pictures(count: int, size: int = 16, seed: int = 0) -> Tensor:
    """(count, 3, size, size) uint8 noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def encoded_rows(tokenizer: CaptionTokenizer, captions: Sequence[Sequence[str]], size: int = 16) -> list[Row]:
    """A row for each list of captions, with a picture of noise."""
    pictures = random_pictures(len(captions), size)
    return [
        Row(number, picture, [np.array(ids) for ids in tokenizer.encode(texts)])
        for number, (picture, texts) in enumerate(zip(pictures, captions, strict=True))
    ]


class TwoColouredPictures:
    """`load` of a split: picture i is red on the left and blue on the right, its green channel is i."""

    def __init__(self, size: int = 16):
        self._size = size

    def __call__(self, i: int) -> Image.Image:
        pixels = np.zeros((self._size, self._size, 3), np.uint8)
        pixels[:, : self._size // 2, 0] = 255
        pixels[:, self._size // 2 :, 2] = 255
        pixels[:, :, 1] = i
        return Image.fromarray(pixels)

    def identity(self, i: int) -> str:
        return f"{self._size} {i}"


def own_megabytes(pid: int) -> float:
    """USS: the memory that a process shares with no other; Linux alone tells."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000
