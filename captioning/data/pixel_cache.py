"""Photographs stored once at about training size, so that no epoch decodes JPEGs.

`prepare_pictures` makes packs of them, with many processes, and a kill costs only the packs in the making;
`find_prepared` says where photographs lie in them. A pack is one file: a line of JSON that says how and from which
files its pictures were made, then their pixels end to end, three bytes each: about 33 GB for COCO at 256 pixels. JPEGs
of quality 90 would take 4 GB, but decoding them would again be most of the work, and cost detail.

A pack is written whole or not at all, so there is no other manifest to fall out of step. A picture in it counts only
while its source has the stamp (of a file: size and time of modification) that the pack names, and while the pack was
made as this version makes packs.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from captioning.data.images import UnreadablePicture, decode_picture
from captioning.data.stored import Stamp, StoredPictures, stamps_of
from captioning.errors import UserError, writing
from captioning.files import atomic_file, readable
from captioning.progress import progress

log = logging.getLogger(__name__)

RECIPE = {
    "version": 1,
    "filter": "lanczos",
    "pixels": "RGB, row by row",
}  # a change makes every pack that exists worthless
SUFFIX = ".pictures"
PORTION = 128  # pictures in a pack, of about 36 MB: what a kill costs, and few files for a network drive


@dataclass(frozen=True)
class Pack:
    """What the first line of a pack says of its N pictures."""

    path: Path
    size: int  # pixels of the shorter side
    names: list[str]  # of the sources, relative to data.root where they are files
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
        head: dict[str, Any] = json.loads(line)
        if head["recipe"] != RECIPE:
            return None
        names, sizes, times, widths, heights = map(list, zip(*head["pictures"], strict=True))
        ends = len(line) + np.cumsum(3 * np.multiply(widths, heights))
        size = int(head["size"])
    except (ValueError, KeyError, TypeError):
        return None
    if path.stat().st_size != ends[-1]:
        return None
    starts = np.concatenate([[len(line)], ends[:-1]])
    places = np.stack([starts, widths, heights], axis=1)
    return Pack(path, size, names, list(zip(sizes, times, strict=True)), places)


def find_prepared(folder: Path, root: Path, stored: StoredPictures) -> Places:
    """Where these photographs lie prepared, as far as they have not changed since."""
    names = names_under(root, stored)
    wanted = {(name, stamp): i for i, (name, stamp) in enumerate(zip(names, stamps_of(stored), strict=True)) if stamp}
    packs = [pack for path in packs_in(folder) if (pack := read_pack(path))]
    pack_of, place_of, sizes = np.full(len(stored), -1, np.int32), np.zeros((len(stored), 3), np.int64), []
    for number, pack in enumerate(packs):
        rows = [wanted.get(source, -1) for source in zip(pack.names, pack.stamps, strict=True)]
        current = np.array(rows) >= 0
        pack_of[np.array(rows)[current]] = number
        place_of[np.array(rows)[current]] = pack.places[current]
        sizes += [pack.size] if current.any() else []
    return Places(np.array([str(pack.path) for pack in packs]), pack_of, place_of, min(sizes, default=None))


def names_under(root: Path, stored: StoredPictures) -> list[str]:
    """Paths are relative to root, with slashes, so that a data set may be moved with what was made of it."""
    names = (stored.name(i) for i in range(len(stored)))
    return [name if "://" in name else Path(os.path.relpath(name, root)).as_posix() for name in names]


def portions(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """The photographs of one pack after the other."""
    for start in range(0, len(numbers), PORTION):
        yield numbers[start : start + PORTION]


ASPECT = 4 / 3  # of the usual photograph
ABANDONED_SECONDS = 3600  # after which a file under a temporary name is what a kill left behind


@dataclass
class Outcome:
    """What became of some photographs: how many are stored, and why others are not."""

    stored: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)  # by name


class Packs(Dataset[Outcome]):
    """Item i makes pack i; a DataLoader's workers end with the process that started them, even if it is killed."""

    def __init__(self, folder: Path, root: Path, stored: StoredPictures, size: int):
        self._folder, self._root, self._size = folder, root, size
        self._portions = [stored.part(numbers) for numbers in portions(range(len(stored)))]

    def __len__(self) -> int:
        return len(self._portions)

    def __getitem__(self, i: int) -> Outcome:
        return make_pack(self._folder, self._root, self._portions[i], self._size)


