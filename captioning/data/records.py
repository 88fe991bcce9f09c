"""What annotation files give, in whichever format they come: photographs, and splits of pictures with their captions.

Needs neither torch nor a picture library, so that annotation files are read, and found wrong, before these are loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from captioning.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

ImageId = int | str  # COCO's number, or a file name
SPANS_AT_ONCE = 50_000  # texts that are copied together, by eight bytes for each of theirs


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph, its captions and the split that its annotation files put it in.

    `image_id` is unique in a data set. `split` is `train`, `restval`, `val`, `test`, or the empty string where the
    files say nothing.
    """

    image_id: ImageId
    path: Path
    captions: tuple[str, ...]
    split: str = ""


class Texts(Sequence[str]):
    """N texts as one array of UTF-8, beside where each begins: of millions, Python's objects take many times as much.

    Args:
        data: bytes, all texts end to end.
        starts: (N + 1,) the first byte of each, and the end of the last.

    >>> list(Texts.of(["a dog", "", "ünï"])[1:])
    ['', 'ünï']
    """

    def __init__(self, data: np.ndarray, starts: np.ndarray):
        self.data, self.starts = data, starts

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """These texts; half a surrogate pair is kept as it is."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        return cls(np.frombuffer(b"".join(encoded), np.uint8), starts_of([len(one) for one in encoded]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.part(np.arange(len(self))[i])
        first, last = _span(self.starts, i)
        return self.data[first:last].tobytes().decode("utf-8", "surrogatepass")

    def part(self, chosen: np.ndarray) -> Texts:
        """These of them, in this order."""
        few = (chosen[start : start + SPANS_AT_ONCE] for start in range(0, len(chosen), SPANS_AT_ONCE))
        data = _end_to_end([self.data[_spans(self.starts, some)] for some in few])
        return Texts(data, starts_of(np.diff(self.starts)[chosen]))

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """All texts of all parts."""
        lengths = [np.diff(part.starts) for part in parts]
        return cls(_end_to_end([part.data for part in parts]), starts_of(_end_to_end(lengths)))


class TextLists(Sequence[Texts]):
    """N lists of texts: the captions of N pictures; list i has the texts from `starts[i]` to `starts[i + 1]`."""

    def __init__(self, texts: Texts, starts: np.ndarray):
        self.texts, self.starts = texts, starts

    @classmethod
    def of(cls, lists: Sequence[Sequence[str]]) -> TextLists:
        """These lists."""
        return cls(Texts.of(text for texts in lists for text in texts), starts_of([len(texts) for texts in lists]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.part(np.arange(len(self))[i])
        first, last = _span(self.starts, i)
        return Texts(self.texts.data, self.texts.starts[first : last + 1])

    def part(self, chosen: np.ndarray) -> TextLists:
        """These of them, in this order."""
        return TextLists(self.texts.part(_spans(self.starts, chosen)), starts_of(np.diff(self.starts)[chosen]))

    @classmethod
    def joined(cls, parts: Sequence[TextLists]) -> TextLists:
        """All lists of all parts."""
        counts = [np.diff(part.starts) for part in parts]
        return cls(Texts.joined([part.texts for part in parts]), starts_of(_end_to_end(counts)))


def starts_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """(N + 1,) where each of N spans that lie end to end begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _end_to_end(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, np.uint8)


def _span(starts: np.ndarray, i: int) -> tuple[int, int]:
    """Where span i begins and ends; raises IndexError where there is none."""
    if not -len(starts) < i < len(starts) - 1:
        raise IndexError(i)
    i += len(starts) - 1 if i < 0 else 0
    return starts[i], starts[i + 1]


def _spans(starts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The numbers in the chosen spans, end to end."""
    firsts, lengths = starts[:-1][chosen], np.diff(starts)[chosen]
    return np.repeat(firsts - starts_of(lengths)[:-1], lengths) + np.arange(lengths.sum())


class Pictures(Protocol):
    """Numbered pictures; must be picklable, for workers."""

    def __call__(self, i: int) -> Image.Image:
        """Picture i, upright RGB; raises DamagedPicture where its file is found damaged only now."""

    def identity(self, i: int) -> str:
        """Changes whenever picture i does, and is no other picture's; found without decoding it."""


class DamagedPicture(UserError):
    """A picture of a data set turns out to be unreadable after set-up has taken it as sound."""


@dataclass(frozen=True)
class Neighbours:
    """Which pictures are fetched together, and so are best read soon after each other.

    run_of: (N,) the number of each picture's run, rising.
    at_once: runs that may be held at the same time.
    lanes: equal parts that an epoch is divided into, of runs of their own; each batch takes from all in turn.
    """

    run_of: np.ndarray
    at_once: int
    lanes: int = 1


@dataclass(frozen=True)
class Split:
    """N pictures and their captions, as annotation files or the drawn data set give them."""

    image_ids: Sequence[ImageId]
    captions: Sequence[Sequence[str]]
    load: Pictures
    skips_damaged: bool = False  # whether rows go on without a picture that raises DamagedPicture
    neighbours: Neighbours | None = None  # None where all pictures are equally near

    def __len__(self) -> int:
        return len(self.image_ids)

    def first(self, pictures: int, captions: int) -> Split:
        """The same data set cut to its first pictures and the first captions of each."""
        fewer = [of_picture[:captions] for of_picture in self.captions[:pictures]]
        near = self.neighbours and replace(self.neighbours, run_of=self.neighbours.run_of[:pictures])
        return replace(self, image_ids=self.image_ids[:pictures], captions=fewer, neighbours=near)
