"""What was found in a shard or a table: where its pictures are, their captions, and what is wrong; in arrays, kept.

An index is made once. It counts while what it is of has the mark that it names, and while it was made as this version
makes them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from itertools import chain, combinations, islice
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from filelock import FileLock

from captioning.data.images import UnreadablePicture
from captioning.data.records import Neighbours, TextLists, Texts
from captioning.data.stored import Stamp
from captioning.errors import UserError, writing
from captioning.files import atomic_file, unlocked

log = logging.getLogger(__name__)

VERSION = 1  # another one makes every index that exists worthless
NAMED = 3  # that a message names; their number says the rest


class WrongColumn(UserError):
    """What is asked for as pictures is none of a shard's columns, or of its suffixes."""


@dataclass(frozen=True)
class Columns:
    """What in a shard is a picture, what its captions; None where the usual names say.

    image: a suffix of a tar's members, such as `jpg`, or a column of a Parquet file.
    caption: a suffix (`txt`), a key of each `KEY.json`, or a column.
    lines: whether each line of a `KEY.txt` is a caption.
    predicted: whether they are to be captioned: then each row is a picture, and texts are not looked at.
    """

    image: str | None
    caption: str | None
    lines: bool
    predicted: bool = False

    @property
    def image_key(self) -> str:
        """The key that names `image`."""
        return "input_column" if self.predicted else "data.image_column"

    def refused(self, what: str) -> WrongColumn:
        """What to raise where `image` is not there."""
        return WrongColumn(f"{self.image_key}={self.image} is none of the {what}")

    @classmethod
    def taken_from(cls, keys: dict[str, Any]) -> Columns:
        """Those that are configured, which are removed from the keys."""
        image, caption, of_file = (
            keys.pop(f"{name}") for name in ("image_column", "caption_column", "captions_per_file")
        )
        return cls(image, caption, lines=of_file == "lines")


@dataclass(frozen=True)
class Rows:
    """N pictures of shards, in arrays.

    places: (N, 2) of a tar the first byte and how many; of a Parquet file the row and how many bytes.
    runs: (N,) which pictures are fetched together, rising.
    contents: (N,) a digest of each picture's bytes.
    flaws: why there is no whole picture; empty where there is.
    """

    names: Texts
    places: np.ndarray
    runs: np.ndarray
    contents: np.ndarray
    captions: TextLists
    flaws: Texts

    def __len__(self) -> int:
        return len(self.places)

    def part(self, chosen: np.ndarray) -> Rows:
        """These of them, in this order."""
        arrays = (self.places[chosen], self.runs[chosen], self.contents[chosen])
        return Rows(self.names.part(chosen), *arrays, self.captions.part(chosen), self.flaws.part(chosen))

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """All of all parts; runs of different parts are different ones."""
        firsts = np.cumsum([0, *(int(part.runs.max(initial=-1)) + 1 for part in parts)])
        runs = [part.runs + first for part, first in zip(parts, firsts, strict=False)]
        return cls(
            Texts.joined([part.names for part in parts]),
            np.concatenate([part.places for part in parts]),
            np.concatenate(runs),
            np.concatenate([part.contents for part in parts]),
            TextLists.joined([part.captions for part in parts]),
            Texts.joined([part.flaws for part in parts]),
        )


Mark = tuple[int, str]  # a shard's bytes, and what changes with its content: the time of its change, or its ETag


@dataclass(frozen=True)
class Index:
    """What was found in a shard; `problem` is why it is not whole, or empty."""

    shard: str
    mark: Mark
    rows: Rows
    problem: str = ""
    column: str = ""  # of pictures, in a table


