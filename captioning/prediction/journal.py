"""What is not finished: the journal, a JSONL file of captioned pictures that one process owns and the next resumes.

Whatever the output is to be, its journal lies beside it, with a lock and the settings: how the captions were made.
"""

import json
import logging
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from filelock import FileLock
from PIL import Image

from captioning.errors import UserError, writing
from captioning.files import locked, remove_unfinished, unlocked, write_atomically

log = logging.getLogger(__name__)

# JSON allows these as they are, but many programs take them for line ends, or they are no UTF-8: lone surrogates
# stand for the bytes of file names that are not (PEP 383).
TO_ESCAPE = re.compile("[\x7f\x85\u2028\u2029\ud800-\udfff]")

COUNTS = ("captioned", "failed")  # in the settings file of a complete output, beside the settings
SHOWN = 3  # failures that are named in a sentence
LEFT_OUT = "left out: "  # begins the reason of a picture that could be read and was not wanted


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture with its caption, or with the reason (`error`) why it has none.

    `place` counts the pictures of the input from 0; `image_id` is that of an annotated data set. `log_probability` is
    the mean per token in nats; `alternatives` are the captions of an n-best list and theirs, best first. The picture
    lies in `shard` under its `key`; `width` and `height` in pixels are known where an output asks for them.
    """

    place: int
    path: str
    image_id: int | str | None = None
    caption: str | None = None
    log_probability: float = math.nan
    alternatives: Sequence[tuple[str, float]] = ()
    error: str | None = None
    key: str | None = None
    shard: str | None = None
    width: int | None = None
    height: int | None = None

    # What only some outputs show; the journal does not keep it.
    references: Sequence[str] = ()
    thumbnail: bytes | None = None  # a WebP file
    heat_map: Image.Image | None = None  # a strip of panels

    def line(self) -> str:
        r"""The picture as a line of JSON.

        >>> print(CaptionedPicture(0, "a.jpg", 7, "a dog", -0.25, [("a dog", -0.25)]).line(), end="")
        {"path": "a.jpg", "image_id": 7, "caption": "a dog", "log_probability": -0.25, "alternatives": [{"caption": "a dog", "log_probability": -0.25}]}
        >>> print(CaptionedPicture(1, "b.jpg", error="empty file").line(), end="")
        {"path": "b.jpg", "error": "empty file"}
        """  # noqa: E501
        content: dict[str, object] = {"path": self.path}
        known = {name: getattr(self, name) for name in ("image_id", "key", "shard", "width", "height")}
        content |= {name: value for name, value in known.items() if value is not None}
        if self.caption is None:
            content["error"] = self.error
        else:
            content |= _scored(self.caption, self.log_probability)
        if self.alternatives:
            content["alternatives"] = [_scored(*one) for one in self.alternatives]
        return to_json(content) + "\n"

    @classmethod
    def of_line(cls, place: int, line: bytes) -> Self | None:
        """The picture of a line; None where `line` would not have written exactly this, such as of half a line."""
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                return None
            given = content.pop("alternatives", ())
            content["alternatives"] = [(one["caption"], _number(one["log_probability"])) for one in given]
            content["log_probability"] = _number(content.get("log_probability"))
            record = cls(place, **content)
            return record if record.line().encode() == line else None
        except (ValueError, TypeError, KeyError):
            return None


class May(NamedTuple):
    """What a prediction may do with files that are there already.

    Attributes:
        overwrite: replace them.
        resume: go on from what a stopped run left. A file that is complete may be its own: it stays if it holds the
            same, and is refused if it holds something else.
    """

    overwrite: bool = False
    resume: bool = False


NOTHING = May()


def _scored(caption: str, log_probability: float) -> dict[str, object]:
    return {"caption": caption, "log_probability": rounded(log_probability)}


def rounded(log_probability: float) -> float | None:
    """The figure as files have it; None where it is infinite or unknown."""
    return round(log_probability, 6) if math.isfinite(log_probability) else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def to_json(value: object, indent: int | None = None) -> str:
    """JSON with readable letters of every script, on one line unless `indent`; paths as text.

    >>> print(to_json({"path": "été\\n\\udcff.jpg"}))
    {"path": "été\\n\\udcff.jpg"}
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False, default=str)
    return TO_ESCAPE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def beside(output: Path, what: str) -> Path:
    """A file that belongs to an output, named so that outputs of two suffixes share none.

    >>> [beside(Path(name), "settings.json").name for name in ("captions.jsonl", "captions.csv", "captions")]
    ['captions.settings.json', 'captions.csv.settings.json', 'captions.lines.settings.json']
    """
    name = f"{output.name}{'' if output.suffix else '.lines'}"
    return output.with_name(f"{name.removesuffix('.jsonl')}.{what}")


