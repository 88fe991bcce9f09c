"""What is captioned: pictures of folders, patterns, lists, tables, shards and URLs, or a split of a data set.

Imports no torch.
"""

from __future__ import annotations

import codecs
import glob
import logging
import os
import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from captioning.data.images import (
    UNREAD,
    UnreadablePicture,
    decode_picture,
    fetched,
    picture_suffixes,
    read_file,
    read_picture,
)
from captioning.data.index import IndexedPictures
from captioning.data.readers.tables import SUFFIXES, columns_of, read_table
from captioning.data.records import Texts
from captioning.data.remote import is_remote, listed, matching, read_whole
from captioning.data.shards import KEY_AND_SUFFIX, expanded
from captioning.data.stored import Stamp, StoredPictures
from captioning.errors import UserError
from captioning.files import files_below, is_passed_over

if TYPE_CHECKING:
    from captioning.data.rows import TokenArrays

log = logging.getLogger(__name__)


SHARDS = (".tar", ".parquet")
TABLES = tuple(suffix for suffix in SUFFIXES if suffix not in SHARDS)
COLUMNS = (
    "path",
    "file_name",
    "filename",
    "file",
    "image",
    "image_path",
    "url",
    "image_url",
)  # of pictures, in a table


@dataclass(frozen=True)
class InputPictures:
    """N pictures by their places, from 0; can be sent to another process.

    Args:
        paths: what each is called.
        image_ids: of an annotated data set.
        references: the captions that it has for each picture.
        tokens: the same as the model reads them.
        drawn: a picture by its place, where they are drawn.
        stored: where they lie, if the paths are no files.
    """

    paths: Sequence[Path]
    image_ids: Sequence[int | str] | None = None
    references: Sequence[Sequence[str]] | None = None
    tokens: TokenArrays | None = None
    drawn: Callable[[int], Image.Image] | None = None
    stored: StoredPictures | None = None

    @classmethod
    def of(cls, stored: StoredPictures) -> InputPictures:
        """Pictures that lie anywhere; their paths are made when they are looked at."""
        return cls(_Paths(stored), stored=stored)

    def __len__(self) -> int:
        return len(self.paths)

    def called(self, place: int) -> str:
        """A picture's name in the output; a URL stays one, which it does not as a path."""
        return self.stored.name(place) if self.stored else str(self.paths[place])

    def origin(self, place: int) -> tuple[str | None, str | None]:
        """The shard that a picture lies in, and its key there; None of others."""
        return origin_of(self.stored, place) if self.stored else (None, None)

    def load(self, place: int) -> Image.Image:
        """A picture, upright and RGB; raises `UnreadablePicture`."""
        if self.drawn:
            return self.drawn(place)
        return decode_picture(self.read(place)) if self.stored else read_picture(self.paths[place])

    def read(self, place: int) -> bytes:
        """A picture's file; raises `UnreadablePicture`."""
        return self.stored.read(place) if self.stored else read_file(self.paths[place])


class _Paths(Sequence[Path]):
    def __init__(self, stored: StoredPictures):
        self._stored = stored

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, place: Any) -> Any:
        return Path(self._stored.name(range(len(self._stored))[place]))


def origin_of(stored: StoredPictures, i: int) -> tuple[str | None, str | None]:
    """The shard that picture i lies in, and its key there, as WebDataset has it; None of others."""
    if isinstance(stored, JoinedPictures):
        return origin_of(*stored.which(i))
    if not isinstance(stored, IndexedPictures):
        return None, None
    name = str(stored.rows.names[i])
    parts = KEY_AND_SUFFIX.fullmatch(name)
    return stored.shards[int(stored.shard_of[i])], parts[1] if parts else name


