"""A folder of outputs: the input in parts, each of which becomes one file there, complete or absent.

A part is a shard of the input, or so many of its pictures. So an input of any size is captioned with what is known of a
few parts at a time, by one process or by a cluster, and what was killed goes on with the parts that have no file yet.
The folder may lie elsewhere, such as in a bucket: a file is made here and put there whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from filelock import FileLock

from captioning.data.images import UnreadablePicture
from captioning.data.index import Columns
from captioning.data.records import Texts
from captioning.data.remote import Blocks, is_remote, names_in, put, read_whole, removed
from captioning.data.shards import ShardPictures, index_of, names_in_shard
from captioning.data.stored import StoredPictures
from captioning.errors import UserError, writing
from captioning.files import locked, unlocked, write_atomically
from captioning.prediction.inputs import Found, InputPictures, NamedPictures, Shard, origin_of
from captioning.prediction.journal import CaptionedPicture, Journal, May, journal_path, other_settings, to_json
from captioning.prediction.outputs import FORMATS, put_in_place
from captioning.prediction.outputs.elsewhere import made_in
from captioning.prediction.outputs.parquet import as_utf8
from captioning.prediction.outputs.read_back import name_in_shard

log = logging.getLogger(__name__)

SETTINGS, MANIFEST, SUCCESS = "_settings.json", "_manifest.json", "_SUCCESS"
ROWS = "rows"  # what a part's file is called until it is whole
NAMED = 3  # parts that a sentence names


# The input in parts.


@dataclass(frozen=True)
class Part:
    """What becomes one file.

    name: of the file, without its suffix.
    shard: a tar or a Parquet file, here or elsewhere; or empty.
    names: where it is none, paths and URLs of pictures.
    most: only so many pictures of it.
    """

    name: str
    shard: str = ""
    names: Texts = field(default_factory=lambda: Texts.of([]))
    most: int | None = None


@dataclass(frozen=True)
class Choice:
    """Which pictures of the input are captioned.

    every_nth: of each shard.
    sample: this share of all, by a digest of (seed, key): the same pictures however the input is divided.
    done: pictures that are captioned already, as `captioned_names` gives them.
    """

    every_nth: int = 1
    sample: float = 1.0
    seed: int = 0
    done: frozenset[str] = frozenset()

    def of(self, part: Part, pictures: StoredPictures) -> StoredPictures:
        """Those of a part that are chosen."""
        step = self.every_nth if part.shard else 1  # of names they were taken before these were cut
        chosen = [i for i in range(0, len(pictures), step) if self._takes(pictures, i)]
        return pictures if len(chosen) == len(pictures) else pictures.part(np.array(chosen, int))

    def _takes(self, pictures: StoredPictures, i: int) -> bool:
        name = pictures.name(i)
        if self.done and not self.done.isdisjoint((as_utf8(name), as_utf8(name_in_shard(*origin_of(pictures, i))))):
            return False
        if self.sample == 1:
            return True
        key = origin_of(pictures, i)[1] or Path(name).stem
        digest = hashlib.blake2b(f"{self.seed}\n{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.sample * 2**64


@dataclass(frozen=True)
class Reading:
    """How parts are opened; can be sent to another process, or machine.

    columns: which of a shard's files or columns is the picture.
    cache: the folder of indices, and of blocks of what lies elsewhere.
    on_missing: whether a shard that is cut short is an `error`, or its whole pictures are taken: `skip`.
    private: whether URLs may lead to addresses of this network.
    """

    columns: Columns
    cache: Path
    cache_bytes: int
    on_missing: str
    private: bool
    choice: Choice

    @property
    def _blocks(self) -> Blocks:
        return Blocks(self.cache / "blocks", self.cache_bytes)

    def opened(self, part: Part) -> StoredPictures:
        """Its pictures; raises UserError where a shard can't be read."""
        if not part.shard:
            pictures: StoredPictures = NamedPictures(part.names, self.private)
        elif (names := names_in_shard(part.shard, self.columns, self._blocks)) is not None:
            folder = part.shard.rpartition("/")[0]
            pictures = NamedPictures(Texts.of(_in(folder, name) for name in names), self.private)
        else:
            index = index_of(part.shard, self.columns, self.cache, self._blocks)
            if index.problem and self.on_missing == "error":
                raise UserError(
                    f"{part.shard} is {index.problem}; fetch it again, or on_missing=skip takes what is whole"
                )
            pictures = _Shards([index], self._blocks)
        chosen = self.choice.of(part, pictures)
        return chosen if part.most is None else chosen.part(np.arange(min(part.most, len(chosen))))


def _in(folder: str, name: str) -> str:
    """A path that a shard names, which starts from the shard's folder."""
    return name if is_remote(name) or name.startswith("/") or not folder else f"{folder}/{name}"


class _Shards(ShardPictures):
    """Shards whose flaws are met when a picture is read: each key has its row."""

    def read(self, i: int) -> bytes:
        """The picture's bytes; raises UnreadablePicture with the flaw of one that has none."""
        if flaw := self.flaw(i):
            raise UnreadablePicture(flaw)
        return super().read(i)


