"""Where the bytes of pictures lie. Here: in files of their own.

Everything that reads pictures takes a `StoredPictures`; another place for them is another class with these six methods.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from captioning.data.images import UnreadablePicture, decode_picture, read_file
from captioning.progress import progress

Stamp = tuple[int, int]  # bytes, and a number that another content does not have
Found = TypeVar("Found")

PORTION = 256  # pictures that a thread looks at before it reports
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"  # what COCO and Flickr are made of


class StoredPictures(Protocol):
    """N encoded pictures, by their numbers; picklable, and held in arrays, which loader workers share."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What picture i is found by: the path of a file, or `a.tar/b.jpg`; no other picture's."""

    def read(self, i: int) -> bytes:
        """The encoded picture; raises UnreadablePicture."""

    def stamp(self, i: int) -> Stamp | None:
        """Changes with picture i, and is found without reading it; None where it has gone."""

    def flaw(self, i: int) -> str | None:
        """One short reason why there is no whole picture, as far as is soon found out."""

    def part(self, chosen: Sequence[int] | np.ndarray) -> StoredPictures:
        """These pictures alone, in this order."""


class PictureFiles:
    """Pictures that are files of their own; their paths are one array of characters."""

    def __init__(self, paths: Sequence[Path] | np.ndarray):
        self._paths = paths if isinstance(paths, np.ndarray) else np.array([str(path) for path in paths])

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, i: int) -> str:
        """The path."""
        return str(self._paths[i])

    def read(self, i: int) -> bytes:
        """The file's bytes."""
        return read_file(Path(self.name(i)))

    def stamp(self, i: int) -> Stamp | None:
        """Size, and time of change in nanoseconds."""
        try:
            status = os.stat(self.name(i))  # noqa: PTH116
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def flaw(self, i: int) -> str | None:
        """As `flaw_of`; of a JPEG only both ends are read, about 20 microseconds a file."""
        return None if _is_whole_jpeg(Path(self.name(i))) else flaw_of(lambda: self.read(i))

    def part(self, chosen: Sequence[int] | np.ndarray) -> PictureFiles:
        """These files alone."""
        return PictureFiles(self._paths[np.asarray(chosen, int)])


def has_ends_of_a_jpeg(start: bytes, end: bytes) -> bool:
    """Whether the first three and the last two bytes are a whole JPEG's; damage in the middle is met in training."""
    return start == JPEG_START and end == JPEG_END


def flaw_of(read: Callable[[], bytes]) -> str | None:
    """One short reason why these bytes are no whole picture; a JPEG with both its ends is not decoded."""
    try:
        data = read()
        if not has_ends_of_a_jpeg(data[:3], data[-2:]):
            decode_picture(data)
    except UnreadablePicture as error:
        return str(error)
    return None


def flaws(stored: StoredPictures) -> dict[int, str]:
    """The pictures that are not whole, with the reasons; 16 threads wait at once where opening a file takes long."""
    found: dict[int, str] = {}
    with progress(len(stored), "checking", "pictures", leave=False, delay=2) as bar:
        for i, reason in enumerate(_of_each(stored, stored.flaw)):
            found |= {i: reason} if reason else {}
            bar.update()
    return found


def stamps_of(stored: StoredPictures) -> list[Stamp | None]:
    """What tells that pictures have changed."""
    return list(_of_each(stored, stored.stamp))


def _of_each(stored: StoredPictures, look: Callable[[int], Found]) -> Iterator[Found]:
    portions = [range(start, min(start + PORTION, len(stored))) for start in range(0, len(stored), PORTION)]
    with ThreadPoolExecutor(16) as threads:
        yield from chain.from_iterable(threads.map(lambda portion: list(map(look, portion)), portions))


def _is_whole_jpeg(path: Path) -> bool:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or not status.st_size:  # opening a pipe would wait for ever
            return False
        with path.open("rb", buffering=0) as file:
            start = file.read(len(JPEG_START))
            file.seek(-len(JPEG_END), os.SEEK_END)
            return has_ends_of_a_jpeg(start, file.read())
    except OSError:  # `read_file` says why
        return False
