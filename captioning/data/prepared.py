"""Photographs stored once at about training size: what lies in a pack, and which packs still tell the truth.

A pack is one file: a line of JSON that says how and from which files its pictures were made, then their pixels end to
end, three bytes each: about 33 GB for COCO at 256 pixels. JPEGs of quality 90 would take 4 GB, but decoding them would
again be most of the work, and cost detail. A pack is written whole or not at all, so there is no other manifest to fall
out of step. A prepared picture counts only while its source has the size and time of modification that the pack names,
and while the pack was made as this version makes packs; `preparation.py` makes them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioning.errors import UserError

RECIPE = {
    "version": 1,
    "filter": "lanczos",
    "pixels": "RGB, row by row",
}  # a change makes every pack that exists worthless
SUFFIX = ".pictures"
PORTION = 128  # pictures in a pack, of about 36 MB: what a kill costs, and few files for a network drive

Stamp = tuple[int, int]  # bytes and time of modification in nanoseconds


@dataclass(frozen=True)
class Pack:
    """What the first line of a pack says of its N pictures."""

    path: Path
    size: int  # pixels of the shorter side
    names: list[str]  # of the sources, relative to data.root
    stamps: list[Stamp]  # of the sources
    places: np.ndarray  # (N, 3) each picture's first byte in the pack, its width and its height


@dataclass(frozen=True)
class Places:
    """Where N photographs lie prepared; loader workers share the arrays."""

    packs: np.ndarray  # paths
    pack_of: np.ndarray  # (N,) index into `packs`; -1 where there is no current picture
    place_of: np.ndarray  # (N, 3) the first byte there, width and height
    size: int | None  # pixels of the shorter side, the least of all packs in use; None where none is

    def __len__(self) -> int:
        return int((self.pack_of >= 0).sum())

    def load(self, i: int) -> Image.Image:
        """Photograph i, upright RGB; raises UserError where the pack has gone or is damaged."""
        path = Path(str(self.packs[self.pack_of[i]]))
        start, width, height = self.place_of[i].tolist()
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                return Image.frombytes("RGB", (width, height), file.read(3 * width * height))
        except (OSError, ValueError) as error:  # ValueError: there are fewer bytes
            raise UserError(
                f"{path} cannot be read: {error}; delete it and run python prepare.py again, or set data.prepared=null"
            ) from error


def header(size: int, names: Sequence[str], stamps: Sequence[Stamp], sides: Sequence[tuple[int, int]]) -> bytes:
    """A pack's first line; `sides` are the pictures' widths and heights as they lie there."""
    pictures = [(name, *stamp, *wide_high) for name, stamp, wide_high in zip(names, stamps, sides, strict=True)]
    return json.dumps({"recipe": RECIPE, "size": size, "pictures": pictures}).encode() + b"\n"


def packs_in(folder: Path) -> list[Path]:
    """The files of all packs, also of those that no longer count."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def read_pack(path: Path) -> Pack | None:
    """A pack without its pictures; None where it is not whole, or was made in another way than `RECIPE`."""
    try:
        with path.open("rb") as file:
            line = file.readline()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; data.prepared=null does without it") from error
    try:
        told: dict[str, Any] = json.loads(line)
        if told["recipe"] != RECIPE:
            return None
        names, sizes, times, widths, heights = map(list, zip(*told["pictures"], strict=True))
        ends = len(line) + np.cumsum(3 * np.multiply(widths, heights))
        size = int(told["size"])
    except (ValueError, KeyError, TypeError):
        return None
    if path.stat().st_size != ends[-1]:
        return None
    starts = np.concatenate([[len(line)], ends[:-1]])
    places = np.stack([starts, widths, heights], axis=1)
    return Pack(path, size, names, list(zip(sizes, times, strict=True)), places)


def find_prepared(folder: Path, root: Path, paths: Sequence[Path]) -> Places:
    """Where these photographs lie prepared, as far as they have not changed since."""
    names = names_under(root, paths)
    wanted = {(name, stamp): i for i, (name, stamp) in enumerate(zip(names, stamps_of(paths), strict=True)) if stamp}
    packs = [pack for path in packs_in(folder) if (pack := read_pack(path))]
    pack_of, place_of, sizes = np.full(len(paths), -1, np.int32), np.zeros((len(paths), 3), np.int64), []
    for number, pack in enumerate(packs):
        rows = [wanted.get(source, -1) for source in zip(pack.names, pack.stamps, strict=True)]
        current = np.array(rows) >= 0
        pack_of[np.array(rows)[current]] = number
        place_of[np.array(rows)[current]] = pack.places[current]
        sizes += [pack.size] if current.any() else []
    return Places(np.array([str(pack.path) for pack in packs]), pack_of, place_of, min(sizes, default=None))


def names_under(root: Path, paths: Sequence[Path]) -> list[str]:
    """The paths relative to root, with slashes, so that a data set may be moved with what was made of it."""
    return [Path(os.path.relpath(path, root)).as_posix() for path in paths]


def stamps_of(paths: Sequence[Path]) -> list[Stamp | None]:
    """What tells that a file has changed; None for one that isn't there. 16 threads wait at once for slow drives."""
    with ThreadPoolExecutor(16) as threads:
        return list(chain.from_iterable(threads.map(lambda some: list(map(stamp_of, some)), portions(paths))))


def stamp_of(path: Path) -> Stamp | None:
    """The same of one file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def portions(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """The photographs of one pack after the other."""
    for start in range(0, len(paths), PORTION):
        yield paths[start : start + PORTION]
