"""Picture files -> batches for the model, and a reason for each that cannot be read."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.batch import PictureFormat
from captioning.data.pictures import UnreadablePicture, read_picture
from captioning.data.transforms import EvaluationTransform


class PictureBatch(NamedTuple):
    """B pictures that could be read, and those that could not; numbers are places in the list of paths."""

    indices: list[int]  # B
    pixel_values: Tensor | None  # (B, 3, H, W) uint8; None where nothing could be read
    unreadable: list[tuple[int, str]]  # each with its reason


class PictureFiles(Dataset[tuple[int, Tensor | str]]):
    """Item i is (i, picture i as a uint8 tensor (3, H, W)), or (i, the reason why it can't be read)."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], Tensor]):
        self._paths = paths
        self._transform = transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, Tensor | str]]:
        """These items, read by as many threads at once as torch computes with: in a loader worker that is one."""
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return list(threads.map(self.__getitem__, indices))

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, self._transform(read_picture(self._paths[index]))
        except UnreadablePicture as reason:
            return index, str(reason)


def collate_pictures(items: Sequence[tuple[int, Tensor | str]]) -> PictureBatch:
    """Items of `PictureFiles` -> one batch; also of items that are all unreadable.

    >>> collate_pictures([(0, "empty file")])
    PictureBatch(indices=[], pixel_values=None, unreadable=[(0, 'empty file')])
    """
    readable = [(index, pixels) for index, pixels in items if isinstance(pixels, Tensor)]
    return PictureBatch(
        indices=[index for index, _ in readable],
        pixel_values=torch.stack([pixels for _, pixels in readable]) if readable else None,
        unreadable=[(index, reason) for index, reason in items if isinstance(reason, str)],
    )


def picture_loader(
    paths: Sequence[Path], picture_format: PictureFormat, *, batch_size: int, num_workers: int, pin_memory: bool
) -> DataLoader:
    """Batches of the pictures in order, read ahead by `num_workers` processes while the model is at work.

    Without any, pictures are read between the model's batches by all cores.
    """
    return DataLoader(
        PictureFiles(paths, EvaluationTransform(picture_format)),
        batch_size=batch_size,
        num_workers=min(num_workers, len(paths)),
        collate_fn=collate_pictures,
        pin_memory=pin_memory,
    )
