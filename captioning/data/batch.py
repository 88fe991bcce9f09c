"""The one contract between data and model: how a picture must look, what a batch is, and how rows become one.

A row is one picture and some of its captions laid end to end, so that the picture is encoded once for all of them.

Letters used in shape comments: B rows, S packed tokens of a row, K captions of a row, H and W the picture's height and
width, P encoded patches (prefix tokens included), D the encoder's width, N labels of all rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioning.data.records import ImageId

IGNORE = -100  # the label of a position that is not scored, cross-entropy's own default


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """How the encoder wants its pictures, read from its own checkpoint's processor.

    `size` is (height, width) in pixels. The whole picture is squeezed into it; or, with `resize_shortest`, the shorter
    side is resized to that, with `resize_whole` the whole picture is squeezed into that, without `resizes` it stays as
    it is, and then the middle is cut out, black where there is none. `mean` and `std` are per channel, for values in
    0..1.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: str = "bilinear"  # or "bicubic", "nearest", "lanczos": a filter's name
    resize_shortest: int | None = None  # pixels
    resize_whole: tuple[int, int] | None = None  # (height, width) in pixels
    resizes: bool = True

    def resized_to(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of a picture of these before the middle is cut out, if it is."""
        if not self.resizes:
            return width, height
        if self.resize_shortest is None:
            high, wide = self.resize_whole or self.size
            return wide, high
        shortest = min(width, height)
        # the longer side is rounded down, as transformers does
        return int(self.resize_shortest * width / shortest), int(self.resize_shortest * height / shortest)


@dataclass(slots=True)
class CaptionBatch:
    """B pictures, each with up to K captions laid end to end in one row (packing).

    A picture comes either as `pixel_values` or, where the frozen encoder's outputs are kept, as the
    `encoder_hidden_states` that they would be encoded to, before any projection; the other one is None.

    `caption_index` is 1..K within a caption and 0 on padding, so that padding is known by position and never by
    comparing token ids. `labels` are already shifted: `labels[b, s]` is the token that follows `input_ids[b, s]` in
    the same caption, or `IGNORE`. `labelled` says where labels are: position s of row b is number b * S + s. A GPU is
    given it, for to find it there the host would have to wait: how many there are is a shape. `image_ids` and
    `caption_count` stay on the host, likewise.
    """

    pixel_values: Tensor | None  # (B, 3, H, W) uint8
    input_ids: Tensor  # (B, S) int64
    position_ids: Tensor  # (B, S) int64, restarting at 0 in each caption
    caption_index: Tensor  # (B, S) int64
    labels: Tensor  # (B, S) int64
    labelled: Tensor  # (N,) int64, rising
    image_ids: tuple[ImageId, ...]
    caption_count: int  # of all rows
    encoder_hidden_states: Tensor | None = None  # (B, P, D) in the number format that they are kept in

    def to(self, device: torch.device | str) -> "CaptionBatch":
        """The same batch with its tensors on `device`; Lightning calls it, and lets only plain tensors not wait.

        A GPU copies from pinned memory on its own; elsewhere not waiting is not safe (PyTorch issue 83015).
        """
        non_blocking = torch.device(device).type == "cuda"
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "CaptionBatch":
        """The same batch in page-locked host memory, from which a GPU copies asynchronously."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "CaptionBatch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def __len__(self) -> int:
        return self.input_ids.shape[0]


class Row(NamedTuple):
    """One picture, as pixels or as what the encoder made of them, and the captions that share it in this batch."""

    image_id: ImageId
    pixels: Tensor | None  # (3, H, W) uint8
    captions: list[np.ndarray]  # each from BOS to EOS
    encoder_hidden_states: Tensor | None = None  # (P, D)


def pack(rows: Sequence[Row], multiple: int = 1) -> CaptionBatch:
    """Lay each row's captions end to end and pad to the longest row of this batch, never to a fixed length.

    With `multiple`, S is one of it: a GPU likes rows of aligned lengths, and torch.compile few lengths.

    This is the one place where labels are shifted: position s is labelled with the token that follows it in the same
    caption, so BOS is an input and never a label, EOS a label and never an input.

    Two rows, with BOS = EOS = 0; the first picture has the captions "5 6" and "7", the second has "8":

    >>> pixels = torch.zeros(3, 2, 2, dtype=torch.uint8)
    >>> two, one = [np.array([0, 5, 6, 0]), np.array([0, 7, 0])], [np.array([0, 8, 0])]
    >>> batch = pack([Row("a", pixels, two), Row("b", pixels, one)])
    >>> batch.input_ids
    tensor([[0, 5, 6, 0, 7],
            [0, 8, 0, 0, 0]])
    >>> batch.position_ids
    tensor([[0, 1, 2, 0, 1],
            [0, 1, 0, 0, 0]])
    >>> batch.caption_index
    tensor([[1, 1, 1, 2, 2],
            [1, 1, 0, 0, 0]])
    >>> batch.labels
    tensor([[   5,    6,    0,    7,    0],
            [   8,    0, -100, -100, -100]])
    >>> batch.labelled
    tensor([0, 1, 2, 3, 4, 5, 6])
    >>> batch.image_ids, len(batch), batch.caption_count
    (('a', 'b'), 2, 3)
    """
    longest = max(sum(len(ids) - 1 for ids in row.captions) for row in rows)
    length = -(-longest // multiple) * multiple
    input_ids = np.zeros((len(rows), length), np.int64)
    position_ids = np.zeros((len(rows), length), np.int64)
    caption_index = np.zeros((len(rows), length), np.int64)
    labels = np.full((len(rows), length), IGNORE, np.int64)
    for r, row in enumerate(rows):
        start = 0
        for number, ids in enumerate(row.captions, start=1):
            here = slice(start, start + len(ids) - 1)
            input_ids[r, here] = ids[:-1]
            position_ids[r, here] = np.arange(len(ids) - 1)
            caption_index[r, here] = number
            labels[r, here] = ids[1:]
            start = here.stop
    return CaptionBatch(
        pixel_values=_stacked([row.pixels for row in rows]),
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        caption_index=torch.from_numpy(caption_index),
        labels=torch.from_numpy(labels),
        labelled=torch.from_numpy(np.flatnonzero(labels != IGNORE)),
        image_ids=tuple(row.image_id for row in rows),
        caption_count=sum(len(row.captions) for row in rows),
        encoder_hidden_states=_stacked([row.encoder_hidden_states for row in rows]),
    )


def _stacked(of_rows: list[Tensor | None]) -> Tensor | None:
    there = [tensor for tensor in of_rows if tensor is not None]
    return torch.stack(there) if there else None
