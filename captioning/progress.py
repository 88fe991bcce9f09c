"""How far a long piece of work is: a bar on a terminal, elsewhere (a log file, CI, SLURM) a line now and then."""

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tqdm import tqdm

log = logging.getLogger(__name__)

FIRST_SECONDS, EVERY_SECONDS = 4, 30  # of work before the first line, and between any two


def progress(
    total: int, desc: str, unit: str, *, initial: int = 0, leave: bool = True, delay: float = 0
) -> "tqdm | ProgressLines":
    """Counts in a `with` block how many are done, by `update`: a bar of tqdm's, or without a terminal `ProgressLines`.

    Args:
        total: how many there are.
        desc, unit: what is done to them, such as `captioning`, and what they are, such as `pictures`.
        initial: so many were done before.
        leave: whether the bar, or a last line, is there when the work is done.
        delay: seconds before a bar is shown.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, desc=desc, unit=f" {unit}", initial=initial, leave=leave, delay=delay)
    return ProgressLines(total, desc, unit, initial, leave, first=FIRST_SECONDS)


class ProgressLines:
    """Logs a line every `EVERY_SECONDS` of work, and one at its end if `leave`.

    Args:
        total, desc, unit, initial, leave: as `progress` takes them.
        least: so many are done between two lines, at least.
        first: seconds before the first line, where those are others.

    >>> ProgressLines(2000, "captioning", "pictures").line(500, seconds=10)
    'captioning: 500 of 2,000 pictures, 50.0 pictures/s, 0:00:30 left'
    """

    def __init__(
        self,
        total: int,
        desc: str,
        unit: str,
        initial: int = 0,
        leave: bool = True,
        least: float = 1,
        first: float | None = None,
    ):
        self.total, self._desc, self._unit, self._leave = total, desc, unit, leave
        self._least, self._first = least, first
        self._initial = self._done = self._said = initial
        self._start = self._last = time.monotonic()

    def update(self, n: int = 1, more: Callable[[], str] = str) -> None:
        """So many more are done; a line has what `more` says behind it."""
        self._done += n
        now = time.monotonic()
        wait = self._first if self._said == self._initial and self._first is not None else EVERY_SECONDS
        due = now - self._last >= wait and self._done - self._said >= self._least
        if due and self._done < self.total:
            self._last, self._said = now, self._done
            log.info("%s%s", self.line(self._done, now - self._start), more())

    def end(self, more: str = "") -> None:
        """The last line, whatever came before."""
        log.info("%s%s", self.line(self._done, time.monotonic() - self._start), more)

    def line(self, done: int, seconds: float) -> str:
        """What is logged when so many are done, after so many seconds."""
        rate = (done - self._initial) / max(seconds, 1e-9)
        words = f"{self._desc}: {done:,} of {self.total:,} {self._unit}, {rate:.1f} {self._unit}/s"
        if rate == 0 or done >= self.total:
            return words
        left = round((self.total - done) / rate)
        return f"{words}, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._leave and kind is None:
            self.end()
