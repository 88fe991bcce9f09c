"""Batch by batch from pictures to captions, each picture encoded once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image

from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Caption, Decoding, generate_from
from captioning.prediction.batches import PictureBatch, Share, picture_loader
from captioning.prediction.devices import autocast
from captioning.prediction.splits import CaptionedSplit


class Described(NamedTuple):
    """A batch and a caption of each of its B readable pictures."""

    batch: PictureBatch
    captions: list[Caption]  # B
    own_loss: tuple[float, int] = (0.0, 0)  # nats and tokens of the pictures' own captions, where they have some


@dataclass(frozen=True)
class Work:
    """Which pictures are captioned, and how; can be sent to another process.

    Args:
        load: a picture by its place.
        addresses: of each picture the number that its draws belong to, where something is drawn.
        decoding: how captions are made.
        precision: what is computed in, see `devices.autocast`.
        batch_size: pictures captioned together.
        num_workers: processes that read pictures ahead.
        first: the place to begin at, a batch's first: what a picture is batched with can move its log-probability's
            last digits.
        thumbnails: made of each picture for a gallery.
        keeps_pixels: whether batches come back with their pixels, for heat maps.
        split: where the pictures have captions of their own, whose loss is measured too.
    """

    load: Callable[[int], Image.Image]
    addresses: Sequence[int]
    decoding: Decoding
    precision: str | int
    batch_size: int
    num_workers: int
    first: int = 0
    thumbnails: bool = False
    keeps_pixels: bool = False
    split: CaptionedSplit | None = None


def describe(
    work: Work, captioner: ImageCaptioner, device: torch.device, process: int = 0, processes: int = 1
) -> Iterator[Described]:
    """Caption the batches in order: all, or of several processes the share of one.

    Args:
        work: what there is to do.
        captioner: in eval mode, on its device.
        device: the captioner's.
        process, processes: the number of this one, and how many take turns.
    """
    count = len(work.addresses)
    batches = picture_loader(
        work.load,
        count,
        Share(work.first, count, work.batch_size, process, processes),
        captioner.picture_format,
        num_workers=work.num_workers,
        pin_memory=device.type == "cuda",
        thumbnails=work.thumbnails,
    )
    precision = autocast(device, work.precision)
    for batch in batches:
        if batch.pixel_values is None:
            yield Described(batch, [])
            continue
        with precision, torch.inference_mode():
            attended = captioner.encode(batch.pixel_values.to(device, non_blocking=True))
            addresses = [work.addresses[place] for place in batch.indices]
            captions = generate_from(captioner, attended, work.decoding, addresses)
        own_loss = (0.0, 0)
        if work.split is not None:
            with torch.inference_mode():
                nats, tokens = captioner.loss_from(attended, work.split.batch(batch.indices).to(device))
            own_loss = (nats.item(), int(tokens))
        yield Described(batch if work.keeps_pixels else batch._replace(pixel_values=None), captions, own_loss)
