"""Making the packs that `prepared.py` describes: many processes, and a kill costs only the packs in the making."""

import hashlib
import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from captioning.data.pictures import UnreadablePicture, read_picture
from captioning.data.prepared import (
    SUFFIX,
    Stamp,
    find_prepared,
    header,
    names_under,
    packs_in,
    portions,
    read_pack,
    stamp_of,
)
from captioning.errors import UserError
from captioning.files import atomic_file, readable

log = logging.getLogger(__name__)

ASPECT = 4 / 3  # of the usual photograph
ABANDONED_SECONDS = 3600  # after which a file under a temporary name is what a kill left behind


@dataclass
class Outcome:
    """What became of some photographs: how many are stored, and why others are not."""

    stored: int = 0
    unreadable: dict[Path, str] = field(default_factory=dict)


class Packs(Dataset[Outcome]):
    """Item i makes pack i; a DataLoader's workers end with the process that started them, even if it is killed."""

    def __init__(self, folder: Path, root: Path, paths: Sequence[Path], size: int):
        self._folder, self._root, self._size = folder, root, size
        self._portions = list(portions(paths))

    def __len__(self) -> int:
        return len(self._portions)

    def __getitem__(self, i: int) -> Outcome:
        return make_pack(self._folder, self._root, self._portions[i], self._size)


def prepare_pictures(folder: Path, root: Path, paths: Sequence[Path], size: int, num_workers: int) -> Outcome:
    """Store the photographs that are not yet stored as they are now, with `size` pixels on the shorter side.

    Packs of another size or recipe are removed first, and those of which every source has changed are removed last.
    Raises UserError where the folder cannot be written or its disk is too small.
    """
    _clear(folder, size)
    places = find_prepared(folder, root, paths)
    missing = [path for path, pack in zip(paths, places.pack_of, strict=True) if pack < 0]
    _refuse_full_disk(folder, len(missing), size)
    outcome = Outcome(len(places))
    packs = Packs(folder, root, missing, size)
    loader = DataLoader(packs, batch_size=None, num_workers=min(num_workers, len(packs)))
    with tqdm(total=len(paths), initial=len(places), unit=" pictures", desc="preparing") as progress:
        for made, portion in zip(loader, portions(missing), strict=True):
            outcome.stored += made.stored
            outcome.unreadable |= made.unreadable
            progress.update(len(portion))
    _remove_overtaken(folder, root, paths)
    return outcome


def make_pack(folder: Path, root: Path, paths: Sequence[Path], size: int) -> Outcome:
    """Write one pack; unreadable pictures are not in it."""
    outcome = Outcome()
    stored: list[tuple[Path, Stamp, Image.Image]] = []
    for path in paths:
        stamp = stamp_of(path)  # before it is read: what changes meanwhile counts as changed
        try:
            image = _small(read_picture(path), size)
        except UnreadablePicture as reason:
            outcome.unreadable[path] = str(reason)
            continue
        if stamp:  # else it came after it was looked for
            stored.append((path, stamp, image))
    if stored:
        of_paths, stamps, images = zip(*stored, strict=True)
        first_line = header(size, names_under(root, of_paths), stamps, [image.size for image in images])
        name = hashlib.blake2b(first_line, digest_size=8).hexdigest() + SUFFIX
        _write(folder / name, chain([first_line], (image.tobytes() for image in images)))
    outcome.stored = len(stored)
    return outcome


def _small(image: Image.Image, size: int) -> Image.Image:
    """The shorter side gets `size` pixels, unless it has fewer."""
    scale = min(1.0, size / min(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    try:
        with atomic_file(path) as file:
            file.writelines(pieces)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be written: {error.strerror or error}; make room, or choose another folder with "
            "data.prepared=PATH; what is prepared stays"
        ) from error


def _clear(folder: Path, size: int) -> None:
    """Make the folder; remove packs that were made otherwise, and what a kill left under a temporary name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        other = [path for path in packs_in(folder) if (pack := read_pack(path)) is None or pack.size != size]
        abandoned = [
            path for path in folder.glob(f".*{SUFFIX}.*.tmp") if time.time() - path.stat().st_mtime > ABANDONED_SECONDS
        ]
        for path in (*other, *abandoned):
            path.unlink()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}; choose another folder with data.prepared=PATH"
        ) from error
    if other:
        log.info("%d packs of another size or version in %s are removed", len(other), readable(folder))


def _refuse_full_disk(folder: Path, pictures: int, size: int) -> None:
    needed, free = pictures * 3 * size * size * ASPECT / 1e9, shutil.disk_usage(folder).free / 1e9
    if needed > free:
        raise UserError(
            f"{pictures} pictures of {size} pixels take about {needed:.1f} GB, and {folder} has {free:.1f} GB left; "
            "make room, or choose a folder on another disk with data.prepared=PATH"
        )


def _remove_overtaken(folder: Path, root: Path, paths: Sequence[Path]) -> None:
    """Remove packs that hold nothing but earlier states of these photographs."""
    asked = set(names_under(root, paths))
    used = {str(path) for path in _in_use(folder, root, paths)}
    for path in packs_in(folder):
        pack = read_pack(path)
        if pack and str(path) not in used and asked.issuperset(pack.names):
            path.unlink()


def _in_use(folder: Path, root: Path, paths: Sequence[Path]) -> list[Path]:
    places = find_prepared(folder, root, paths)
    return [Path(str(places.packs[number])) for number in set(places.pack_of.tolist()) if number >= 0]
