"""Rows of several captions: what one picture's captions look like in a batch, and how a batch is padded."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captioning.batch import IGNORE, CaptionBatch


class Row(NamedTuple):
    """One picture, as pixels or as what the encoder made of them, and the captions that share it in this batch."""

    image_id: int | str
    pixels: Tensor | None  # (3, H, W) uint8
    captions: list[np.ndarray]  # each from BOS to EOS
    encoder_hidden_states: Tensor | None = None  # (P, D)


def pack(rows: Sequence[Row]) -> CaptionBatch:
    """Lay each row's captions end to end and pad to the longest row of this batch, never to a fixed length.

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
    >>> batch.image_ids, len(batch), batch.caption_count
    (('a', 'b'), 2, 3)
    """
    length = max(sum(len(ids) - 1 for ids in row.captions) for row in rows)
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
        image_ids=tuple(row.image_id for row in rows),
        caption_count=sum(len(row.captions) for row in rows),
        encoder_hidden_states=_stacked([row.encoder_hidden_states for row in rows]),
    )


def _stacked(of_rows: list[Tensor | None]) -> Tensor | None:
    there = [tensor for tensor in of_rows if tensor is not None]
    return torch.stack(there) if there else None
