"""Batch by batch from pictures to captions, each picture encoded once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Caption, Decoding, generate_from
from captioning.prediction.batches import PictureBatch


class Described(NamedTuple):
    """A batch, what its B readable pictures were encoded to, and a caption of each."""

    batch: PictureBatch
    attended: Tensor | None  # (B, P, D); None where no picture could be read
    captions: list[Caption]  # B


def describe(
    batches: Iterable[PictureBatch],
    captioner: ImageCaptioner,
    decoding: Decoding,
    address: Callable[[int], int],
    device: torch.device,
    precision: AbstractContextManager,
) -> Iterator[Described]:
    """Caption the batches.

    Args:
        batches: of pictures by their places.
        captioner: in eval mode, on its device.
        decoding: how captions are made.
        address: of a place the number that its picture's draws belong to, where something is drawn.
        device: the captioner's.
        precision: the context to compute in; entered once a batch.
    """
    for batch in batches:
        if batch.pixel_values is None:
            yield Described(batch, None, [])
            continue
        with precision, torch.inference_mode():
            attended = captioner.encode(batch.pixel_values.to(device, non_blocking=True))
            captions = generate_from(captioner, attended, decoding, [address(place) for place in batch.indices])
        yield Described(batch, attended, captions)