def kept_index(folder: Path, place: str, mark: Mark, columns: Columns, make: Callable[[], Index]) -> Index:
    """The index in `folder` of what lies at this place; made where it is missing, stale or damaged, by one process."""
    address = json.dumps([VERSION, place, asdict(columns)])
    path = folder / f"{hashlib.blake2b(address.encode(), digest_size=16).hexdigest()}.index"
    if (known := _read_index(path, place, mark)) is not None:
        return known
    with writing(folder, "name another folder in data.cache, or of predict.py in cache"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    try:
        if (known := _read_index(path, place, mark)) is None:
            known = make()
            _write_index(path, known)
        return known
    finally:
        unlocked(lock)


def _read_index(path: Path, shard: str, mark: Mark) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            if header["mark"] != list(mark):
                return None
            texts = {name: Texts(arrays[name], arrays[f"{name}_starts"]) for name in ("names", "captions", "flaws")}
            captions = TextLists(texts["captions"], arrays["captions_of"])
            places, runs, contents = (arrays[name] for name in ("places", "runs", "contents"))
            rows = Rows(texts["names"], places, runs, contents, captions, texts["flaws"])
            return Index(shard, mark, rows, *header["more"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        log.warning("%s is damaged (%s) and is made anew", path, error)
        return None


def _write_index(path: Path, index: Index) -> None:
    rows, header = index.rows, json.dumps({"mark": index.mark, "more": [index.problem, index.column]}).encode()
    arrays: dict[str, Any] = {"places": rows.places, "runs": rows.runs, "contents": rows.contents}
    arrays["captions_of"] = rows.captions.starts
    for name, texts in {"names": rows.names, "captions": rows.captions.texts, "flaws": rows.flaws}.items():
        arrays |= {name: texts.data, f"{name}_starts": texts.starts}
    with (
        writing(path.parent, "make room, or name another folder in data.cache, or of predict.py in cache"),
        atomic_file(path) as file,
    ):
        np.savez(file, header=np.frombuffer(header, np.uint8), **arrays)


def digest(data: bytes) -> int:
    """Of a picture's bytes, 63 bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


class IndexedPictures:
    """N pictures in shards, or in tables.

    Attributes:
        shards: what these are called.
        shard_of: (N,) which of them each picture is in.
        rows: of the pictures.
    """

    def __init__(self, indices: Sequence[Index]):
        self.shards = Texts.of(index.shard for index in indices)
        self.shard_of = np.repeat(np.arange(len(indices)), [len(index.rows) for index in indices])
        self.rows = Rows.joined([index.rows for index in indices])

    def neighbours(self) -> Neighbours | None:
        """What is fetched together, where that is not each picture alone."""
        return None

    @abstractmethod
    def reader(self, shard: int) -> Callable[[int, int], bytes]:
        """Called with a place in this shard, gives a picture's bytes; raises UnreadablePicture and OSError."""

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """The shard, and the picture's name in it."""
        return f"{self.shards[int(self.shard_of[i])]}/{self.rows.names[i]}"

    def read(self, i: int) -> bytes:
        """The picture's bytes."""
        start, count = self.rows.places[i].tolist()
        try:
            data = self.reader(int(self.shard_of[i]))(start, count)
        except OSError as error:
            raise UnreadablePicture(error.strerror or str(error)) from error
        if len(data) < count:
            raise UnreadablePicture("its shard has become shorter since it was indexed")
        return data

    def stamp(self, i: int) -> Stamp:
        """Its size and a digest of its bytes, as they were when the shard was indexed."""
        return int(self.rows.places[i, 1]), int(self.rows.contents[i])

    def flaw(self, i: int) -> str | None:
        """As the index has it."""
        return self.rows.flaws[i] or None

    def part(self, chosen: Sequence[int] | np.ndarray) -> Self:
        """These alone."""
        chosen, part = np.asarray(chosen, int), copy(self)
        part.shard_of, part.rows = self.shard_of[chosen], self.rows.part(chosen)
        return part


Kind = TypeVar("Kind", bound=IndexedPictures)


# What is done with all of a set.


def usable(indices: Sequence[Index], pictures: Kind, on_missing: str) -> Kind:
    """The captioned ones among the pictures of some shards.

    Raises:
        UserError: a shard is not whole, or pictures are damaged, unless `on_missing` is `skip`; none has a caption.
    """
    problems = {index.shard: index.problem for index in indices if index.problem}
    _object(
        problems, f"{len(problems)} of {len(indices)} shards are not whole", "takes what is whole in them", on_missing
    )
    rows = pictures.rows
    flawed = np.flatnonzero(np.diff(rows.flaws.starts))
    flaws = {pictures.name(i): rows.flaws[int(i)] for i in flawed[:NAMED]}
    _object(flaws, f"{len(flawed)} of {len(rows)} pictures are unreadable", "leaves them out", on_missing)
    captioned = np.diff(rows.captions.starts) > 0
    if not captioned.any():
        raise UserError(
            f"none of the {len(rows)} pictures in {indices[0].shard} has a caption; name their column, the suffix of "
            "their files (txt) or their key in KEY.json in data.caption_column"
        )
    if not captioned.all():
        log.info("%d photographs without a caption left out", (~captioned).sum())
    captioned[flawed] = False
    return pictures.part(np.flatnonzero(captioned))


def _object(found: dict[str, str], what: str, skipping: str, on_missing: str) -> None:
    if not found:
        return
    named = ", ".join(f"{name} ({reason})" for name, reason in islice(found.items(), NAMED))
    if on_missing == "error":
        raise UserError(f"{what}, such as {named}; data.on_missing=skip {skipping}")
    log.warning("%s, such as %s; data.on_missing=skip %s", what, named, skipping)


def ids_of(pictures: Sequence[IndexedPictures]) -> list[Texts]:
    """The pictures' ids: their names in the shards, with the shard before it where names come again."""
    names = [one.rows.names for one in pictures]
    if len(set(chain.from_iterable(names))) == sum(map(len, names)):
        return names
    log.info("names of pictures come again in other shards, so an image id is shard/name")
    return [Texts.of(one.name(i) for i in range(len(one))) for one in pictures]


def refuse_shared(pictures: Mapping[str, IndexedPictures]) -> None:
    """Raise UserError where a picture is in two splits under one name; warn of equal bytes under two."""
    for (split, one), (other, two) in combinations(pictures.items(), 2):
        shared, first, second = np.intersect1d(one.rows.contents, two.rows.contents, return_indices=True)
        for i, j in zip(first.tolist(), second.tolist(), strict=True):
            if one.rows.names[i] == two.rows.names[j]:
                raise UserError(
                    f"{one.name(i)} is in {split}, and {two.name(j)}, the same picture, in {other}; remove it from one "
                    "of them, or a model is judged by what it has seen"
                )
        if len(shared):
            example = f"{one.name(int(first[0]))} and {two.name(int(second[0]))}"
            log.warning("%d pictures of %s are in %s too, to the byte, such as %s", len(shared), other, split, example)
