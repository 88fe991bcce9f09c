"""What a frozen encoder makes of pictures, kept on the disk, so that each picture goes through it once.

A folder for each (encoder, picture format, number format) holds two files. `states` has the entries, (P, D) each, in
the order in which they were made; `index` has a digest for each. An entry counts from the moment its digest is
written, and its digest is written only after the entry is on the disk: whoever is killed leaves whole entries behind,
and the next one goes on there. Writers hold `lock`, readers need none.

Letters: P patches (prefix tokens included), D the encoder's width.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.data.batch import PictureFormat
from captioning.data.records import Pictures, Split
from captioning.data.transforms import EvaluationTransform
from captioning.errors import UserError, writing
from captioning.progress import progress

log = logging.getLogger(__name__)

STORED = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DIGEST_BYTES = 16
COMMIT_SECONDS = 5.0  # of work at most is lost by a kill
PICTURES_AT_ONCE = 32  # through the encoder


@dataclass(frozen=True)
class FrozenEncoder:
    """All that data needs of an encoder in order to run it once a picture and never again.

    Encoders of one `key` give the same outputs for pictures of the same format; `shape` is (P, D).
    """

    key: str
    shape: tuple[int, int]
    encode: Callable[[Tensor], Tensor]  # (B, 3, H, W) uint8 -> (B, P, D)


class EncodedFile:
    """The entries of one encoder, (P, D) each.

    Args:
        folder: the folder of all caches.
        encoder: whose outputs these are.
        picture_format: of the pictures it sees.
        stored_as: a name in `STORED`.
    """

    def __init__(self, folder: Path, encoder: FrozenEncoder, picture_format: PictureFormat, stored_as: str):
        self._shape, self._dtype = encoder.shape, STORED[stored_as]
        address = json.dumps([encoder.key, asdict(picture_format), stored_as, encoder.shape])
        self.folder = folder / digest_of(address).hex()
        self._states, self._index = self.folder / "states", self.folder / "index"

    @property
    def entry_bytes(self) -> int:
        """Bytes of one picture's entry."""
        patches, width = self._shape
        return patches * width * self._dtype.itemsize

    def slots(self) -> dict[bytes, int]:
        """The place of every whole entry, by its picture's digest."""
        if not self._index.is_file() or not self._states.is_file():
            return {}
        digests = self._index.read_bytes()
        whole = min(len(digests) // DIGEST_BYTES, self._states.stat().st_size // self.entry_bytes)
        return {digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]: i for i in range(whole)}

    def entry(self, slot: int) -> Tensor:
        """One whole entry, (P, D), copied out of the mapped file."""
        # NumPy knows no bfloat16: bytes are mapped, and torch says what they are.
        first = slot * self.entry_bytes
        entry = np.array(self._mapped[first : first + self.entry_bytes])
        return torch.from_numpy(entry).view(self._dtype).view(self._shape)

    @property
    def _mapped(self) -> np.ndarray:
        # Mapped anew in each process, at its first use: pickled to a worker, an array would be copied.
        if "_map" not in self.__dict__:
            self._map = np.memmap(self._states, dtype=np.uint8, mode="r")
        return self._map

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_map"}

    def locked(self) -> AcquireReturnProxy:
        """A context, alone among the processes that write this file; waits for another one to end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            log.info("encoder cache: another run is filling %s; waiting for it", self.folder)
            return lock.acquire()

    @contextmanager
    def appending(self) -> Iterator[Callable[[list[bytes], Tensor], None]]:
        """Gives a function that appends entries (n, P, D) under their n digests; to be used while `locked`."""
        whole, pending = len(self.slots()), bytearray()
        with self._states.open("ab") as states, self._index.open("ab") as index:
            states.truncate(whole * self.entry_bytes)  # what a killed run left beyond its last whole entry
            index.truncate(whole * DIGEST_BYTES)
            committed = time.monotonic()

            def commit() -> None:
                nonlocal committed
                _sync(states)
                index.write(pending)
                _sync(index)
                pending.clear()
                committed = time.monotonic()

            def append(digests: list[bytes], entries: Tensor) -> None:
                states.write(entries.to(self._dtype).cpu().contiguous().view(torch.uint8).numpy().data)
                pending.extend(b"".join(digests))
                if time.monotonic() - committed > COMMIT_SECONDS:
                    commit()

            try:
                yield append
            finally:
                commit()

    def require_room(self, entries: int) -> None:
        """Raise UserError if the disk cannot take so many more entries."""
        needed, free = entries * self.entry_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"encoder_cache: {entries:,} pictures take {needed / 1e9:.1f} GB and {self.folder} has "
                f"{free / 1e9:.1f} GB left; free some, name a folder on another disk in encoder_cache, "
                "or leave encoder_cache=null"
            )


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def digest_of(text: str) -> bytes:
    """The name of an entry or a file of entries, of `DIGEST_BYTES` bytes."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