def parts_of(found: Sequence[Found], size: int, every_nth: int = 1) -> list[Part]:
    """The input in parts: each shard, and of the pictures every n-th, by `size`."""
    shards = [one for one in found if isinstance(one, Shard)]
    names = [str(one) for one in found if not isinstance(one, Shard)][::every_nth]
    cut = [Texts.of(names[start : start + size]) for start in range(0, len(names), size)]
    parts = [Part(f"part-{number:05d}", names=some) for number, some in enumerate(cut)]
    stems = [shard.rpartition("/")[2].rpartition(".")[0] for shard in shards]
    whole = [Part(stem, shard) for stem, shard in zip(stems, shards, strict=True)] + parts
    return [replace(part, name=name) for part, name in zip(whole, distinct([one.name for one in whole]), strict=True)]


def distinct(names: Sequence[str]) -> list[str]:
    """These names, each with its number before it where several are one, also on a disk that knows no capitals.

    >>> distinct(["0", "1", "0", "00000-0"])
    ['00000-00000-0', '1', '00002-0', '00000-0']
    """
    often = Counter(name.casefold() for name in names)
    taken = {name for name, count in often.items() if count == 1}
    made = []
    for number, name in enumerate(names):
        one = name
        while one.casefold() in taken if one != name else often[name.casefold()] > 1:
            one = f"{number:05d}-{one}"
        taken.add(one.casefold())
        made.append(one)
    return made


def limited(parts: Sequence[Part], reading: Reading, limit: int | None) -> list[Part]:
    """The first parts, that have `limit` pictures together; so many are opened."""
    if limit is None:
        return list(parts)
    taken: list[Part] = []
    for part in parts:
        if limit <= 0:
            break
        count = len(reading.opened(part))
        taken.append(replace(part, most=limit) if count > limit else part)
        limit -= count
    return taken


# The folder of outputs.


