"""A file of captions that lies elsewhere, such as in a bucket: made on this machine, where its journal is, then put."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from captioning.data.remote import names_in, put, read_whole
from captioning.errors import UserError, writing
from captioning.prediction.journal import May, has_lines, settings_path
from captioning.prediction.outputs import counts_said


def made_in(cache: Path, output: str) -> Path:
    """The folder of this machine in which an output is made, also by the process that goes on with it."""
    return cache / "outputs" / hashlib.blake2b(output.encode(), digest_size=8).hexdigest()


class FileElsewhere:
    """One file of captions at a URL, with its settings beside it; there whole, or not at all.

    Args:
        url: of the file.
        cache: the folder of this machine that it is made in.
        may: what is done with a file that is there.

    Attributes:
        file: what is made here.
    """

    def __init__(self, url: str, cache: Path, may: May):
        self.url, self._may = url, may
        self._there, _, name = url.rpartition("/")
        self._folder = made_in(cache, url)
        self.file = self._folder / name
        self._is_there = False

    def check(self) -> None:
        """Raise UserError where it may not be written, before any time is spent on captions."""
        names = set(names_in(self._there))
        settings = settings_path(self.file)
        self._is_there = self.file.name in names
        if self._is_there and not any(self._may):
            raise UserError(f"output={self.url} exists already; replace it with overwrite=true, or name another")
        if self.file.is_file() and not any(self._may):
            raise UserError(
                f"output={self.url} was made in {self.file} and not put there; resume=true does that, and "
                "overwrite=true begins anew"
            )
        if not self._is_there or not self._may.resume or self.file.is_file() or has_lines(self.file):
            return
        if settings.name not in names and not self._may.overwrite:
            raise UserError(
                f"output={self.url} exists already, without {settings.name}, how it was made; replace it with "
                "overwrite=true, or name another"
            )
        if settings.name in names:
            with writing(self._folder, "make room, or name another cache"):
                self._folder.mkdir(parents=True, exist_ok=True)
                settings.write_bytes(read_whole(f"{self._there}/{settings.name}"))

    def counts_if_complete(self, now: Mapping[str, object]) -> tuple[int, int] | None:
        """Pictures with and without a caption where it is there, of these settings; UserError if of others."""
        settings = settings_path(self.file)
        is_known = self._is_there and self._may.resume and settings.is_file()
        is_under_way = self.file.is_file() or has_lines(self.file)
        return counts_said(self.url, settings, now) if is_known and not is_under_way else None

    def put(self) -> None:
        """The file that was made here, last of all; then what was needed for it goes."""
        if self.file.is_file():
            for made in (settings_path(self.file), self.file):
                put(made, f"{self._there}/{made.name}")
        shutil.rmtree(self._folder, ignore_errors=True)