def journal_path(output: Path) -> Path:
    """`captions.partial.jsonl` for `captions.jsonl`, `captions.csv.partial.jsonl` for `captions.csv`."""
    return beside(output, "partial.jsonl")


def settings_path(output: Path) -> Path:
    """Where it is written how the captions were made: `captions.settings.json`, `captions.csv.settings.json`."""
    return beside(output, "settings.json")


def journal_settings_path(output: Path) -> Path:
    """Where that lies until the output is complete: `captions.jsonl.settings.partial.json`."""
    return output.with_name(f"{output.name}.settings.partial.json")


def lock_path(output: Path) -> Path:
    """What the process that owns the journal has locked."""
    path = journal_path(output)
    return path.with_name(f"{path.name}.lock")


def has_lines(output: Path) -> bool:
    """Whether a run left lines of an output that it did not complete."""
    path = journal_path(output)
    return path.is_file() and path.stat().st_size > 0


def lines_of(path: Path) -> Iterator[tuple[CaptionedPicture, int]]:
    """The pictures of a journal, or of a complete JSONL output, and where in the file each line ends, in bytes.

    Ends before the first line that is not whole: a killed process or a power cut may have torn it.
    """
    end = 0
    with path.open("rb") as file:
        for place, line in enumerate(file):
            record = CaptionedPicture.of_line(place, line)
            if record is None:
                return
            end += len(line)
            yield record, end


class Journal:
    """The lines of an output so far, and how they were made; one process owns it, between `with` and its end.

    Lines are appended and never written again; each is in the file when `add` returns, and so survives the process.
    If the block ends by an exception, what existed under the output's name stays, and a log message says where the
    lines so far are.

    Args:
        given: the key `output`, for sentences.
        output: the file that is made of it.
        settings: plain containers: what the captions depend on.
        may: begin anew where there are lines, or go on from them, if they depend on the same.

    Attributes:
        done: of so many pictures, the first ones, a resumed run has lines.
        captioned, failed, left_out: pictures with a caption, those without one, and those that were not wanted.
        has_alternatives: whether any has an n-best list.

    Raises:
        UserError: at the block's start, if another process owns it, or has left lines that are not to be resumed; and
            wherever the disk objects.
    """

    def __init__(self, given: str | Path, output: Path, settings: Mapping[str, object], may: May = NOTHING):
        self.given, self.output, self.may = given, output, may
        self.path = journal_path(output)
        self._settings = json.loads(to_json(settings))
        self.done = self.captioned = self.failed = self.left_out = 0
        self.has_alternatives = False
        self._reasons: list[str] = []

    def __enter__(self) -> Self:
        self._lock = _locked(self.given, self.output)
        try:
            with disk_errors("output", self.given):
                self._open()
        except BaseException:
            if self.path.is_file() and not has_lines(self.output):  # the disk had no room for more
                self.path.unlink()
            unlocked(self._lock)
            raise
        return self

    def _open(self) -> None:
        settings_path = journal_settings_path(self.output)
        remove_unfinished([settings_path])
        if self.may.resume and has_lines(self.output):
            self._refuse_other_settings(settings_path)
            end = 0
            for record, end in lines_of(self.path):  # noqa: B007  # `end` is used behind the loop
                self._count(record)
            os.truncate(self.path, end)  # a torn line
            self.done = self.lines
        else:
            check_journal(self.given, self.output, self.may)
            self.path.write_bytes(b"")
            self._write_settings({})
        self._file = self.path.open("ab", buffering=0)

    def _write_settings(self, counts: Mapping[str, int]) -> None:
        write_atomically(journal_settings_path(self.output), to_json(self._settings | counts, indent=2) + "\n")

    def _refuse_other_settings(self, settings: Path) -> None:
        anew = "overwrite=true without resume begins anew"
        if not settings.is_file():
            raise UserError(f"{self.path} lacks {settings.name}, how its captions were made; {anew}")
        if differing := other_settings(settings, self._settings):
            raise UserError(f"the captions in {self.path} were made otherwise: {differing}; say the same, or {anew}")

    def __iter__(self) -> Iterator[CaptionedPicture]:
        return (record for record, _ in lines_of(self.path))

    def add(self, record: CaptionedPicture) -> None:
        """Append the next picture, all of its line or, where the disk is full, nothing; pass over what is done."""
        if record.place < self.done:
            return
        assert record.place == self.lines, f"picture {record.place} is not the next"
        size, rest = os.fstat(self._file.fileno()).st_size, record.line().encode()
        with disk_errors("output", self.given):
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                os.truncate(self.path, size)
                raise
        self._count(record)

    @property
    def lines(self) -> int:
        """How many there are."""
        return self.captioned + self.failed + self.left_out

    def _count(self, record: CaptionedPicture) -> None:
        unwanted = record.error is not None and record.error.startswith(LEFT_OUT)
        failed = record.caption is None and not unwanted
        self.captioned += record.caption is not None
        self.failed += failed
        self.left_out += unwanted
        self.has_alternatives |= bool(record.alternatives)
        if failed and len(self._reasons) <= SHOWN:
            self._reasons.append(f"{record.path} ({record.error})")

    @property
    def reasons(self) -> str:
        """The first pictures without a caption, each with its reason."""
        return ", ".join(self._reasons[:SHOWN]) + ", ..." * (len(self._reasons) > SHOWN)

    def complete(self, becomes_output: bool) -> None:
        """End what is complete: the journal becomes the output, or goes since the output was made of it.

        The settings get the counts first and their name last; `finish_completing` does that for a process that died
        in between.
        """
        with disk_errors("output", self.given):
            os.fsync(self._file.fileno())
            self._write_settings({key: getattr(self, key) for key in COUNTS})
            if becomes_output:
                self.path.replace(self.output)
            else:
                self.path.unlink()
            journal_settings_path(self.output).replace(settings_path(self.output))

    def closed(self) -> None:
        """Leave the lines as they are, for another process to go on from."""
        self._file.close()
        unlocked(self._lock)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        lines = self.lines
        if kind is not None and not lines:
            for path in (journal_settings_path(self.output), self.path):
                path.unlink(missing_ok=True)
            log.warning("stopped before the first caption; nothing was written to %s", self.output)
        elif kind is not None:
            found = (lines, self.path, self.output)
            log.warning("stopped: the %d lines so far are in %s, %s was not touched; resume=true goes on", *found)
        unlocked(self._lock)


