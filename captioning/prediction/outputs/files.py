"""A sink takes captioned pictures one by one and ends with files; here is how these are checked and put in place."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self

from captioning.errors import UserError
from captioning.files import atomic_file, is_same_file, remove_unfinished
from captioning.prediction.inputs import InputPictures
from captioning.prediction.journal import NOTHING, CaptionedPicture, May, disk_errors


class Sink:
    """What is made of captioned pictures.

    It is constructed before any caption is made, and then refuses (`UserError`) what can't be written. `finish` puts
    its files in place: whole, or not at all. One that needs room until then has it in a `with` block.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def add(self, record: CaptionedPicture) -> None:
        """The next picture, in the order of the input."""
        raise NotImplementedError

    def finish(self) -> None:
        """All pictures were added."""


class Format(Sink):
    """A sink that writes one file, in the format of a suffix; `outputs.FORMATS` knows them.

    Args:
        file: opened for writing, in binary.
        pictures: of the rows, for a format that holds them.
    """

    is_journal = False  # are its lines the journal's, which then becomes the file?
    holds_alternatives = False  # has an n-best list a place in it, beside the best?
    holds_sizes = False  # width and height of the pictures?
    holds_pictures = False  # the pictures themselves? `pictures` is set then
    about_failures = "their lines say why"  # of pictures without a caption; or `{reasons}`

    def __init__(self, file: IO[bytes], pictures: InputPictures | None = None):
        self.file, self.pictures = file, pictures

    @classmethod
    def check(cls, output: str | Path, pictures: InputPictures) -> None:
        """Raise UserError if these pictures can't stand together in such a file."""

    @classmethod
    def counts(cls, file: IO[bytes]) -> tuple[int, int]:
        """How many pictures such a file has with a caption, and without one."""
        raise NotImplementedError


def real_file(given: str | Path) -> Path:
    """The file behind links: a link stays a link, and the temporary file lies on the same disk as the final one."""
    try:
        return Path(os.path.realpath(given))
    except ValueError as error:  # a null character
        raise UserError(f"{given!r} can't be written: {error}; choose another name") from error


def check_file(
    key: str,
    given: str | Path,
    overwrite: bool,
    *beside: Path,
    may_exist: bool = False,
    example: str = "captions.jsonl",
) -> None:
    """Raise UserError unless the file that `key` names, such as `example`, and those `beside` it can be written.

    A missing parent folder is made. Files that exist are refused unless `overwrite`; with `may_exist` the first is
    not.
    """
    with disk_errors(key, given):
        path = real_file(given)
        _make_parent(key, given, path)
        for target in (path, *beside):
            _check_target(key, given, target, overwrite or (may_exist and target == path), example)
            tempfile.TemporaryFile(dir=target.parent).close()  # nameless: nothing is left of it by a process that dies
            with suppress(FileNotFoundError):  # so long are the names of `atomic_file`
                target.with_name(f".{target.name}.{os.getpid()}.tmp").lstat()


def _make_parent(key: str, given: str | Path, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{key}={given}: a part of {path.parent} is a file, not a folder; name another") from error


def _check_target(key: str, given: str | Path, target: Path, overwrite: bool, example: str) -> None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise UserError(f"{key}={given}: {target} is a folder; name a file, for example {target / example}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{key}={given}: {target} is a device or a pipe; name a file, for example {example}")
    if not overwrite:
        raise UserError(f"{key}={given}: {target} exists already; replace it with overwrite=true, or name another")


@contextmanager
def new_file(key: str, given: str | Path, may: May = NOTHING) -> Iterator[IO[bytes]]:
    """The file that `key` names, for writing; it appears under its name when the block ends well.

    Raises:
        UserError: if it can't be written, or exists by then and may not.
    """
    target = real_file(given)
    if may.resume:
        remove_unfinished([target])
    with disk_errors(key, given), atomic_file(target) as file:
        yield file
        file.flush()
        if target.exists() and not may.overwrite and not (may.resume and is_same_file(target, Path(file.name))):
            what = " and holds something else" if may.resume else ""
            raise UserError(
                f"{key}={given}: {target} exists already{what}; replace it with overwrite=true, or name another"
            )
