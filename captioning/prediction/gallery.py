"""Pictures beside their captions, in one HTML file that needs nothing else."""

import base64
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self

from captioning.errors import UserError
from captioning.files import atomic_file, is_same_file, remove_unfinished
from captioning.prediction.cards import LOG_PROBABILITY, GalleryEntry, card, score_values
from captioning.prediction.outputs import check_file, real_file

EXAMPLE = "captions.html"


def check_gallery(path: str | Path, overwrite: bool) -> None:
    """Raise UserError unless the page can be written at `path`; a missing parent folder is made."""
    check_file("gallery", path, overwrite, EXAMPLE)


class GalleryWriter:
    """Writes the page: pictures with captions, sorted and searched in the browser.

    Pictures may be added in any order, and their scores later, also all at the end, since some are known only when
    every caption is: in the page they stand by their places. Memory stays small: cards wait in a nameless temporary
    file. The page appears under its name at the end of the `with` block; if that ends by an exception, what was there
    before stays.

    Nothing in the page comes from elsewhere, and its Content-Security-Policy forbids it: pictures are `data:` URIs,
    and of scripts and styles only the template's own run. It can be read with JavaScript off.

    Args:
        path: the file to write.
        title: of the page.
        overwrite: replace a file that exists.
        resume: a file that exists may be of the run that is gone on with: it stays if it holds the same.

    Raises:
        UserError: for everything that `check_gallery` refuses, and for a disk that fills up.
    """

    def __init__(self, path: str | Path, title: str, *, overwrite: bool = False, resume: bool = False):
        self.path = Path(path)
        self._title, self._overwrite, self._resume = title, overwrite, resume
        self._spans: dict[int, tuple[int, int, int]] = {}  # of a card: its start, where scores belong, its end
        self._scores: dict[int, str] = {}
        self._score_names: dict[str, None] = {}  # an ordered set
        self._end = 0

    def __enter__(self) -> Self:
        check_gallery(self.path, self._overwrite or self._resume)
        self._target = real_file(self.path)
        if self._resume:
            remove_unfinished([self._target])
        self._cards = tempfile.TemporaryFile(dir=self._target.parent)  # closed in __exit__
        return self

    def add(self, place: int, entry: GalleryEntry) -> None:
        """The picture that is number `place`, counted from 0, of the input."""
        assert place not in self._spans, f"picture {place} was added twice"
        before, after = (part.encode() for part in card(place, entry))
        try:
            self._cards.write(before + after)
        except OSError as error:
            raise self._failure(error) from error
        middle, end = self._end + len(before), self._end + len(before) + len(after)
        self._spans[place], self._end = (self._end, middle, end), end
        if entry.scores:
            self.add_scores(place, entry.scores)

    def add_scores(self, place: int, scores: Mapping[str, float]) -> None:
        """The scores of a picture, by name, before or after the picture itself; names are those of all pictures."""
        self._scores[place] = score_values(scores)
        self._score_names |= dict.fromkeys(scores)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._cards:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        check_gallery(self.path, self._overwrite or self._resume)  # something may have got the name in the meantime
        before, after = page(self._title, list(self._score_names), len(self._spans))
        try:
            with atomic_file(self._target) as file:
                file.write(before.encode())
                for part in self._parts():
                    file.write(part)
                file.write(after.encode())
                file.flush()
                if self._target.exists() and not (self._overwrite or is_same_file(self._target, Path(file.name))):
                    raise UserError(
                        f"gallery={self.path}: {self._target} exists already and holds something else; replace it with "
                        "overwrite=true, or name another"
                    )
        except OSError as error:
            raise self._failure(error) from error

    def _parts(self) -> Iterator[bytes]:
        for place, (start, middle, end) in sorted(self._spans.items()):
            self._cards.seek(start)
            yield self._cards.read(middle - start)
            yield self._scores.get(place, "").encode()
            yield self._cards.read(end - middle)

    def _failure(self, error: OSError) -> UserError:
        reason = f"gallery={self.path} can't be written: {error.strerror}"
        return UserError(f"{reason}; make room or choose another place with gallery=...")


def page(title: str, score_names: list[str], count: int) -> tuple[str, str]:
    """The page before its cards and after them, from `gallery.html`."""
    template = resources.files("captioning.prediction").joinpath("gallery.html").read_text(encoding="utf-8")
    options = "".join(f"<option>{escape(name)}</option>" for name in score_names)
    filled = {
        "%POLICY%": escape(_policy(template)),
        "%TITLE%": escape(title).encode("utf-8", "replace").decode(),
        "%COUNT%": f"{count:,} picture{'s' * (count != 1)}",
        "%LOG_PROBABILITY%": LOG_PROBABILITY,
        "%SCORES%": options,
    }
    parts = template.split("%CARDS%")
    marker = re.compile("|".join(filled))
    before, after = (marker.sub(lambda match: filled[match.group()], part) for part in parts)
    return before, after


def _policy(template: str) -> str:
    """A Content-Security-Policy under which only the template's own style and script run, known by their hashes."""
    rules = ["default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    for element, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", template, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        rules.append(f"{rule} 'sha256-{digest}'")
    return "; ".join(rules)