def check_journal(given: str | Path, output: Path, may: May) -> None:
    """Raise UserError if a stopped run left lines, and neither is to be done with them."""
    path = journal_path(output)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"output={given}: {path} is no file, and the captions so far would lie there; move it")
    if has_lines(output) and not (may.resume or may.overwrite):
        raise UserError(
            f"{path} holds the captions of a run that was stopped; go on from them with resume=true, or begin anew "
            "with overwrite=true"
        )


def refuse_while_written(given: str | Path, output: Path) -> None:
    """Raise UserError if another process is writing this output now."""
    if lock_path(output).exists():
        unlocked(_locked(given, output))


def finish_completing(given: str | Path, output: Path) -> None:
    """Where a process has put the output in place, and ended before it did so with the settings."""
    journal, settings = journal_path(output), journal_settings_path(output)
    if settings.is_file() and output.is_file() and not journal.exists():
        lock = _locked(given, output)
        settings.replace(settings_path(output))
        unlocked(lock)


def other_settings(saved: Path, now: Mapping[str, object]) -> str:
    """The settings in which the file differs from `now`, in words; empty if in none."""
    try:
        before = json.loads(saved.read_text(encoding="utf-8"))
    except ValueError:
        return f"{saved} is damaged"
    if not isinstance(before, dict):
        return f"{saved} is damaged"
    before = {key: value for key, value in before.items() if key not in COUNTS}
    return "; ".join(islice(_differing(before, json.loads(to_json(now))), 2))


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


def _locked(given: str | Path, output: Path) -> FileLock:
    """The lock of an output."""
    if (lock := locked(lock_path(output))) is None:
        raise UserError(
            f"output={given}: another predict.py is writing {journal_path(output)}; wait until it ends, or name "
            "another output"
        )
    return lock


def disk_errors(key: str, given: str | Path) -> AbstractContextManager[None]:
    """What the disk objects to in the file that `key` names, in a sentence."""
    return writing(f"{key}={given}", f"make room or choose another place with {key}=...")
