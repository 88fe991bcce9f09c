"""`data=shapes` as a data module: its pictures are drawn once, when the splits are read."""

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioning.data.datamodule import CaptionDataModule
from captioning.data.records import Split
from captioning.errors import UserError
from captioning.shapes.grammar import captions_of, perplexity_floor
from captioning.shapes.scenes import draw, scene_of, split_indices


class DrawnPictures:
    """N drawn pictures in shared memory, (N, H, W, 3) uint8; called with i gives picture i."""

    def __init__(self, seed: int, indices: range, image_size: int):
        pictures = np.stack([draw(scene_of(seed, index), image_size) for index in indices])
        self._pictures: Tensor = torch.from_numpy(pictures).share_memory_()

    def __call__(self, i: int) -> Image.Image:
        return Image.fromarray(self._pictures[i].numpy())

    def identity(self, i: int) -> str:
        """A digest of its pixels."""
        return hashlib.blake2b(self._pictures[i].numpy().tobytes(), digest_size=16).hexdigest()


class ShapesDataModule(CaptionDataModule):
    """Drawn shapes; `train_pictures`, `val_pictures` and `test_pictures` say how many, `image_size` in pixels."""

    def __init__(self, *, image_size: int, train_pictures: int, val_pictures: int, test_pictures: int, **common: Any):
        super().__init__(**common)
        if not isinstance(image_size, int) or image_size < 1:
            raise UserError(
                f"data.image_size={image_size} must be a whole number of pixels; add model=tiny, or data.image_size=224"
            )
        self._image_size = image_size
        self._counts = {"train": train_pictures, "val": val_pictures, "test": test_pictures}

    def read(self) -> dict[str, Split]:
        """Draw every split."""
        return {name: self._drawn(split_indices(name, count)) for name, count in self._counts.items()}

    def _drawn(self, indices: range) -> Split:
        captions = [captions_of(self.seed, index) for index in indices]
        return Split(list(indices), captions, DrawnPictures(self.seed, indices, self._image_size))

    @cached_property
    def perplexity_floor(self) -> float | None:
        """exp of the mean -log p(caption | picture) per token over the validation split; exact."""
        if self._overfit_images is not None:
            return None  # one caption each: learned by heart, below any floor
        if any(self._count_tokens(c) + 1 > self.max_tokens for of_one in self.splits["val"].captions for c in of_one):
            return None  # the grammar's probabilities are those of whole captions
        return perplexity_floor(self.seed, split_indices("val", self._counts["val"]), self._count_tokens)

    def _count_tokens(self, caption: str) -> int:
        return len(self.tokenizer.encode([caption])[0]) - 2
