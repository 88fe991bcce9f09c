"""Pictures in shards: tars as the writers of WebDataset and img2dataset make them, Parquet files with a picture column.

A tar has `KEY.jpg` and beside it `KEY.txt` or `KEY.json`. Each shard is read once, whole, and what was found there kept
as an index: where each picture begins, how long it is, its captions, and why it is none. From then on any picture is
read alone, so that an epoch's order is a function of (seed, epoch) as it is of files, and a run resumes exactly.

An index counts while its shard has the size and the time of change (elsewhere: the ETag) that it names.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Any

import numpy as np

from captioning.data.arrow import HELD_BYTES, ParquetCells, names_in_parquet, parquet_index, texts_in
from captioning.data.images import MAX_FILE_BYTES, picture_suffixes
from captioning.data.index import Columns, Index, IndexedPictures, Mark, Rows, digest, kept_index
from captioning.data.records import Neighbours, TextLists, Texts
from captioning.data.remote import BLOCK_BYTES, OVERLAP_BYTES, Blocks, RemoteFile, facts_of, is_remote, matching
from captioning.data.stored import flaw_of
from captioning.errors import UserError

MOST_SHARDS = 1_000_000  # of a pattern: more is a slip
OPEN_SHARDS = 64  # of a process
KEY_AND_SUFFIX = re.compile(
    r"((?:.*/|)[^.]+)[.]([^/]*)"
)  # WebDataset's: a key ends at the first dot of the file's name
META = re.compile(r"__[^/]*__($|/)")  # what WebDataset passes over
TEXT_SUFFIXES = ("txt", "caption", "json")
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
END = bytes(512)  # a tar's last blocks
WINDOW_BYTES = 2**30  # of shards elsewhere, within which an epoch is shuffled


# Which shards there are.


def shard_names(patterns: str | Sequence[str], key: str) -> list[str]:
    """The shards that these name, in their order: files, folders, globs, and braces as in `{00000..00099}.tar`.

    Raises:
        UserError: there are none, or one is missing or of another kind; `key` says where they are named.
    """
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for one in expanded(pattern):
            found |= dict.fromkeys(_matching(one, key))
    missing = [shard for shard in found if not is_remote(shard) and not Path(shard).is_file()]
    if missing:
        some = f"{len(missing)} of {len(found)} shards are missing, such as {missing[0]}"
        raise UserError(
            f"{key}: {some if len(found) > 1 else f'{missing[0]} does not exist'}; give a folder of .tar or .parquet "
            f"files, or a pattern such as {key}='PATH/{{00000..00099}}.tar'"
        )
    for shard in found:
        if not shard.endswith((".tar", ".parquet")):
            raise UserError(
                f"{key}: {shard} is neither a .tar nor a .parquet file; of a packed .tar.gz nothing can be read alone, "
                "so unpack it with gunzip"
            )
    return list(found)


def expanded(pattern: str) -> list[str]:
    """Each text that braces stand for, as in a shell.

    >>> expanded("{a,b}-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    done, open_ = [], [pattern]
    while open_:
        text = open_.pop()
        brace = re.search(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}", text)
        if brace is None:
            done.append(text)
            continue
        open_ += [text[: brace.start()] + option + text[brace.end() :] for option in reversed(_options(brace[1]))]
        if len(open_) + len(done) > MOST_SHARDS:
            raise UserError(f"{pattern} stands for more than {MOST_SHARDS} shards; name fewer")
    return done


def _options(inside: str) -> list[str]:
    if "," in inside:
        return inside.split(",")
    first, last = inside.split("..")
    if int(last) - int(first) > MOST_SHARDS:
        raise UserError(f"{{{inside}}} stands for more than {MOST_SHARDS} shards; name fewer")
    padded = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    return [f"{number:0{padded}d}" for number in range(int(first), int(last) + 1)]


def _matching(pattern: str, key: str) -> list[str]:
    if is_remote(pattern):
        found = matching(pattern) if has_magic(pattern) else [pattern]
    else:
        pattern = os.path.expanduser(pattern)  # noqa: PTH111  # leaves the name of an unknown user as it is
        if Path(pattern).is_dir():
            kinds = (sorted(map(str, Path(pattern).glob(f"*.{kind}"))) for kind in ("tar", "parquet"))
            return next(filter(None, kinds), [])
        found = sorted(glob(pattern, recursive=True)) if has_magic(pattern) else [pattern]  # noqa: PTH207  # any path
    if not found:
        raise UserError(f"{key}: nothing matches {pattern}, seen from {Path.cwd()}; correct the pattern")
    return found


# Their indices, made once.


def index_of(shard: str, columns: Columns, folder: Path, blocks: Blocks) -> Index:
    """A shard's index: the one in `folder`, made anew where that is missing, stale or damaged."""
    mark = facts_of(shard) if is_remote(shard) else _facts_of_file(shard)
    place = shard if is_remote(shard) else os.path.abspath(shard)  # noqa: PTH100  # Path.resolve follows links

    def make() -> Index:
        with _opened(shard, mark, blocks) as file:
            of_kind = parquet_index if shard.endswith(".parquet") else _tar_index
            return of_kind(shard, mark, file, columns)

    return replace(kept_index(folder, place, mark, columns, make), shard=shard)


def names_in_shard(shard: str, columns: Columns, blocks: Blocks) -> list[str] | None:
    """Paths and URLs of the pictures of a Parquet file that holds none itself; None of other shards."""
    if not shard.endswith(".parquet"):
        return None
    mark = facts_of(shard) if is_remote(shard) else _facts_of_file(shard)
    with _opened(shard, mark, blocks) as file:
        return names_in_parquet(shard, file, columns)


def _opened(shard: str, mark: Mark, blocks: Blocks) -> IO[bytes]:
    if is_remote(shard):
        return io.BufferedReader(RemoteFile(shard, *mark, blocks), 2**20)
    return Path(shard).open("rb")


def _facts_of_file(shard: str) -> Mark:
    try:
        with Path(shard).open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}") from error
    return status.st_size, str(status.st_mtime_ns)


