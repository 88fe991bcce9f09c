"""Where the picture files lie: known folders under root, each listed once."""

import os
from collections.abc import Sequence
from pathlib import Path

from captioning.errors import UserError


def names_in(folder: Path) -> frozenset[str]:
    """The names in a folder, none where there is no such folder; one listing instead of a question for each file."""
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208  # names alone, for 118,000 files
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from error


class PictureFolders:
    """The folders under root in which pictures may lie, the likeliest first; "" is root itself."""

    def __init__(self, root: Path, folders: Sequence[str]):
        self._folders = [str(root / folder) for folder in folders]
        self._listings: dict[str, frozenset[str]] = {}
        there = (root / folder for folder in folders if folder and (root / folder).is_dir())
        self._expected = next(there, root / folders[0])

    def find(self, name: str) -> Path | None:
        """The file of this relative name, where it is there."""
        head, slash, tail = name.rpartition("/")
        for folder in self._folders:
            if tail in self._names(folder + slash + head):
                return Path(folder, name)
        return None

    def expected(self, name: str) -> Path:
        """The same, or the path at which it should lie."""
        return self.find(name) or self._expected / name

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            self._listings[folder] = names_in(Path(folder))
        return self._listings[folder]
