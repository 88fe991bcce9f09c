"""What captions the parts of a large input: here the processes of this machine; a cluster's is in `on_ray.py`.

An engine is given a `Job` and parts, and gives rows in any order: those of a part are in order among themselves.
"""

from __future__ import annotations

import logging
import pickle
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import takewhile
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
AT_ONCE = 1000  # rows that come out of order


@dataclass(frozen=True)
class Job:
    """How parts are captioned; can be sent to another machine.

    min_size: pixels of a shorter side below which a picture gets no caption.
    sizes: whether rows have width and height.
    thumbnails: whether they have a small picture.
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
    thumbnails: bool = False

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
            thumbnails=self.thumbnails,
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


Engine = Callable[[Sequence[Part], Job, Callable[[Part], int]], Generator[Rows | Failure, None, None]]


def on_this_machine(
    parts: Sequence[Part], job: Job, done: Callable[[Part], int], devices: list[torch.device]
) -> Generator[Rows | Failure, None, None]:
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


def in_order(
    rows: Iterable[Rows | Failure], spans: Mapping[str, tuple[int, int]], first: int
) -> Iterator[list[CaptionedPicture]]:
    """The rows of all parts one after the other, with their places in the whole input, from `first` on.

    Rows that come before their turn lie in a database that SQLite keeps in a nameless file: so memory does not grow,
    however late a part is whose reader was killed.

    Args:
        rows: as an engine gives them.
        spans: where each part begins in the whole, and how many pictures it has.
        first: so many rows are not wanted.

    Raises:
        UserError: a part gives no rows, or has become another since it was counted.
    """
    at = first
    with closing(sqlite3.connect("", isolation_level=None)) as early:
        early.execute("create table rows (place integer primary key, record blob)")
        for one in rows:
            if isinstance(one, Failure):
                raise UserError(f"{one.reason}; resume=true goes on")
            start, size = spans[one.part.name]
            if one.total != size:
                what = one.part.shard or one.part.name
                raise UserError(f"{what} had {size} pictures when this began, and has {one.total} now; begin anew")
            placed = [replace(record, place=start + record.place) for record in one.records]
            some = [(record.place, pickle.dumps(record)) for record in placed if record.place >= at]
            early.executemany("insert or ignore into rows values (?, ?)", some)
            while batch := _due(early, at):
                at += len(batch)
                early.execute("delete from rows where place < ?", (at,))
                yield batch


def _due(early: sqlite3.Connection, at: int) -> list[CaptionedPicture]:
    """The rows that follow each other from this place on, but not all of those that one part held up."""
    some = early.execute("select * from rows order by place limit ?", (AT_ONCE,))
    in_turn = takewhile(lambda one: one[1][0] == one[0], enumerate(some, at))
    return [pickle.loads(record) for _, (_, record) in in_turn]