@dataclass
class _Sample:
    """What a tar has of a key."""

    pictures: list[str] = field(default_factory=list)  # members' names
    place: tuple[int, int] = (-1, 0)
    content: int = 0
    flaw: str = ""
    texts: dict[str, Any] = field(default_factory=dict)  # by suffix

    def taken(self, name: str, suffix: str, data: bytes, start: int, columns: Columns) -> None:
        """Add a member."""
        if suffix == columns.image or (columns.image is None and f".{suffix}" in picture_suffixes()):
            self.pictures.append(name)
            self.place, self.content = (start, len(data)), digest(data)
            self.flaw = self.flaw or flaw_of(lambda: data) or ""
        elif suffix in (*TEXT_SUFFIXES, columns.caption) and not columns.predicted:
            if suffix in self.texts:
                self.flaw = f"{name} is there twice"
            try:
                text = data.decode("utf-8-sig")
                self.texts[suffix] = json.loads(text) if suffix == "json" else text
            except UnicodeDecodeError:
                self.flaw = f"{name} is not UTF-8 text"
            except ValueError as error:
                self.flaw = f"{name} is not valid JSON: {error}"


def _tar_index(shard: str, mark: Mark, file: IO[bytes], columns: Columns) -> Index:
    samples: dict[str, _Sample] = {}
    suffixes: set[str] = set()
    problem = ""
    try:
        for name, key, suffix, start, data in _members(shard, file):
            suffixes.add(suffix)
            samples.setdefault(key, _Sample()).taken(name, suffix, data, start, columns)
    except tarfile.TarError as error:
        problem = f"cut short or damaged ({error})"
    if columns.image is not None and suffixes and columns.image not in suffixes and not problem:
        raise columns.refused(f"suffixes in {shard}: {', '.join(sorted(suffixes)[:9])}")
    captions = [captions_in(sample.texts, columns) for sample in samples.values()]
    flaws, places = [], np.array([sample.place for sample in samples.values()], np.int64).reshape(-1, 2)
    for key, sample in samples.items():
        several = f"its key {key} has {len(sample.pictures)} pictures, {' and '.join(sample.pictures)}"
        if len(sample.pictures) > 1:
            chooses = "" if len(set(sample.pictures)) == 1 else f"; {columns.image_key}=SUFFIX chooses one"
            flaws.append(several + chooses)
        else:
            flaws.append(sample.flaw if sample.pictures else "a caption without a picture")
    names = [sample.pictures[0] if sample.pictures else key for key, sample in samples.items()]
    rows = Rows(
        Texts.of(names),
        places,
        (np.maximum(places[:, 0], 0) // BLOCK_BYTES).astype(np.int64),
        np.array([sample.content for sample in samples.values()], np.int64),
        TextLists.of(captions),
        Texts.of(flaws),
    )
    in_order = np.argsort(places[:, 0], kind="stable")  # pictures of a key that comes back later
    return Index(shard, mark, rows.part(in_order), problem)


def _members(shard: str, file: IO[bytes]) -> Iterator[tuple[str, str, str, int, bytes]]:
    """(name, key, suffix in lower case, first byte, bytes) of each; raises tarfile.TarError where the tar is cut."""
    start = file.read(6)
    if kind := next((kind for magic, kind in PACKED.items() if start.startswith(magic)), None):
        raise UserError(f"{shard} is packed with {kind}, so nothing in it can be read alone; unpack it to a plain tar")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # they would grow with the shard
            parts = KEY_AND_SUFFIX.fullmatch(member.name)
            if not member.isreg() or parts is None or META.match(member.name):
                continue
            suffix = parts[2].lower()
            file.seek(member.offset_data)
            data = file.read(min(member.size, MAX_FILE_BYTES))
            if len(data) < member.size:
                raise tarfile.ReadError(f"{member.name} has {len(data)} of its {member.size} bytes")
            yield member.name, parts[1], suffix, member.offset_data, data
        file.seek(tar.offset)
        if file.read(len(END)) != END:
            raise tarfile.ReadError(f"its end is missing behind byte {tar.offset}")


def captions_in(texts: dict[str, Any], columns: Columns) -> list[str]:
    """The captions among the texts of a key, by suffix; of a JSON object those under a usual name."""
    of_json = texts.get("json")
    if columns.caption is not None:
        value = texts.get(columns.caption, of_json.get(columns.caption) if isinstance(of_json, dict) else None)
        return texts_in(value, columns)
    of_file = next((texts[suffix] for suffix in ("txt", "caption") if suffix in texts), None)
    found, beside = texts_in(of_json, columns), texts_in(of_file, columns)
    return found if len(found) > len(beside) else beside  # a .txt may have but one of all


# Their pictures.


class ShardPictures(IndexedPictures):
    """N pictures in shards; a process keeps the shards open that it last read from.

    Args:
        indices: of the shards.
        blocks: for what lies elsewhere.
        near: whether also of tars on this machine those that lie side by side are read together.
    """

    def __init__(self, indices: Sequence[Index], blocks: Blocks, *, near: bool = False):
        super().__init__(indices)
        self._blocks, self._near = blocks, near
        self._sizes = np.array([index.mark[0] for index in indices])
        self._marks = Texts.of(index.mark[1] for index in indices)
        self._columns = Texts.of(index.column for index in indices)

    def reader(self, shard: int) -> Callable[[int, int], bytes]:
        """Called with a place, gives the picture's bytes."""
        name, mark = self.shards[shard], (int(self._sizes[shard]), self._marks[shard])
        key = (os.getpid(), name, mark)
        if key not in _open:
            if len(_open) >= OPEN_SHARDS:
                _open.popitem(last=False)  # its file is closed with its last use
            _open[key] = _reader(name, mark, self._columns[shard], self._blocks)
        _open.move_to_end(key)
        return _open[key]

    def neighbours(self) -> Neighbours | None:
        """What is fetched together; None where all shards are tars on this machine, unless that is asked for."""
        by_group = any(map(len, self._columns))
        if not (by_group or self._near or any(map(is_remote, self.shards))):
            return None
        at_once = min(WINDOW_BYTES, self._blocks.limit // 4) // (BLOCK_BYTES + OVERLAP_BYTES)
        if by_group:
            bytes_of_one = self.rows.places[:, 1].sum() / len(np.unique(self.rows.runs))
            at_once = int(HELD_BYTES / 2 / max(1, bytes_of_one))
        return Neighbours(self.rows.runs, max(2, at_once))


_open: OrderedDict[tuple[int, str, Mark], Callable[[int, int], bytes]] = OrderedDict()  # by process, shard and mark


def _reader(shard: str, mark: Mark, column: str, blocks: Blocks) -> Callable[[int, int], bytes]:
    if column:
        return ParquetCells(shard, _opened(shard, mark, blocks), column).read_at
    return RemoteFile(shard, *mark, blocks).read_at if is_remote(shard) else _LocalFile(shard).read_at


class _LocalFile:
    def __init__(self, path: str):
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115  # closed when it is forgotten

    def read_at(self, start: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, start)
