"""`data=shapes` as a data module: its pictures are drawn once, when a model has said how large."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioning.data.datamodule import CaptionDataModule
from captioning.data.records import Split
from captioning.shapes.grammar import captions_of, perplexity_floor
from captioning.shapes.scenes import draw, scene_of, split_indices


class DrawnPictures:
    """The pictures of N scenes, drawn once into shared memory, (N, H, W, 3) uint8; called with i gives picture i."""

    def __init__(self, seed: int, indices: Sequence[int]):
        self._seed, self._indices = seed, indices
        self._pictures: Tensor | None = None

    def draw(self, image_size: int) -> None:
        """Draw all of them, `image_size` pixels a side, unless they are."""
        if self._pictures is None or self._pictures.shape[1] != image_size:
            pictures = np.stack([draw(scene_of(self._seed, index), image_size) for index in self._indices])
            self._pictures = torch.from_numpy(pictures).share_memory_()

    def __call__(self, i: int) -> Image.Image:
        return Image.fromarray(self._pixels(i))

    def identity(self, i: int) -> str:
        """A digest of its pixels."""
        return hashlib.blake2b(self._pixels(i).tobytes(), digest_size=16).hexdigest()

    def _pixels(self, i: int) -> np.ndarray:
        assert self._pictures is not None, "a data module's connect(...) says first how large they are drawn"
        return self._pictures[i].numpy()


class ShapesDataModule(CaptionDataModule):
    """Drawn shapes.

    Args:
        image_size: pixels a side; None is the size that the model takes.
        train_pictures, val_pictures, test_pictures: how many are drawn.
    """

    def __init__(
        self, *, image_size: int | None, train_pictures: int, val_pictures: int, test_pictures: int, **common: Any
    ):
        super().__init__(**common)
        self._image_size = image_size
        self._counts = {"train": train_pictures, "val": val_pictures, "test": test_pictures}

    def read(self) -> dict[str, Split]:
        """The captions of every split; pictures are drawn once their size is known."""
        return {name: self._split(split_indices(name, count)) for name, count in self._counts.items()}

    def _split(self, indices: range) -> Split:
        captions = [captions_of(self.seed, index) for index in indices]
        return Split(list(indices), captions, DrawnPictures(self.seed, indices))

    def fit_pictures(self, splits: Sequence[str]) -> None:
        """Draw them, as large as the model takes them."""
        for name in splits:
            pictures = self.splits[name].load
            assert isinstance(pictures, DrawnPictures)
            pictures.draw(self._image_size or max(self.picture_format.size))

    @cached_property
    def perplexity_floor(self) -> float | None:  # type: ignore[override]  # costs a second, so only where it is shown
        """exp of the mean -log p(caption | picture) per token over the validation split; exact."""
        if self._overfit_images is not None:
            return None  # one caption each: learned by heart, below any floor
        if any(self._count_tokens(c) + 1 > self.max_tokens for of_one in self.splits["val"].captions for c in of_one):
            return None  # the grammar's probabilities are those of whole captions
        return perplexity_floor(self.seed, split_indices("val", self._counts["val"]), self._count_tokens)

    def _count_tokens(self, caption: str) -> int:
        return len(self.tokenizer.encode([caption])[0]) - 2