class NamedPictures:
    """Pictures that are files of their own, here or elsewhere: N paths and URLs.

    Args:
        names: of them.
        private: whether URLs may lead to addresses of this network.
    """

    def __init__(self, names: Texts, private: bool):
        self._names, self._private = names, private

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """The path or URL."""
        return str(self._names[int(i)])

    def read(self, i: int) -> bytes:
        """The file; a web server is asked up to three times."""
        name = self.name(i)
        if not is_remote(name):
            return read_file(Path(name))
        if name.startswith(("http://", "https://")):
            return fetched(name, private=self._private, tries=3)
        try:
            return read_whole(name)
        except UserError as error:
            raise UnreadablePicture(str(error).removeprefix(f"{name} ").removeprefix(f"{name}: ")) from error

    def stamp(self, i: int) -> Stamp | None:
        """Of no use here."""
        return None

    def flaw(self, i: int) -> str | None:
        """None is looked for."""
        return None

    def part(self, chosen: Sequence[int] | np.ndarray) -> NamedPictures:
        """These alone."""
        return NamedPictures(self._names.part(np.asarray(chosen, int)), self._private)


class JoinedPictures:
    """Pictures that lie in several places, one after the other."""

    def __init__(self, parts: Sequence[StoredPictures]):
        self._parts = list(parts)
        self._starts = [0, *accumulate(map(len, self._parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def which(self, i: int) -> tuple[StoredPictures, int]:
        """Where picture i lies, and its number there."""
        part = bisect_right(self._starts, i) - 1
        return self._parts[part], int(i) - self._starts[part]

    def name(self, i: int) -> str:
        """As there."""
        part, number = self.which(i)
        return part.name(number)

    def read(self, i: int) -> bytes:
        """As there."""
        part, number = self.which(i)
        return part.read(number)

    def stamp(self, i: int) -> Stamp | None:
        """As there."""
        part, number = self.which(i)
        return part.stamp(number)

    def flaw(self, i: int) -> str | None:
        """As there."""
        part, number = self.which(i)
        return part.flaw(number)

    def part(self, chosen: Sequence[int] | np.ndarray) -> JoinedPictures:
        """These alone, in rising order."""
        chosen = np.asarray(chosen, int)
        cuts = np.searchsorted(chosen, self._starts)
        spans = zip(self._parts, self._starts, cuts, cuts[1:], strict=False)
        return JoinedPictures([part.part(chosen[a:b] - start) for part, start, a, b in spans if b > a])


# What `input` names.


class Url(str):
    """A picture that lies elsewhere."""


class Shard(str):
    """A tar or a Parquet file of pictures, here or elsewhere."""


Found = Path | Url | Shard


def find_pictures(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """`find_inputs`, where all are files."""
    found = find_inputs(source)
    if other := next((one for one in found if not isinstance(one, Path)), None):
        raise UserError(f"input={other} is no file of a picture; name files, folders or patterns")
    return [one for one in found if isinstance(one, Path)]


def find_inputs(source: str | Path | Sequence[str | Path], column: str | None = None) -> list[Found]:
    """The pictures, and shards of pictures, that `input` names, each once, in the order of the input.

    Args:
        source: one of these, or a list of any of them, here or as URLs that fsspec reads:
            a folder, searched with all folders below it, in natural order (`2.jpg`, `10.jpg`); hidden ones and
                `*.heat_maps`, where strips of predictions lie, are left out. One without pictures may hold shards;
            a glob pattern such as `photos/**/*.jpg`, in natural order, or braces: `{00000..00099}.tar`;
            a text file `*.txt` with one path or URL a line, where relative paths start from the text file's own folder;
            a table (.csv, .tsv, .jsonl, .json) with a column of them;
            a shard (.tar, .parquet);
            `-`, which is such a list from standard input;
            any other file.
        column: of tables.

    Folders and patterns without an extension of their own give files with a picture's extension only. A single
    source has to exist; a file of a list may be missing and is then reported when it is read, like a broken one.
    Raises UserError where nothing is found.
    """
    if isinstance(source, str | Path):
        found = _expand(source, column, may_be_missing=False)
    else:
        found = [one for part in source for one in _expand(part, column, may_be_missing=True)]
    if not found:
        raise UserError("input=[] names no picture; give a folder, a pattern, a file or a list of them")
    once: dict[str, Found] = {}
    for one in found:
        once.setdefault(str(one) if is_remote(str(one)) else os.path.realpath(one), one)  # a file's first name wins
    return list(once.values())


def _expand(source: str | Path, column: str | None, may_be_missing: bool) -> list[Found]:
    if not str(source):
        raise UserError("input is empty; give a folder, a pattern, a file or a list of them")
    if str(source) == "-":
        return _lines_of(sys.stdin.buffer.read(), Path(), "-")
    if is_remote(str(source)):
        return [one for url in expanded(str(source)) for one in _elsewhere(url)]
    path = _at_home(str(source))
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered, a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"input={source} can't be looked at: {reason}; check the path") from error
    if is_folder:
        return _in_folder(path)
    if is_file:
        return _in_file(path, column)
    if (braces := expanded(str(path))) != [str(path)]:
        return [one for text in braces for one in _expand(text, column, may_be_missing)]
    if glob.has_magic(str(path)):
        return _matching(path)
    if may_be_missing:
        return [path]
    raise UserError(
        f"input={source} is neither a folder nor a file, seen from {Path.cwd()}; "
        "give a folder, a pattern such as 'photos/**/*.jpg', a picture, or a .txt file with one path a line"
    )


def _in_file(path: Path, column: str | None) -> list[Found]:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _in_list(path)
    if suffix in SHARDS:
        return [Shard(path)]
    return list(_in_table(path, column)) if suffix in TABLES else [path]


def _in_table(path: Path, column: str | None) -> Iterator[Found]:
    """The pictures of a column."""
    names = columns_of(path)
    chosen = column or next((name for name in COLUMNS if name in names), None)
    if chosen not in names:
        there = f"has the columns {', '.join(names)}" if names else "is empty"
        asked = f"input_column={column}: {path}" if column else f"input={path}"
        raise UserError(f"{asked} {there}; name the one of paths or URLs in input_column")
    for place, row in read_table(path):
        if not isinstance(name := row.get(chosen), str) or not name.strip():
            raise UserError(f"{place}: {chosen} is {name!r}, which is no path or URL of a picture")
        yield _named(path.parent, name.strip())


def _named(folder: Path, name: str) -> Found:
    if not is_remote(name):
        return _perhaps_shard(folder / _at_home(name))
    return Shard(name) if name.lower().endswith(SHARDS) else Url(name)


def _perhaps_shard(one: Found) -> Found:
    return Shard(one) if isinstance(one, Path) and one.suffix.lower() in SHARDS else one


def _elsewhere(url: str) -> list[Found]:
    """The pictures, and else the shards, of a URL, of a pattern, or of a folder, which ends in a stroke."""
    if glob.has_magic(url) and not url.startswith(("http://", "https://")):
        files = matching(url)
    elif url.endswith("/"):
        files = listed(url)
    elif url.lower().endswith((".txt", *TABLES)):
        raise UserError(f"input={url}: a list has to be a file of this machine; fetch it first")
    else:
        return [_named(Path(), url)]
    pictures: list[Found] = [Url(one) for one in files if _is_picture_name(Path(one))]
    shards: list[Found] = [Shard(one) for one in files if one.lower().endswith(SHARDS)]
    if not pictures and not shards:
        raise UserError(f"input={url}: none of its {len(files)} files is a picture, a .tar or a .parquet file")
    return pictures or shards


def _in_folder(folder: Path) -> list[Found]:
    files = list(files_below(folder, _warn_of_folder))
    pictures: list[Path] = [path for path in files if _is_picture_name(path)]
    _warn_of_unread(folder, files)
    if not pictures and (shards := sorted((f for f in files if f.suffix.lower() in SHARDS), key=natural_key)):
        return [Shard(path) for path in shards]
    if not pictures:
        others = f"which holds {len(files)} other files" if files else "which holds no files"
        raise UserError(f"input={folder}: no {_extensions()} file in this folder or below, {others}; check the path")
    return [*sorted(pictures, key=natural_key)]


def _warn_of_folder(error: OSError) -> None:
    log.warning("the pictures in %s are left out: %s", error.filename, error.strerror)


def _matching(pattern: Path) -> list[Found]:
    fixed = list(takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    wild = pattern.parts[len(fixed) :]
    folder = Path(*fixed)
    try:
        # not glob.glob, which walks links that lead in a circle again and again
        matches = [path for path in folder.glob(str(Path(*wild))) if _wanted(path.relative_to(folder), wild)]
    except ValueError as error:
        raise UserError(f"input={pattern} is not a pattern: {error}; write for example 'photos/**/*.jpg'") from error
    names_extension = pattern.suffix and not glob.has_magic(pattern.suffix)
    pictures = [path for path in matches if not path.is_dir() and (names_extension or _is_picture_name(path))]
    if pictures and all(path.suffix.lower() in SHARDS for path in pictures):
        return [Shard(path) for path in sorted(pictures, key=natural_key)]
    if not pictures:
        others = f"{len(matches)} other files or folders do" if matches else "nothing does"
        hint = "; a [ that is part of a name is written [[]" if "[" in str(pattern) else ""
        raise UserError(f"input={pattern}: no picture matches this pattern, seen from {Path.cwd()}; {others}{hint}")
    return [*sorted(pictures, key=natural_key)]


def _wanted(match: Path, wild: Sequence[str]) -> bool:
    """What is passed over matches only patterns that spell it out: a leading dot, as in a shell, or `.heat_maps`."""
    return any(map(is_passed_over, wild)) or not any(map(is_passed_over, match.parts))


def _in_list(listing: Path) -> list[Found]:
    try:
        content = listing.read_bytes()
    except OSError as error:
        raise UserError(f"input={listing} can't be read: {error.strerror}; check its permissions") from error
    return _lines_of(content, listing.parent, str(listing))


def _lines_of(content: bytes, folder: Path, listing: str) -> list[Found]:
    """The paths and URLs of a list."""
    try:
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # PowerShell's `>` writes it
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig", "surrogateescape")  # names need not be UTF-8
    except UnicodeDecodeError as error:
        raise UserError(f"input={listing} is damaged UTF-16 ({error.reason}); save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"input={listing} is not a text file; a .txt file has to hold one path a line")
    # not splitlines: it also splits at characters that file names may hold
    lines = (line.strip() for line in text.split("\n"))
    paths = [_perhaps_shard(path) for line in lines if line and (path := _listed(folder, line))]
    if not paths:
        raise UserError(f"input={listing} lists no picture; write one path a line into it")
    return paths


def _listed(folder: Path, line: str) -> Found | None:
    """The path of a line of a list; None where it begins with # and no file does. Quotes around it are taken off."""
    if is_remote(line):
        return _named(folder, line)
    path = folder / _at_home(line)
    if line[0] not in "#'\"" or path.exists():
        return path
    if line[0] == "#":
        return None
    return folder / _at_home(line[1:-1]) if len(line) > 2 and line[0] == line[-1] else path


def _at_home(path: str) -> Path:
    """A leading `~` is the home folder; that of a user who is not known here is a file's name."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises for an unknown user


def _is_picture_name(path: Path) -> bool:
    return path.suffix.lower() in picture_suffixes()


def _warn_of_unread(folder: Path, files: Sequence[Path]) -> None:
    suffixes = Counter(path.suffix.lower() for path in files)
    unread = {suffix: suffixes[suffix] for suffix in sorted(UNREAD - picture_suffixes()) if suffixes[suffix]}
    if unread:
        log.warning(
            "%s: %d files that can't be read are left out: %s; convert them to JPEG, or for .heic, .heif and .jxl "
            "pip install 'captioning[formats]'",
            folder, sum(unread.values()), ", ".join(f"{number} {suffix}" for suffix, number in unread.items()),
        )  # fmt: skip


def _extensions() -> str:
    return ", ".join(sorted(picture_suffixes()))


def natural_key(path: Path) -> tuple[list[list[str | int]], str]:
    """Sorts paths folder by folder, numbers by their value and letters whatever their case; never a tie.

    >>> [path.name for path in sorted(map(Path, ["b10.jpg", "B9.jpg", "a.jpg"]), key=natural_key)]
    ['a.jpg', 'B9.jpg', 'b10.jpg']
    """
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in path.parts]  # every second piece is a number
    return [[int(piece) if i % 2 else piece for i, piece in enumerate(part)] for part in parts], str(path)
