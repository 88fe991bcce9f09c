"""What is captioned: the pictures of a folder, a pattern or a list, or a split of a data set. Imports no torch."""

from __future__ import annotations

import codecs
import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from captioning.data.images import UNREAD, decode_picture, picture_suffixes, read_picture
from captioning.data.stored import StoredPictures
from captioning.errors import UserError
from captioning.files import files_below, is_passed_over

if TYPE_CHECKING:
    from captioning.data.rows import TokenArrays

log = logging.getLogger(__name__)


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

    def __len__(self) -> int:
        return len(self.paths)

    def called(self, place: int) -> str:
        """A picture's name in the output; a URL stays one, which it does not as a path."""
        return self.stored.name(place) if self.stored else str(self.paths[place])

    def load(self, place: int) -> Image.Image:
        """A picture, upright and RGB; raises `UnreadablePicture`."""
        if self.drawn:
            return self.drawn(place)
        return decode_picture(self.stored.read(place)) if self.stored else read_picture(self.paths[place])


def find_pictures(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The picture files that `input` names, each file once, in the order of the input.

    Args:
        source: one of these, or a list of any of them:
            a folder, searched with all folders below it, in natural order (`2.jpg`, `10.jpg`); hidden ones and
                `*.heat_maps`, where strips of predictions lie, are left out;
            a glob pattern such as `photos/**/*.jpg`, in natural order;
            a text file `*.txt` with one path a line, where relative paths start from the text file's own folder;
            any other file.

    Folders and patterns without an extension of their own give files with a picture's extension only. A single
    source has to exist; a file of a list may be missing and is then reported when it is read, like a broken one.
    Raises UserError where nothing is found.
    """
    if isinstance(source, str | Path):
        found = _expand(source, may_be_missing=False)
    else:
        found = [path for one in source for path in _expand(one, may_be_missing=True)]
    if not found:
        raise UserError("input=[] names no picture; give a folder, a pattern, a file or a list of them")
    once: dict[str, Path] = {}
    for path in found:
        once.setdefault(os.path.realpath(path), path)  # the first name of a file wins
    return list(once.values())


def _expand(source: str | Path, may_be_missing: bool) -> list[Path]:
    if not str(source):
        raise UserError("input is empty; give a folder, a pattern, a file or a list of them")
    path = _at_home(str(source))
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered, a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"input={source} can't be looked at: {reason}; check the path") from error
    if is_folder:
        return _in_folder(path)
    if is_file:
        return _in_list(path) if path.suffix.lower() == ".txt" else [path]
    if glob.has_magic(str(path)):
        return _matching(path)
    if may_be_missing:
        return [path]
    raise UserError(
        f"input={source} is neither a folder nor a file, seen from {Path.cwd()}; "
        "give a folder, a pattern such as 'photos/**/*.jpg', a picture, or a .txt file with one path a line"
    )


def _in_folder(folder: Path) -> list[Path]:
    files = list(files_below(folder, _warn_of_folder))
    pictures = [path for path in files if _is_picture_name(path)]
    _warn_of_unread(folder, files)
    if not pictures:
        others = f"which holds {len(files)} other files" if files else "which holds no files"
        raise UserError(f"input={folder}: no {_extensions()} file in this folder or below, {others}; check the path")
    return sorted(pictures, key=natural_key)


def _warn_of_folder(error: OSError) -> None:
    log.warning("the pictures in %s are left out: %s", error.filename, error.strerror)


def _matching(pattern: Path) -> list[Path]:
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
    if not pictures:
        others = f"{len(matches)} other files or folders do" if matches else "nothing does"
        hint = "; a [ that is part of a name is written [[]" if "[" in str(pattern) else ""
        raise UserError(f"input={pattern}: no picture matches this pattern, seen from {Path.cwd()}; {others}{hint}")
    return sorted(pictures, key=natural_key)


def _wanted(match: Path, wild: Sequence[str]) -> bool:
    """What is passed over matches only patterns that spell it out: a leading dot, as in a shell, or `.heat_maps`."""
    return any(map(is_passed_over, wild)) or not any(map(is_passed_over, match.parts))


def _in_list(listing: Path) -> list[Path]:
    try:
        content = listing.read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # PowerShell's `>` writes it
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig", "surrogateescape")  # names need not be UTF-8
    except UnicodeDecodeError as error:
        raise UserError(f"input={listing} is damaged UTF-16 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"input={listing} can't be read: {error.strerror}; check its permissions") from error
    if "\0" in text:
        raise UserError(f"input={listing} is not a text file; a .txt file has to hold one path a line")
    # not splitlines: it also splits at characters that file names may hold
    lines = (line.strip() for line in text.split("\n"))
    paths = [path for line in lines if line and (path := _listed(listing.parent, line))]
    if not paths:
        raise UserError(f"input={listing} lists no picture; write one path a line into it")
    return paths


def _listed(folder: Path, line: str) -> Path | None:
    """The path of a line of a list; None where it begins with # and no file does. Quotes around it are taken off."""
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
