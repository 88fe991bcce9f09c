"""Captions -> a file that is either complete and in order, or not there."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from captioning.prediction.formats import Row, format_of, to_json
from captioning.prediction.outputs import EXAMPLE, check_file, check_output, real_file, told
from captioning.prediction.partial import PartialFile, settings_path
from captioning.prediction.read_back import RowBack

logger = logging.getLogger(__name__)


class CaptionWriter:
    """Writes a row for each picture, in the order of the pictures, and the settings once into a file beside it.

    The suffix of `output` chooses the format: `formats.JsonLines`, `formats.Csv` or `formats.CocoResults`. Rows may
    be given out of order: each waits for those before it. They are written into a `PartialFile`, which gets the
    output's name at the end of the `with` block. If that ends by an exception, what existed under the name stays, and
    a log message says where the rows so far are. Raises UserError for everything that `check_output` refuses, for a
    disk that fills up, and in COCO results for a second picture with the same `image_id`.

    Args:
        output: the file to write.
        settings: plain containers: how the captions were made, and all else that they depend on.
        overwrite: replace files that exist.
        resume: go on from the rows of a run that was stopped, if there are some and they depend on the same. They are
            not written again, and what is given for their pictures is passed over.
        known: of a place in the input its picture's row, without a caption; wanted where COCO results are resumed.

    Attributes:
        captioned, failed: pictures with a caption and without one.
        done: of so many pictures, the first ones, a resumed run has rows.
    """

    def __init__(
        self,
        output: str | Path,
        settings: Mapping[str, object],
        *,
        overwrite: bool = False,
        resume: bool = False,
        known: Callable[[int], Row] = lambda place: Row(""),
    ):
        self._given, self._overwrite, self._resume = output, overwrite, resume
        self._settings = to_json(settings, indent=2) + "\n"
        self._format = format_of(output)
        self._known = known
        self._waiting: dict[int, Row] = {}
        self._next = 0
        self._written = 0  # rows in the file, which may leave some out
        self._ended = False
        self.captioned = 0
        self.failed = 0
        self.done = 0

    def __enter__(self) -> Self:
        check_output(self._given, self._overwrite, self._resume)
        self._output = real_file(self._given)
        options = {"resume": self._resume, "overwrite": self._overwrite}
        self._partial = PartialFile(self._given, self._output, self._settings, **options)
        end = 0
        with told(self._given):
            self._partial.open()
            for place, row, end in self.so_far():  # noqa: B007  # `end` is wanted behind the loop
                self._take_over(place, row)
            self._partial.cut(end)
        self.done = self._next
        return self

    def so_far(self) -> Iterator[RowBack]:
        """What a resumed run begins with; of others nothing."""
        return self._partial.rows(self._known)

    def _take_over(self, place: int, row: Row) -> None:
        for left_out in range(self._next, place):
            self._format.row(replace(self._known(left_out), error="as before"))
            self.failed += 1
        self._next = place + 1
        self._format.row(row)
        self._written += 1
        self.captioned += row.caption is not None
        self.failed += row.caption is None

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
        if index >= self.done:
            self.captioned += 1
            self._write(index, Row(str(path), caption, log_probability, alternatives, image_id=image_id))

    def write_error(self, index: int, path: str | Path, reason: str, *, image_id: int | str | None = None) -> None:
        """Why picture `index` has no caption."""
        if index >= self.done:
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
        with told(self._given):
            self._partial.append(text)
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
        check_file(
            "output", self._given, self._overwrite, EXAMPLE, beside=settings_path
        )  # it may have appeared meanwhile
        with told(self._given):
            self._end()
            self._partial.complete()
        if self.failed:
            where = self._format.failures
            logger.warning("%d of %d pictures could not be read; %s", self.failed, self._next, where)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._partial.append(self._format.end())

    def _keep_partial(self) -> None:
        if self._written == 0:
            self._partial.delete()
            logger.warning("stopped before the first caption; nothing was written to %s", self._output)
            return
        with suppress(OSError):  # a full disk, again: the row that did not fit is lost
            self._end()  # a list of JSON cut short is still one
        self._partial.close()
        found = (self._written, self._partial.path, self._output)
        logger.warning("stopped: the %d rows so far are in %s, %s was not touched; resume=true goes on", *found)
