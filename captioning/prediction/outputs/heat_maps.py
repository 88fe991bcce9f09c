"""Which pictures get heat maps, and the folder that their strips lie in."""

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from captioning.errors import UserError, writing
from captioning.files import HEAT_MAPS, atomic_file, is_same_file
from captioning.prediction.journal import NOTHING, CaptionedPicture, May, beside
from captioning.prediction.outputs.files import Sink


def chosen_pictures(wanted: int | str | Sequence[int | str], paths: Sequence[Path]) -> list[int]:
    """The places in `paths` of the pictures that the key `heat_maps` names: so many of the first, or names.

    A name is a path as the input has it, or its end: `1.jpg` is every `1.jpg`, `trip/1.jpg` the one in `trip`.

    Raises:
        UserError: if a name is not in the input.
    """
    if isinstance(wanted, int):
        return list(range(min(wanted, len(paths))))
    names = [wanted] if isinstance(wanted, str) else [str(one) for one in wanted]
    return sorted({place for name in names for place in _places_of(name, paths)})


def _places_of(name: str, paths: Sequence[Path]) -> list[int]:
    parts = Path(name).parts
    places = [place for place, path in enumerate(paths) if parts and path.parts[-len(parts) :] == parts]
    if not places:
        raise UserError(f"heat_maps names {name or 'nothing'}, which is not in the input; name a picture that is")
    return places


class HeatMaps(Sink):
    """A folder of PNG files, a strip for each picture that has one: it appears under its name whole, or not at all.

    Where a folder that is there may be overwritten, its files of these names are replaced, and no others are touched.

    Args:
        output: what is captioned into: the folder lies beside it.
        paths: of the pictures, by their places.
        chosen: places of the pictures that will have a strip.
        may: what is done with a folder that exists.

    Raises:
        UserError: at once or at the end, if something has the name already, unless it is a folder and may be; or if
            the disk is full.
    """

    def __init__(self, output: Path, paths: Sequence[Path], chosen: Sequence[int], may: May = NOTHING):
        self.path, self._may = beside(output, HEAT_MAPS), may
        self._names = _file_names(paths, chosen)
        self._aside = output.with_name(f".{self.path.name}.tmp")  # of the one run that holds the output's lock
        self._check()

    def _check(self) -> None:
        if self.path.is_dir() and not any(self._may):
            raise self._exists()
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise UserError(f"heat_maps: {self.path} is a file, and a folder is to lie there; move it")

    def __enter__(self) -> Self:
        shutil.rmtree(self._aside, ignore_errors=True)  # of a run that was killed
        self._aside.mkdir(parents=True)
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, record: CaptionedPicture) -> None:
        """The next picture."""
        if record.heat_map is None:
            return
        with self._writing(), atomic_file(self._aside / self._names[record.place]) as file:
            record.heat_map.save(file, "PNG")

    def finish(self) -> None:
        """Give the folder its name."""
        self._check()  # something may have got the name in the meantime
        with self._writing():
            if not self.path.exists():
                self._aside.rename(self.path)
                return
            made = list(self._aside.iterdir())
            if not self._may.overwrite and not all(is_same_file(file, self.path / file.name) for file in made):
                raise self._exists()
            for file in made:
                file.replace(self.path / file.name)

    def _exists(self) -> UserError:
        what = " and holds something else" if self._may.resume else ""
        return UserError(f"heat_maps: {self.path} exists already{what}; replace it with overwrite=true, or move it")

    def _writing(self) -> AbstractContextManager[None]:
        return writing(f"heat_maps: {self.path}", "make room, or leave them out")


def _file_names(paths: Sequence[Path], chosen: Sequence[int]) -> dict[int, str]:
    """A PNG file's name for each: the picture's own, numbered where an earlier one has it."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for place in chosen:
        stem, number = paths[place].stem, 1
        while (name := f"{stem}.png" if number == 1 else f"{stem}-{number}.png").casefold() in taken:
            number += 1
        taken.add(name.casefold())
        names[place] = name
    return names
