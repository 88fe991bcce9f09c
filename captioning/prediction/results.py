"""Captions -> a file that is either complete and in order, or not there."""

import logging
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from captioning.errors import UserError
from captioning.prediction.formats import Row, format_of, to_json

logger = logging.getLogger(__name__)


def check_output(output: str | Path, overwrite: bool) -> None:
    """Raise UserError unless `output` and its settings file can be written, before any time is spent on captions.

    A missing parent folder is made. Files that exist are refused unless `overwrite`, and so is a suffix that names no
    format.
    """
    format_of(output)
    check_file("output", output, overwrite, "captions.jsonl", beside=settings_path)


def check_file(key: str, given: str | Path, overwrite: bool, example: str, beside: Callable | None = None) -> None:
    """The same of the file that `key` names, such as `example`, and of a second one that lies beside it."""
    try:
        path = real_file(given)
        _make_parent(key, given, path)
        targets = (path, beside(path)) if beside else (path,)
        for target in targets:
            _check_target(key, given, target, overwrite, example)
        for file in map(_open_new, targets):
            with file:
                Path(file.name).unlink()
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


def settings_path(output: Path) -> Path:
    """Where the settings of `captions.jsonl` lie: `captions.settings.json` beside it."""
    return output.with_name(f"{output.stem}.settings.json")


def _open_new(target: Path) -> TextIO:
    """A new file beside `target`, under a name that nothing has: `captions.partial.jsonl`, `captions.partial-2.jsonl`.

    Line-buffered, so that each row is in the file as soon as it is written.
    """
    number = 1
    while True:
        suffix = "partial" if number == 1 else f"partial-{number}"
        try:
            path = target.with_name(f"{target.stem}.{suffix}{target.suffix}")
            return path.open("x", buffering=1, encoding="utf-8", newline="\n")
        except FileExistsError:
            number += 1


class CaptionWriter:
    """Writes a row for each picture, in the order of the pictures, and the settings once into a file beside it.

    The suffix of `output` chooses the format: `formats.JsonLines`, `formats.Csv` or `formats.CocoResults`. Rows may
    be given out of order: each waits for those before it. They are written under a temporary name and get their own
    at the end of the `with` block. If that ends by an exception, what existed under the name stays, and a log message
    says where the rows so far are. Raises UserError for everything that `check_output` refuses, for a disk that fills
    up, and in COCO results for a second picture with the same `image_id`.

    Args:
        output: the file to write.
        settings: plain containers: how the captions were made.
        overwrite: replace files that exist.
    """

    def __init__(self, output: str | Path, settings: Mapping[str, object], *, overwrite: bool = False):
        self._given = output
        self._settings = to_json(settings, indent=2)
        self._overwrite = overwrite
        self._format = format_of(output)
        self._waiting: dict[int, Row] = {}
        self._next = 0
        self._written = 0  # rows in the file, which may leave some out
        self._ended = False
        self.captioned = 0
        self.failed = 0

    def __enter__(self) -> Self:
        check_output(self._given, self._overwrite)
        self._output = real_file(self._given)
        self._rows = _open_new(self._output)
        return self

    def write_caption(
        self,
        index: int,
        path: str | Path,
        caption: str,
        log_probability: float,
        alternatives: Sequence[tuple[str, float]] = (),
        *,
        image_id: int | str | None = None,
    ) -> None:
        """The caption of picture `index`, counted from 0; an infinite log-probability becomes null, or an empty cell.

        `alternatives` are captions and their log-probabilities, best first; only JSONL has room for them. `image_id`
        is that of an annotated data set: all pictures have one, or none.
        """
        if alternatives and not self._format.holds_alternatives and not self.captioned:
            logger.warning("%s holds the best caption of each picture; the others want a .jsonl file", self._given)
        self.captioned += 1
        self._write(index, Row(str(path), caption, log_probability, alternatives, image_id=image_id))

    def write_error(self, index: int, path: str | Path, reason: str, *, image_id: int | str | None = None) -> None:
        """Why picture `index` has no caption."""
        self.failed += 1
        self._write(index, Row(str(path), error=reason, image_id=image_id))

    def _write(self, index: int, row: Row) -> None:
        assert index >= self._next and index not in self._waiting, f"picture {index} was written twice"
        self._waiting[index] = row
        while self._next in self._waiting:
            self._append(self._format.row(self._waiting[self._next]))
            del self._waiting[self._next]
            self._next += 1

    def _append(self, text: str) -> None:
        try:
            self._rows.write(text)
        except OSError as error:
            raise self._failure(error) from error
        self._written += bool(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._keep_partial()
            return
        try:
            self._finish()
        except BaseException:
            self._keep_partial()
            raise

    def _finish(self) -> None:
        assert not self._waiting, f"picture {self._next} was never written, later ones were"
        check_output(self._given, self._overwrite)  # something may have got the name in the meantime
        try:
            self._end()
            with _open_new(settings_path(self._output)) as settings:
                settings.write(self._settings + "\n")
                _sync(settings)
            _sync(self._rows)
            self._rows.close()
            Path(settings.name).replace(settings_path(self._output))
            Path(self._rows.name).replace(self._output)
        except OSError as error:
            raise self._failure(error) from error
        if self.failed:
            where = self._format.failures
            logger.warning("%d of %d pictures could not be read; %s", self.failed, self._next, where)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._rows.write(self._format.end())

    def _keep_partial(self) -> None:
        with suppress(OSError):  # a full disk, again: the row that did not fit is lost
            self._end()  # a list of JSON cut short is still one
        with suppress(OSError):
            self._rows.close()
        if self._written == 0:
            Path(self._rows.name).unlink(missing_ok=True)
            logger.warning("stopped before the first caption; nothing was written to %s", self._output)
        else:
            found = (self._written, self._rows.name, self._output)
            logger.warning("stopped: the %d rows so far are in %s; %s was not touched", *found)

    def _failure(self, error: OSError) -> UserError:
        reason = f"output={self._given} can't be written: {error.strerror}"
        return UserError(f"{reason}; make room or choose another place with output=...")


def _sync(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())
