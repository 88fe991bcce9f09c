"""Pictures in shards: tars as the writers of WebDataset and img2dataset make them, Parquet files with a picture column.

A tar has `KEY.jpg` and beside it `KEY.txt` or `KEY.json`. Each shard is read once, whole, and what was found there kept
as an index: where each picture begins, how long it is, its captions, and why it is none. From then on any picture is
read alone, so that an epoch's order is a function of (seed, epoch) as it is of files, and a run resumes exactly.

An index counts while its shard has the size and the time of change (elsewhere: the ETag) that it names.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from glob import glob, has_magic
from itertools import chain, combinations, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from captioning.data.images import MAX_FILE_BYTES, UnreadablePicture, picture_suffixes
from captioning.data.readers.annotations import tidied
from captioning.data.records import Neighbours, TextLists, Texts
from captioning.data.remote import BLOCK_BYTES, Blocks, RemoteFile, facts_of, is_remote, matching
from captioning.data.stored import Stamp, flaw_of
from captioning.errors import UserError, writing
from captioning.files import atomic_file

log = logging.getLogger(__name__)

VERSION = 1  # of an index; another one makes every index that exists worthless
MOST_SHARDS = 1_000_000  # of a pattern: more is a slip
OPEN_SHARDS = 64  # of a process
KEY_AND_SUFFIX = re.compile(
    r"((?:.*/|)[^.]+)[.]([^/]*)"
)  # WebDataset's: a key ends at the first dot of the file's name
META = re.compile(r"__[^/]*__($|/)")  # what WebDataset passes over
TEXT_SUFFIXES = ("txt", "caption", "json")
CAPTION_NAMES = ("captions", "caption", "text", "txt", "TEXT", "sentences", "raw", "alt_text")
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
END = bytes(512)  # a tar's last blocks
WINDOW_BYTES = 2**30  # of shards elsewhere, within which an epoch is shuffled
NAMED = 3  # that a message names; their number says the rest


@dataclass(frozen=True)
class Columns:
    """What in a shard is a picture, what its captions; None where the usual names say.

    image: a suffix of a tar's members, such as `jpg`, or a column of a Parquet file.
    caption: a suffix (`txt`), a key of each `KEY.json`, or a column.
    lines: whether each line of a `KEY.txt` is a caption.
    """

    image: str | None
    caption: str | None
    lines: bool


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
    if missing or not found:
        raise UserError(
            f"{key}: {len(missing)} of {len(found)} shards are missing{f', such as {missing[0]}' if missing else ''}; "
            f"give a folder of .tar or .parquet files, or a pattern such as {key}='PATH/{{00000..00099}}.tar'"
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
    address = json.dumps([VERSION, shard if is_remote(shard) else os.path.abspath(shard), asdict(columns)])  # noqa: PTH100
    path = folder / f"{hashlib.blake2b(address.encode(), digest_size=16).hexdigest()}.index"
    mark = facts_of(shard) if is_remote(shard) else _facts_of_file(shard)
    if (known := _read_index(path, shard, mark)) is not None:
        return known
    with _opened(shard, mark, blocks) as file:
        made = _tar_index(shard, mark, file, columns)
    _write_index(path, made)
    return made


def _opened(shard: str, mark: Mark, blocks: Blocks) -> IO[bytes]:
    if is_remote(shard):
        return io.BufferedReader(RemoteFile(shard, *mark, blocks), 2**20)  # type: ignore[return-value]
    return Path(shard).open("rb")


def _facts_of_file(shard: str) -> Mark:
    try:
        with Path(shard).open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}") from error
    return status.st_size, str(status.st_mtime_ns)


def _read_index(path: Path, shard: str, mark: Mark) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            if header["mark"] != list(mark):
                return None
            texts = {name: Texts(arrays[name], arrays[f"{name}_starts"]) for name in ("names", "captions", "flaws")}
            captions = TextLists(texts["captions"], arrays["captions_of"])
            numbers = [arrays[name] for name in ("places", "runs", "contents")]
            return Index(shard, mark, Rows(texts["names"], *numbers, captions, texts["flaws"]), header["problem"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        log.warning("%s is damaged (%s) and is made anew", path, error)
        return None


def _write_index(path: Path, index: Index) -> None:
    rows, header = index.rows, json.dumps({"mark": index.mark, "problem": index.problem}).encode()
    arrays = {"places": rows.places, "runs": rows.runs, "contents": rows.contents, "captions_of": rows.captions.starts}
    for name, texts in {"names": rows.names, "captions": rows.captions.texts, "flaws": rows.flaws}.items():
        arrays |= {name: texts.data, f"{name}_starts": texts.starts}
    with writing(path.parent, "make room, or name another folder in data.cache"), atomic_file(path) as file:
        np.savez(file, header=np.frombuffer(header, np.uint8), **arrays)


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
        elif suffix in (*TEXT_SUFFIXES, columns.caption):
            if suffix in self.texts:
                self.flaw = f"{name} is there twice"
            try:
                text = data.decode("utf-8-sig")
                self.texts[suffix] = json.loads(text) if suffix == "json" else text
            except UnicodeDecodeError:
                self.flaw = f"{name} is not UTF-8 text"
            except ValueError as error:
                self.flaw = f"{name} is not valid JSON: {error}"


def digest(data: bytes) -> int:
    """Of a picture's bytes, 63 bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 1


