"""What captions the parts of a large input: here the processes of this machine; a cluster's is in `on_ray.py`.

An engine is given a `Job` and parts, and gives rows in any order: those of a part are in order among themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from captioning.data.stored import StoredPictures
from captioning.errors import UserError
from captioning.model.build import load_captioner
from captioning.model.generation import Decoding, decoding_of
from captioning.prediction.caption import Model, Work, captioned, placed
from captioning.prediction.inputs import InputPictures, JoinedPictures
from captioning.prediction.journal import CaptionedPicture
from captioning.prediction.parts import Part, Reading
from captioning.weights import HuggingFaceModel

log = logging.getLogger(__name__)

WINDOW = 2**16  # pictures that processes of this machine are given together


@dataclass(frozen=True)
class Job:
    """How parts are captioned; can be sent to another machine.

    min_size: pixels of a shorter side below which a picture gets no caption.
    sizes: whether rows have width and height.
    """

    reading: Reading
    weights: Path | HuggingFaceModel
    decoding: Decoding
    precision: str | int
    batch_size: int
    num_workers: int
    min_size: int
    sizes: bool
    around: tuple[str, str] = ("", "")

    def work(self, pictures: StoredPictures) -> Work:
        """To caption these."""
        return Work(
            pictures=InputPictures.of(pictures),
            decoding=self.decoding,
            precision=self.precision,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            min_size=self.min_size,
            sizes=self.sizes,
            around=self.around,
        )


class Rows(NamedTuple):
    """Some rows of a part, of `total` that it has."""

    part: Part
    total: int
    records: Sequence[CaptionedPicture]


class Failure(NamedTuple):
    """Why a part gives no rows, or no more."""

    part: Part
    reason: str


Engine = Callable[[Sequence[Part], Job, Callable[[Part], int]], Iterator[Rows | Failure]]


def on_this_machine(
    parts: Sequence[Part], job: Job, done: Callable[[Part], int], devices: list[torch.device]
) -> Iterator[Rows | Failure]:
    """Caption the parts one after the other, with as many processes as there are devices.

    Args:
        parts: of the input.
        job: how.
        done: so many rows of a part are there already.
        devices: one for each process.
    """
    captioner, tokenizer = load_captioner(job.weights)
    job = replace(job, decoding=decoding_of(captioner, tokenizer, job.decoding))
    if len(devices) == 1:
        captioner = placed(captioner, devices[0], job.precision)
    model = Model(captioner, tokenizer, devices[0])
    for window in _windows(parts, job.reading, done):
        spans = [one for one in window if isinstance(one, _Span)]
        yield from (one for one in window if isinstance(one, Failure))
        yield from (Rows(one.part, one.total, ()) for one in spans if not len(one.rest))
        spans = [one for one in spans if len(one.rest)]
        if spans:
            work = job.work(JoinedPictures([one.rest for one in spans]))
            with captioned(work, model, devices, job.weights) as batches:
                yield from _by_part((batch.pictures for batch in batches), spans)


class _Span(NamedTuple):
    """A part's pictures that are still to be captioned, from `first` on."""

    part: Part
    total: int
    first: int
    rest: StoredPictures


def _windows(parts: Iterable[Part], reading: Reading, done: Callable[[Part], int]) -> Iterator[list[_Span | Failure]]:
    window: list[_Span | Failure] = []
    held = 0
    for part in parts:
        try:
            pictures = reading.opened(part)
        except UserError as error:
            window.append(Failure(part, str(error)))
            continue
        first = done(part)
        rest = pictures.part(np.arange(first, len(pictures))) if first else pictures
        window.append(_Span(part, len(pictures), first, rest))
        held += len(rest)
        if held >= WINDOW:
            yield window
            window, held = [], 0
    yield window


def _by_part(batches: Iterable[Sequence[CaptionedPicture]], spans: Sequence[_Span]) -> Iterator[Rows]:
    """The rows of each span, with their places in its part."""
    left = iter(spans)
    span, start = next(left), 0  # the place at which its first picture lies among all
    for batch in batches:
        some: list[CaptionedPicture] = []
        for record in batch:
            if record.place - start == len(span.rest):
                yield Rows(span.part, span.total, some)
                start, span, some = start + len(span.rest), next(left), []
            some.append(replace(record, place=record.place - start + span.first))
        yield Rows(span.part, span.total, some)