class PartFiles:
    """The folder, which one process owns between `with` and its end.

    Each part that is under way has a folder of its name for its journal, whatever the names of others are: so a killed
    process goes on within a part too.

    Args:
        output: a folder, here or elsewhere.
        suffix: of its files, which says their format.
        cache: where files are made that go elsewhere.
        reading: how parts are opened; some formats hold the pictures too.
        settings: plain containers: what the captions depend on.
        may: begin anew where there are files, or go on from those of the same settings.

    Attributes:
        complete: names of parts that have their file.
        counts: of pictures with and without a caption, by part, of this process.

    Raises:
        UserError: at the block's start, if another process owns the folder, or it holds what may not be touched; and
            wherever the disk or the network objects.
    """

    def __init__(
        self, output: str, suffix: str, cache: Path, reading: Reading, settings: Mapping[str, object], may: May
    ):
        self.output, self.suffix, self._reading, self._may = output.rstrip("/"), suffix, reading, may
        self._settings = json.loads(to_json(settings))
        self._elsewhere = is_remote(output)
        self._work = made_in(cache, self.output) if self._elsewhere else Path(self.output) / ".unfinished"
        self.complete: set[str] = set()
        self.counts: dict[str, tuple[int, int]] = {}
        self._open: dict[str, _Rows] = {}

    def __enter__(self) -> Self:
        self._is_new = not self._elsewhere and not Path(self.output).exists()
        with writing(f"output={self.output}", "name another folder, or make room"):
            self._work.mkdir(parents=True, exist_ok=True)
        lock = locked(self._work / ".lock")
        if lock is None:
            raise UserError(f"output={self.output}: another process is writing there now; wait for it, or end it")
        self._lock: FileLock = lock
        try:
            self._begin()
        except BaseException:
            unlocked(lock)
            raise
        return self

    def check(self) -> set[str]:
        """The names of what is there; raises UserError where it may not be touched."""
        there = self._names()
        if self._may.resume and SETTINGS in there:
            return there
        if there and not self._may.overwrite:
            some = ", ".join(sorted(there)[:NAMED])
            way_out = "no settings of a prediction are there: name another folder"
            if SETTINGS in there:
                way_out = "go on with resume=true, or begin anew with overwrite=true"
            raise UserError(f"output={self.output} holds {len(there)} files, such as {some}; {way_out}")
        return there

    def _begin(self) -> None:
        there = self.check()
        if self._may.resume and SETTINGS in there:
            self._refuse_other_settings()
            for made in self._work.glob(f"*/{ROWS}{self.suffix}"):  # of a process that was killed when it had made this
                if not journal_path(made).exists():
                    self._publish(made, name := f"{made.parent.name}{self.suffix}")
                    there.add(name)
            self.complete = {name.removesuffix(self.suffix) for name in there if name.endswith(self.suffix)}
            return
        self._remove(name for name in there if name.endswith(self.suffix) or name in (SETTINGS, MANIFEST, SUCCESS))
        for left in self._work.glob("*/"):
            shutil.rmtree(left)
        self._write(SETTINGS, to_json(self._settings, indent=2) + "\n")

    def _refuse_other_settings(self) -> None:
        saved = self._work / SETTINGS
        saved.write_bytes(self._read(SETTINGS))
        if differing := other_settings(saved, self._settings):
            raise UserError(
                f"the captions in {self.output} were made otherwise: {differing}; say the same, or begin anew with "
                "overwrite=true and without resume"
            )
        saved.unlink()

    def done(self, part: Part) -> int:
        """How many rows an earlier process left of a part that has no file yet."""
        return self._rows_of(part).journal.done

    def _rows_of(self, part: Part) -> _Rows:
        if part.name not in self._open:
            path = self._work / part.name / f"{ROWS}{self.suffix}"
            with writing(f"output={self.output}", "make room"):
                path.parent.mkdir(exist_ok=True)
            journal = Journal(path, path, self._settings, May(resume=True)).__enter__()
            self._open[part.name] = _Rows(journal)
        return self._open[part.name]

    def add(self, part: Part, total: int, records: Sequence[CaptionedPicture]) -> None:
        """Some rows of a part, in order among themselves; it gets its file when all of its `total` rows are there."""
        if part.name in self.complete:  # what was made twice, or none more
            return
        rows = self._rows_of(part)
        rows.add(records)
        if rows.count == total:
            del self._open[part.name]
            self._finish(part, rows.journal)

    def _finish(self, part: Part, journal: Journal) -> None:
        holds_pictures = FORMATS[self.suffix].holds_pictures
        pictures = InputPictures.of(self._reading.opened(part)) if holds_pictures else None
        put_in_place(journal, pictures, says=False)
        self.counts[part.name] = journal.captioned, journal.failed
        journal.__exit__(None, None, None)
        self._publish(journal.output, f"{part.name}{self.suffix}")
        shutil.rmtree(journal.output.parent)
        self.complete.add(part.name)

    def finish(self, parts: Sequence[Part]) -> tuple[int, int]:
        """The manifest, and the file that says that all is there; pictures with and without a caption, of all parts."""
        suffix, counts = self.suffix, {}
        for part in parts:
            if part.name in self.counts:
                counts[part.name] = self.counts[part.name]
            else:  # of an earlier process
                counts[part.name] = FORMATS[suffix].counts(io.BytesIO(self._read(f"{part.name}{suffix}")))
        captioned, failed = (sum(numbers[i] for numbers in counts.values()) for i in (0, 1))
        listed = {name: dict(zip(("captioned", "failed"), numbers, strict=True)) for name, numbers in counts.items()}
        manifest = {"settings": self._settings, "captioned": captioned, "failed": failed, "parts": listed}
        self._write(MANIFEST, to_json(manifest, indent=1) + "\n")
        self._write(SUCCESS, "")
        return captioned, failed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for rows in self._open.values():
            rows.journal.closed()
        left = self.complete or any(rows.count for rows in self._open.values())
        if kind is not None and left:
            words = "stopped: %s has the files of %d parts; resume=true goes on"
            log.warning(words, self.output, len(self.complete))
        elif kind is not None:
            log.warning("stopped before the first caption; nothing was written to %s", self.output)
            self._remove([SETTINGS] if SETTINGS in self._names() else [])
        unlocked(self._lock)
        if not left or (kind is None and not self._open):
            shutil.rmtree(self._work, ignore_errors=True)
        if not left and self._is_new:
            with suppress(OSError):  # something else was put there meanwhile
                Path(self.output).rmdir()

    # Here or elsewhere.

    def _names(self) -> set[str]:
        if self._elsewhere:
            return set(names_in(self.output))
        folder = Path(self.output)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"output={self.output}/ is a file; name a folder, or leave the stroke out")
        return {path.name for path in folder.iterdir() if path.name != self._work.name} if folder.is_dir() else set()

    def _read(self, name: str) -> bytes:
        return read_whole(f"{self.output}/{name}") if self._elsewhere else (Path(self.output) / name).read_bytes()

    def _write(self, name: str, text: str) -> None:
        if self._elsewhere:
            (self._work / name).write_text(text, encoding="utf-8")
            self._publish(self._work / name, name)
        else:
            with writing(f"output={self.output}", "make room"):
                write_atomically(Path(self.output) / name, text)

    def _publish(self, made: Path, name: str) -> None:
        if self._elsewhere:
            put(made, f"{self.output}/{name}")
            made.unlink()
        else:
            with writing(f"output={self.output}", "make room, or give the shard a shorter name"):
                made.replace(Path(self.output) / name)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            if self._elsewhere:
                removed(f"{self.output}/{name}")
            else:
                (Path(self.output) / name).unlink()


class _Rows:
    """Of a part under way: a journal, and rows that came before their turn."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self._early: dict[int, CaptionedPicture] = {}

    @property
    def count(self) -> int:
        """How many the journal has, from the first on."""
        return self.journal.lines

    def add(self, records: Sequence[CaptionedPicture]) -> None:
        """Any rows; those that are there already are passed over."""
        self._early |= {record.place: record for record in records if record.place >= self.count}
        while (record := self._early.pop(self.count, None)) is not None:
            self.journal.add(record)