def _tar_index(shard: str, mark: Mark, file: IO[bytes], columns: Columns) -> Index:
    samples: dict[str, _Sample] = {}
    problem = ""
    try:
        for name, key, suffix, start, data in _members(shard, file):
            samples.setdefault(key, _Sample()).taken(name, suffix, data, start, columns)
    except tarfile.TarError as error:
        problem = f"cut short or damaged ({error})"
    captions = [captions_in(sample.texts, columns) for sample in samples.values()]
    flaws, places = [], np.array([sample.place for sample in samples.values()], np.int64).reshape(-1, 2)
    for key, sample in samples.items():
        several = f"its key {key} has {len(sample.pictures)} pictures, {' and '.join(sample.pictures)}"
        if len(sample.pictures) > 1:
            chooses = "" if len(set(sample.pictures)) == 1 else "; data.image_column=SUFFIX chooses one"
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
            tar.members = []
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
    found = texts.get("json")
    if columns.caption is not None:
        value = texts.get(columns.caption, found.get(columns.caption) if isinstance(found, dict) else None)
    else:
        of_json = (
            next((found[name] for name in CAPTION_NAMES if name in found), None) if isinstance(found, dict) else found
        )
        value = next((texts[suffix] for suffix in ("txt", "caption") if suffix in texts), of_json)
        value = of_json if isinstance(of_json, list) else value  # all of which a .txt has but one
    if isinstance(value, str):
        value = value.split("\n") if columns.lines else [value]
    return [text for one in value or () if isinstance(one, str) and (text := tidied(one))]


# Their pictures.


