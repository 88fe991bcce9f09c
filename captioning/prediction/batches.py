"""Picture files -> batches for the model, and a reason for each that cannot be read."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from captioning.data.batch import PictureFormat
from captioning.data.images import UnreadablePicture
from captioning.data.transforms import EvaluationTransform
from captioning.prediction.thumbnails import thumbnail


class PictureBatch(NamedTuple):
    """B pictures that could be read, and those that could not; numbers are places in the list of paths."""

    indices: list[int]  # B
    pixel_values: Tensor | None  # (B, 3, H, W) uint8; None where nothing could be read
    unreadable: list[tuple[int, str]]  # each with its reason
    thumbnails: list[bytes | None]  # B; each None where none are made


class PictureItem(NamedTuple):
    """A picture's number, what the encoder gets of it or the reason why it can't be read, and its thumbnail."""

    number: int
    pixels: Tensor | str  # (3, H, W) uint8
    thumbnail: bytes | None = None


class PictureItems(Dataset[PictureItem]):
    """Item i is picture i, transformed; with `thumbnails` a small picture is made while the large one is at hand."""

    def __init__(
        self,
        load: Callable[[int], Image.Image],
        count: int,
        transform: Callable[[Image.Image], Tensor],
        thumbnails: bool = False,
    ):
        self._load, self._count = load, count
        self._transform = transform
        self._thumbnails = thumbnails

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, indices: Sequence[int]) -> list[PictureItem]:
        """These items, read by as many threads at once as torch computes with: in a loader worker that is one."""
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return list(threads.map(self.__getitem__, indices))

    def __getitem__(self, index: int) -> PictureItem:
        try:
            picture = self._load(index)
        except UnreadablePicture as reason:
            return PictureItem(index, str(reason))
        return PictureItem(index, self._transform(picture), thumbnail(picture) if self._thumbnails else None)


def collate_pictures(items: Sequence[PictureItem]) -> PictureBatch:
    """Items of `PictureItems` -> one batch; also of items that are all unreadable.

    >>> collate_pictures([PictureItem(0, "empty file")])
    PictureBatch(indices=[], pixel_values=None, unreadable=[(0, 'empty file')], thumbnails=[])
    """
    readable = [(item, item.pixels) for item in items if isinstance(item.pixels, Tensor)]
    return PictureBatch(
        indices=[item.number for item, _ in readable],
        pixel_values=torch.stack([pixels for _, pixels in readable]) if readable else None,
        unreadable=[(item.number, item.pixels) for item in items if isinstance(item.pixels, str)],
        thumbnails=[item.thumbnail for item, _ in readable],
    )


class Share(Sampler[list[int]]):
    """Batches of the places from `first` on: of `processes` that take turns, those of number `process`.

    >>> list(Share(first=4, count=11, batch_size=2, process=1, processes=2))
    [[6, 7], [10]]
    """

    def __init__(self, first: int, count: int, batch_size: int, process: int = 0, processes: int = 1):
        self._starts = range(first + process * batch_size, count, processes * batch_size)
        self._count, self._batch_size = count, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts:
            yield list(range(start, min(self._count, start + self._batch_size)))

    def __len__(self) -> int:
        return len(self._starts)


def picture_loader(
    load: Callable[[int], Image.Image],
    count: int,
    batches: Share,
    picture_format: PictureFormat,
    *,
    num_workers: int,
    pin_memory: bool,
    thumbnails: bool = False,
) -> DataLoader:
    """Batches of `count` pictures, read ahead by `num_workers` processes while the model is at work.

    Without any, pictures are read between the model's batches by all cores.
    """
    return DataLoader(
        PictureItems(load, count, EvaluationTransform(picture_format), thumbnails),
        batch_sampler=batches,
        num_workers=min(num_workers, len(batches)),
        collate_fn=collate_pictures,
        pin_memory=pin_memory,
    )
