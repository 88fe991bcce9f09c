"""The rows so far of an output that is not complete: a file that one process owns, and that the next can go on from."""

import fcntl
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

from captioning.errors import UserError
from captioning.files import remove_unfinished, write_atomically
from captioning.prediction.formats import Row
from captioning.prediction.read_back import RowBack, rows_back

logger = logging.getLogger(__name__)


def partial_path(output: Path) -> Path:
    """`captions.partial.jsonl` beside `captions.jsonl`."""
    return output.with_name(f"{output.stem}.partial{output.suffix}")


def settings_path(output: Path) -> Path:
    """Where it is written how the captions of `captions.jsonl` were made: `captions.settings.json` beside it."""
    return output.with_name(f"{output.stem}.settings.json")


def partial_settings_path(output: Path) -> Path:
    """Where that lies until then: `captions.jsonl.settings.partial.json`, which no rows of another suffix share."""
    return output.with_name(f"{output.name}.settings.partial.json")


def has_rows(output: Path) -> bool:
    """Whether a run left rows of an output that it did not complete."""
    path = partial_path(output)
    return path.is_file() and path.stat().st_size > 0


class PartialFile:
    """`captions.partial.jsonl` and `captions.jsonl.settings.partial.json`, while rows are written.

    The process that has it open holds its lock, which the system frees when the process ends, however it ends. Rows
    are appended and never written again; each is in the file when `append` returns, and so survives the process. A
    row that the computer's own end has torn is cut off.

    Args:
        given: the key `output`, for sentences.
        output: the file that it becomes.
        settings: JSON: what the rows depend on.
        resume: go on from rows that are there, if they depend on the same.
        overwrite: else, begin anew where there are some.

    Raises:
        UserError: when it is opened, if another process has it open, or it has rows that are not to be gone on from.
    """

    def __init__(self, given: str | Path, output: Path, settings: str, *, resume: bool, overwrite: bool):
        self._given, self._output, self._settings = given, output, settings
        self._resume, self._overwrite = resume, overwrite
        self.path = partial_path(output)
        self.settings_path = partial_settings_path(output)

    def open(self) -> None:
        """Own it."""
        self._file = _opened_alone(self._given, self.path)
        try:
            remove_unfinished([self.settings_path])
            if self._resume and has_rows(self._output):
                self._refuse_other_settings()
                return
            check_rows_so_far(self._given, self._output, resume=self._resume, overwrite=self._overwrite)
            os.truncate(self.path, 0)
            write_atomically(self.settings_path, self._settings)
        except BaseException:
            self._file.close()
            raise

    def rows(self, known: Callable[[int], Row]) -> Iterator[RowBack]:
        """The rows that are there, see `rows_back`."""
        with self.path.open("rb") as file:
            yield from rows_back(file, self._output, known)

    def cut(self, end: int) -> None:
        """Keep only so many bytes: what comes behind the last whole row is none."""
        os.truncate(self.path, end)

    def append(self, text: str) -> None:
        """Write some text at the end: all of it, or, where the disk is full, nothing."""
        size, rest = os.fstat(self._file.fileno()).st_size, text.encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            os.truncate(self.path, size)
            raise

    def complete(self) -> None:
        """Let it become the output, and its settings those of the output."""
        os.fsync(self._file.fileno())
        self.path.replace(self._output)
        self.settings_path.replace(settings_path(self._output))  # `finish_completing` does it for a process that died
        self._file.close()  # which frees the lock

    def close(self) -> None:
        """Leave it to another process."""
        self._file.close()

    def delete(self) -> None:
        """Leave nothing."""
        self.settings_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _refuse_other_settings(self) -> None:
        anew = "overwrite=true without resume begins anew"
        if not self.settings_path.is_file():
            raise UserError(f"{self.path} lacks {self.settings_path.name}, how its rows were made; {anew}")
        differing = other_settings(self.settings_path, self._settings)
        if differing:
            raise UserError(f"the rows in {self.path} were made otherwise: {differing}; say the same, or {anew}")


def finish_completing(given: str | Path, output: Path) -> None:
    """Where a process has given its rows the name of the output, and ended before it did so with their settings."""
    path, settings = partial_path(output), partial_settings_path(output)
    if settings.is_file() and output.is_file() and not path.exists():
        with _opened_alone(given, output):
            settings.replace(settings_path(output))


def check_rows_so_far(given: str | Path, output: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise UserError if a stopped run left rows, and neither is to be done with them, or another process adds some."""
    path = partial_path(output)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise UserError(f"output={given}: {path} is no file, and the rows so far would lie there; move it")
    if has_rows(output) and not (resume or overwrite):
        raise UserError(
            f"{path} holds the rows of a run that was stopped; go on from them with resume=true, or begin anew with "
            "overwrite=true"
        )


def refuse_while_written(given: str | Path, output: Path) -> None:
    """Raise UserError if another process is writing this output now."""
    if partial_path(output).is_file():
        _opened_alone(given, partial_path(output)).close()


def other_settings(saved: Path, now: str) -> str:
    """The settings in which the file differs from `now`, in words; empty if in none."""
    try:
        before = json.loads(saved.read_text(encoding="utf-8"))
    except ValueError:
        return f"{saved} is damaged"
    after = json.loads(now)
    if not isinstance(before, dict):
        return f"{saved} is damaged"
    return "; ".join(islice(_differing(before, after), 2))


def _differing(before: dict[str, Any], after: dict[str, Any], within: str = "") -> Iterator[str]:
    for key in before | after:
        one, other = before.get(key), after.get(key)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            if one.get("_target_") == other.get("_target_"):
                yield from _differing(one, other, f"{within}{key}.")
                continue
            one, other = (str(made.get("_target_", made)).rpartition(".")[2] for made in (one, other))
        yield f"{within}{key} was {one} and is {other}"


def _opened_alone(given: str | Path, path: Path) -> FileIO:
    while True:
        file = path.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(
                f"output={given}: another predict.py is writing {path}; wait until it ends, or name another output"
            ) from None
        except OSError as error:
            logger.warning("%s: a second run on this output would not be noticed, for %s", path, error.strerror)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # it was completed in between: that is another file now