class EncodedPictures:
    """Called with i gives what the encoder made of picture i of a split, (P, D); loader workers share its pages."""

    def __init__(self, file: EncodedFile, slots: np.ndarray):
        self._file, self._slots = file, slots

    def __call__(self, i: int) -> Tensor:
        return self._file.entry(int(self._slots[i]))


def encode_once(
    splits: Mapping[str, Split],
    encoder: FrozenEncoder,
    picture_format: PictureFormat,
    folder: Path,
    stored_as: str,
    num_workers: int,
) -> dict[str, EncodedPictures]:
    """What `encoder` makes of each split's pictures; it runs for those alone that the file in `folder` lacks.

    Args:
        splits: by name.
        encoder: as it stays while its outputs are used.
        picture_format: of the pictures that it sees.
        folder: of all caches.
        stored_as: a name in `STORED`.
        num_workers: processes that read pictures.

    Raises:
        UserError: if the disk has no room, or the folder cannot be written.
    """
    file = EncodedFile(folder, encoder, picture_format, stored_as)
    digests = {name: [digest_of(split.load.identity(i)) for i in range(len(split))] for name, split in splits.items()}
    wanted = {digest: (splits[name].load, i) for name, of_split in digests.items() for i, digest in enumerate(of_split)}
    with writing(f"encoder_cache: {file.folder}", "name another folder in encoder_cache"), file.locked():
        present = file.slots()
        lacking = {digest: picture for digest, picture in wanted.items() if digest not in present}
        log.info("encoder cache: %s has %d of %d pictures", file.folder, len(wanted) - len(lacking), len(wanted))
        if lacking:
            _fill(file, lacking, EvaluationTransform(picture_format), encoder, num_workers)
    slots = file.slots()
    return {name: EncodedPictures(file, np.array([slots[d] for d in of_split])) for name, of_split in digests.items()}


def _fill(
    file: EncodedFile,
    lacking: dict[bytes, tuple[Pictures, int]],
    transform: EvaluationTransform,
    encoder: FrozenEncoder,
    num_workers: int,
) -> None:
    file.require_room(len(lacking))
    pixels = _Pixels(list(lacking.values()), transform)
    loader = DataLoader(pixels, batch_size=PICTURES_AT_ONCE, num_workers=num_workers)
    digests = iter(lacking)
    with (
        progress(len(lacking), "encoding each picture once", "pictures") as bar,
        file.appending() as append,
    ):
        for batch in loader:
            append(list(islice(digests, len(batch))), encoder.encode(batch))
            bar.update(len(batch))


class _Pixels(Dataset[Tensor]):
    """Pictures as the encoder sees them, (3, H, W) uint8."""

    def __init__(self, pictures: list[tuple[Pictures, int]], transform: EvaluationTransform):
        self._pictures, self._transform = pictures, transform

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, number: int) -> Tensor:
        load, i = self._pictures[number]
        return self._transform(load(i))
