"""Captions -> a JSONL file that is either complete and in order, or not there."""

import json
import logging
import math
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from captioning.errors import UserError

logger = logging.getLogger(__name__)

# Characters that JSON allows as they are, but that many programs take for the end of a line, or that are no UTF-8:
# lone surrogates stand for the bytes of file names that are not UTF-8 (PEP 383).
TO_ESCAPE = re.compile("[\x7f\x85\u2028\u2029\ud800-\udfff]")


def check_output(output: str | Path, overwrite: bool) -> None:
    """Raise UserError unless `output` and its settings file can be written, before any time is spent on captions.

    A missing parent folder is made. Files that exist are refused unless `overwrite`.
    """
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


def to_json(value: object, indent: int | None = None) -> str:
    """JSON with readable letters of every script, on one line unless `indent`; paths as text.

    >>> print(to_json({"path": "été\\n\\udcff.jpg"}))
    {"path": "été\\n\\udcff.jpg"}
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False, default=str)
    return TO_ESCAPE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


class CaptionWriter:
    """Writes one JSON object a line, in the order of the pictures, and the settings once into a file beside it.

    A row is `{"path": ..., "caption": ..., "log_probability": ...}`, natural log, mean per token, with
    `"alternatives": [{"caption": ..., "log_probability": ...}, ...]` where there are some; or
    `{"path": ..., "error": ...}`. Rows may be given out of order: each waits for those before it. They are written
    under a temporary name and get their own at the end of the `with` block. If that ends by an exception, what
    existed under the name stays, and a log message says where the rows so far are. Raises UserError for everything
    that `check_output` refuses, and for a disk that fills up.

    Args:
        output: the file to write.
        settings: plain containers: how the captions were made.
        overwrite: replace files that exist.
    """

    def __init__(self, output: str | Path, settings: Mapping[str, object], *, overwrite: bool = False):
        self._given = output
        self._settings = to_json(settings, indent=2)
        self._overwrite = overwrite
        self._waiting: dict[int, dict[str, object]] = {}
        self._next = 0
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
    ) -> None:
        """The caption of picture `index`, counted from 0; an infinite log-probability becomes null.

        `alternatives` are captions and their log-probabilities, best first; a row without any has no such key.
        """
        row: dict[str, object] = {"path": str(path), **_scored(caption, log_probability)}
        if alternatives:
            row["alternatives"] = [_scored(*one) for one in alternatives]
        self.captioned += 1
        self._write(index, row)

    def write_error(self, index: int, path: str | Path, reason: str) -> None:
        """Why picture `index` has no caption."""
        self.failed += 1
        self._write(index, {"path": str(path), "error": reason})

    def _write(self, index: int, row: dict[str, object]) -> None:
        assert index >= self._next and index not in self._waiting, f"picture {index} was written twice"
        self._waiting[index] = row
        while self._next in self._waiting:
            try:
                self._rows.write(to_json(self._waiting[self._next]) + "\n")
            except OSError as error:
                raise self._failure(error) from error
            del self._waiting[self._next]
            self._next += 1

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
            with _open_new(settings_path(self._output)) as settings:
                settings.write(self._settings + "\n")
                _sync(settings)
            _sync(self._rows)
            self._rows.close()
            Path(settings.name).replace(settings_path(self._output))
            Path(self._rows.name).replace(self._output)
        except OSError as error:
            raise self._failure(error) from error

    def _keep_partial(self) -> None:
        with suppress(OSError):  # a full disk, again: the row that did not fit is lost
            self._rows.close()
        if self._next == 0:
            Path(self._rows.name).unlink(missing_ok=True)
            logger.warning("stopped before the first caption; nothing was written to %s", self._output)
        else:
            logger.warning(
                "stopped: the %d rows so far are in %s; %s was not touched", self._next, self._rows.name, self._output
            )

    def _failure(self, error: OSError) -> UserError:
        reason = f"output={self._given} can't be written: {error.strerror}"
        return UserError(f"{reason}; make room or choose another place with output=...")


def _scored(caption: str, log_probability: float) -> dict[str, object]:
    finite = round(log_probability, 6) if math.isfinite(log_probability) else None
    return {"caption": caption, "log_probability": finite}


def _sync(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())