def prepare_pictures(folder: Path, root: Path, stored: StoredPictures, size: int, num_workers: int) -> Outcome:
    """Store the photographs that are not yet stored as they are now, with `size` pixels on the shorter side.

    Packs of another size or recipe are removed, and those of which every source has changed.
    Raises UserError where the folder cannot be written or its disk is too small.
    """
    _clear(folder, dict(zip(names_under(root, stored), stamps_of(stored), strict=True)), size)
    places = find_prepared(folder, root, stored)
    missing = np.flatnonzero(places.pack_of < 0)
    _refuse_full_disk(folder, len(missing), size)
    outcome = Outcome(len(places))
    packs = Packs(folder, root, stored.part(missing), size)
    loader = DataLoader(packs, batch_size=None, num_workers=min(num_workers, len(packs)))
    with progress(len(stored), "preparing", "pictures", initial=len(places)) as bar:
        for made in loader:
            outcome.stored += made.stored
            outcome.unreadable |= made.unreadable
            bar.update(made.stored + len(made.unreadable))
    return outcome


def make_pack(folder: Path, root: Path, stored: StoredPictures, size: int) -> Outcome:
    """Write one pack; unreadable pictures are not in it."""
    outcome = Outcome()
    small: list[tuple[str, Stamp, Image.Image]] = []
    for i, name in enumerate(names_under(root, stored)):
        stamp = stored.stamp(i)  # before it is read: what changes meanwhile counts as changed
        try:
            image = _small(decode_picture(stored.read(i)), size)
        except UnreadablePicture as reason:
            outcome.unreadable[stored.name(i)] = str(reason)
            continue
        if stamp:  # else it came after it was looked for
            small.append((name, stamp, image))
    if small:
        names, stamps, images = zip(*small, strict=True)
        first_line = header(size, names, stamps, [image.size for image in images])
        name = hashlib.blake2b(first_line, digest_size=8).hexdigest() + SUFFIX
        _write(folder / name, chain([first_line], (image.tobytes() for image in images)))
    outcome.stored = len(small)
    return outcome


def _small(image: Image.Image, size: int) -> Image.Image:
    """The shorter side gets `size` pixels, unless it has fewer."""
    scale = min(1.0, size / min(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    way_out = "make room, or choose another folder with data.prepared=PATH; what is prepared stays"
    with writing(path.parent, way_out), atomic_file(path) as file:
        file.writelines(pieces)


def _clear(folder: Path, stamps: Mapping[str, Stamp | None], size: int) -> None:
    """Make the folder; remove packs that are of no use, and what a kill left under a temporary name."""
    with writing(folder, "choose another folder with data.prepared=PATH"):
        folder.mkdir(parents=True, exist_ok=True)
        useless = [path for path in packs_in(folder) if not _is_of_use(read_pack(path), stamps, size)]
        abandoned = [
            path for path in folder.glob(f".*{SUFFIX}.*.tmp") if time.time() - path.stat().st_mtime > ABANDONED_SECONDS
        ]
        for path in (*useless, *abandoned):
            path.unlink()
    if useless:
        log.info("%d packs of another size, version or state in %s are removed", len(useless), readable(folder))


def _is_of_use(pack: Pack | None, stamps: Mapping[str, Stamp | None], size: int) -> bool:
    """Whether it was made as packs are made now, and a source is as it was then, or is none of these."""
    if pack is None or pack.size != size:
        return False
    return any(stamps.get(name) in (None, stamp) for name, stamp in zip(pack.names, pack.stamps, strict=True))


def _refuse_full_disk(folder: Path, pictures: int, size: int) -> None:
    needed, free = pictures * 3 * size * size * ASPECT / 1e9, shutil.disk_usage(folder).free / 1e9
    if needed > free:
        raise UserError(
            f"{pictures} pictures of {size} pixels take about {needed:.1f} GB, and {folder} has {free:.1f} GB left; "
            "make room, or choose a folder on another disk with data.prepared=PATH"
        )
