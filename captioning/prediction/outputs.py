"""What may be written where: asked before any time is spent on captions."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from captioning.errors import UserError
from captioning.prediction.formats import Row, format_of, to_json
from captioning.prediction.partial import (
    check_rows_so_far,
    finish_completing,
    has_rows,
    other_settings,
    refuse_while_written,
    settings_path,
)
from captioning.prediction.read_back import RowBack, rows_back

EXAMPLE = "captions.jsonl"


def check_output(output: str | Path, overwrite: bool, resume: bool = False) -> None:
    """Raise UserError unless `output` and its settings file can be written, before any time is spent on captions.

    A missing parent folder is made. Files that exist are refused unless `overwrite`, and so is a suffix that names no
    format, an output that another process is writing, and one of which a stopped run left rows, unless that or
    `resume` is said. With `resume`, a run that was killed between its last two steps is ended.
    """
    format_of(output)
    if resume:
        with told(output):
            finish_completing(output, real_file(output))
    check_file("output", output, overwrite, EXAMPLE, beside=settings_path)
    with told(output):
        check_rows_so_far(output, real_file(output), resume=resume, overwrite=overwrite)
        refuse_while_written(output, real_file(output))


def is_complete(output: str | Path, settings: Mapping[str, object]) -> bool:
    """Whether there is nothing to resume, for `output` is whole and was made with these settings.

    Raises:
        UserError: if it was made with others.
    """
    path = real_file(output)
    beside = settings_path(path)
    if has_rows(path) or not (path.is_file() and beside.is_file()):
        return False
    if differing := other_settings(beside, to_json(settings)):
        raise UserError(
            f"output={output} is complete and was made otherwise: {differing}; replace it with overwrite=true alone, "
            "or name another"
        )
    return True


def rows_of(output: str | Path, known: Callable[[int], Row]) -> Iterator[RowBack]:
    """The rows of a complete output, see `rows_back`."""
    with real_file(output).open("rb") as file:
        yield from rows_back(file, output, known)


def check_file(key: str, given: str | Path, overwrite: bool, example: str, beside: Callable | None = None) -> None:
    """The same of the file that `key` names, such as `example`, and of a second one that lies beside it."""
    try:
        path = real_file(given)
        _make_parent(key, given, path)
        targets = (path, beside(path)) if beside else (path,)
        for target in targets:
            _check_target(key, given, target, overwrite, example)
            tempfile.TemporaryFile(dir=target.parent).close()  # nameless: nothing is left of it by a process that dies
            with suppress(FileNotFoundError):  # and names so long are taken
                target.with_name(f".{target.stem}.partial{target.suffix}.{os.getpid()}.tmp").lstat()
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}={given} can't be written: {reason}; choose another place with {key}=...") from error


def real_file(given: str | Path) -> Path:
    """The file behind links: a link stays a link, and the temporary file lies on the same disk as the final one."""
    return Path(os.path.realpath(given))


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
def told(output: str | Path) -> Iterator[None]:
    """What the disk objects to, in a sentence."""
    try:
        yield
    except OSError as error:
        reason = f"output={output} can't be written: {error.strerror}"
        raise UserError(f"{reason}; make room or choose another place with output=...") from error