class ShardPictures:
    """N pictures in shards; a process keeps the shards open that it last read from.

    Args:
        shards: what they are called, their sizes, and the marks of their contents.
        shard_of: (N,) which of them each picture is in.
        rows: of the pictures.
        blocks: for what lies elsewhere.
    """

    def __init__(self, shards: tuple[Texts, np.ndarray, Texts], shard_of: np.ndarray, rows: Rows, blocks: Blocks):
        self._shards, self._shard_of, self.rows, self._blocks = shards, shard_of, rows, blocks

    @classmethod
    def of(cls, indices: Sequence[Index], blocks: Blocks) -> ShardPictures:
        """All pictures of some shards."""
        marks = Texts.of(index.mark[1] for index in indices)
        shards = (Texts.of(index.shard for index in indices), np.array([index.mark[0] for index in indices]), marks)
        shard_of = np.repeat(np.arange(len(indices)), [len(index.rows) for index in indices])
        return cls(shards, shard_of, Rows.joined([index.rows for index in indices]), blocks)

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """The shard, and the member's name in it."""
        return f"{self._shards[0][int(self._shard_of[i])]}/{self.rows.names[i]}"

    def read(self, i: int) -> bytes:
        """The member's bytes."""
        start, count = self.rows.places[i].tolist()
        try:
            data = self._reader(int(self._shard_of[i]))(start, count)
        except OSError as error:
            raise UnreadablePicture(error.strerror or str(error)) from error
        if len(data) < count:
            raise UnreadablePicture("its shard has become shorter since it was indexed")
        return data

    def _reader(self, shard: int) -> Callable[[int, int], bytes]:
        """Called with a first byte and a number of bytes, gives them."""
        name, size, mark = (column[shard] for column in self._shards)
        key = (os.getpid(), name, mark)
        if key not in _open:
            if len(_open) >= OPEN_SHARDS:
                _open.popitem(last=False)  # its file is closed with its last use
            remote = is_remote(name)
            _open[key] = RemoteFile(name, int(size), mark, self._blocks).read_at if remote else _LocalFile(name).read_at
        _open.move_to_end(key)
        return _open[key]

    def stamp(self, i: int) -> Stamp:
        """Its size and a digest of its bytes, as they were when the shard was indexed."""
        return int(self.rows.places[i, 1]), int(self.rows.contents[i])

    def flaw(self, i: int) -> str | None:
        """As the index has it."""
        return self.rows.flaws[i] or None

    def part(self, chosen: Sequence[int] | np.ndarray) -> ShardPictures:
        """These alone."""
        chosen = np.asarray(chosen, int)
        return ShardPictures(self._shards, self._shard_of[chosen], self.rows.part(chosen), self._blocks)

    def neighbours(self) -> Neighbours | None:
        """What is fetched together; None where all shards are tars on this machine."""
        if not any(map(is_remote, self._shards[0])):
            return None
        return Neighbours(self.rows.runs, max(2, min(WINDOW_BYTES, self._blocks.limit // 4) // BLOCK_BYTES))


_open: OrderedDict[tuple[int, str, str], Callable[[int, int], bytes]] = OrderedDict()  # by process, shard and mark


class _LocalFile:
    def __init__(self, path: str):
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115  # closed when it is forgotten

    def read_at(self, start: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, start)


# Their division.


def usable(indices: Sequence[Index], on_missing: str, blocks: Blocks) -> ShardPictures:
    """The captioned pictures of some shards.

    Raises:
        UserError: a shard is not whole, or pictures are damaged, unless `on_missing` is `skip`; none has a caption.
    """
    problems = {index.shard: index.problem for index in indices if index.problem}
    _object(
        problems, f"{len(problems)} of {len(indices)} shards are not whole", "takes what is whole in them", on_missing
    )
    pictures = ShardPictures.of(indices, blocks)
    rows = pictures.rows
    flawed = np.flatnonzero(np.diff(rows.flaws.starts))
    flaws = {pictures.name(i): rows.flaws[int(i)] for i in flawed[:NAMED]}
    _object(flaws, f"{len(flawed)} of {len(rows)} pictures are unreadable", "leaves them out", on_missing)
    captioned = np.diff(rows.captions.starts) > 0
    if not captioned.any():
        raise UserError(
            f"none of the {len(rows)} pictures in {indices[0].shard} and its like has a caption; name the suffix "
            "of the captions' files (txt), their key in KEY.json or their column in data.caption_column"
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


def ids_of(pictures: Sequence[ShardPictures]) -> list[Texts]:
    """The pictures' ids: their names in the shards, with the shard before it where names come again."""
    names = [one.rows.names for one in pictures]
    if len(set(chain.from_iterable(names))) == sum(map(len, names)):
        return names
    log.info("names of pictures come again in other shards, so an image id is shard/name")
    return [Texts.of(one.name(i) for i in range(len(one))) for one in pictures]


def refuse_shared(pictures: Mapping[str, ShardPictures]) -> None:
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
