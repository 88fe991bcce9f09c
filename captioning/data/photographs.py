"""`data=coco|flickr30k|flickr8k`: photographs in files, with captions in annotation files."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioning.batch import PictureFormat
from captioning.data.datamodule import CaptionDataModule
from captioning.data.layouts import find_photographs
from captioning.data.picture_checks import without_unreadable
from captioning.data.pictures import UnreadablePicture, read_picture
from captioning.data.preparation import Outcome, prepare_pictures
from captioning.data.prepared import Places, find_prepared, packs_in
from captioning.data.records import Photograph
from captioning.data.rows import DamagedPicture, Split
from captioning.data.splits import check_division, refuse_empty, split_photographs
from captioning.errors import UserError
from captioning.files import readable

log = logging.getLogger(__name__)


class PhotographFiles:
    """Paths as one array of bytes, which loader workers share; called with i reads photograph i.

    Set-up has looked at both ends of each file; what is found only now raises DamagedPicture.
    """

    def __init__(self, paths: Sequence[Path], on_missing: str):
        self._paths = np.array([str(path) for path in paths])
        self._on_missing = on_missing

    def __call__(self, i: int) -> Image.Image:
        path = self.path(i)
        try:
            return read_picture(path)
        except UnreadablePicture as error:
            without = "delete it" if self._on_missing == "skip" else "go on without it by data.on_missing=skip"
            raise DamagedPicture(f"{path} cannot be read: {error}; replace it, or {without}") from error

    def identity(self, i: int) -> str:
        """The file's path, size in bytes and time of change."""
        path = os.path.abspath(self._paths[i])  # noqa: PTH100  # Path.resolve asks the disk about every folder
        status = os.stat(path)  # noqa: PTH116
        return f"{path} {status.st_size} {status.st_mtime_ns}"

    def path(self, i: int) -> str:
        """Of photograph i."""
        return str(self._paths[i])

    def __len__(self) -> int:
        return len(self._paths)


class PreparedFiles:
    """The same photographs, prepared where they are, and else from their own files."""

    def __init__(self, files: PhotographFiles, places: Places):
        self._files, self._places = files, places

    def __call__(self, i: int) -> Image.Image:
        return self._places.load(i) if self._places.pack_of[i] >= 0 else self._files(i)


class PhotographDataModule(CaptionDataModule):
    """Photographs under `root` with the captions of the annotation files there; see `layouts.py` and `splits.py`.

    Args:
        prepared: the folder of prepared pictures, which augmentation reads where they are there, current and large
            enough; `auto` is `prepared` under root, if it is there; None reads the files themselves. What is not
            augmented (validation, test, overfitting) always is: it must equal the encoder's processor to the bit.
    """

    def __init__(
        self,
        *,
        dataset: str,
        root: str,
        layout: str,
        fraction: float,
        use_restval: bool,
        on_missing: str,
        prepared: str | None,
        **common: Any,
    ):
        super().__init__(**common)
        check_division(fraction=fraction, use_restval=use_restval, on_missing=on_missing)  # before COCO is read
        if not isinstance(root, str) or not root:
            raise UserError(f"data.root={root} must be a folder; set data.root=PATH")
        self._dataset, self._root, self._layout = dataset, Path(root).expanduser(), layout
        self._fraction, self._use_restval, self._on_missing = fraction, use_restval, on_missing
        self._prepared = prepared
        self.prepared_folder = self._root / "prepared" if prepared in ("auto", None) else Path(prepared)

    def read(self) -> dict[str, Split]:
        """Read the annotation files and divide the photographs."""
        divided = self._divided().items()
        return {name: _split(photographs, self._on_missing) for name, photographs in divided if photographs}

    def prepare(self, size: int, num_workers: int) -> Outcome:
        """Store the training photographs with `size` pixels on the shorter side, where they are not so stored."""
        if self._prepared is None:
            raise UserError("data.prepared=null names no folder; leave it out, or set data.prepared=PATH")
        paths = [photograph.path for photograph in self._divided()["train"]]
        return prepare_pictures(self.prepared_folder, self._root, paths, size, num_workers)

    def setup(self, stage: str | None = None) -> None:
        """As before; a folder of prepared pictures that was named must hold some."""
        if self._prepared not in ("auto", None) and not packs_in(self.prepared_folder):
            raise UserError(
                f"data.prepared={self._prepared} holds no prepared pictures; make them with python prepare.py and the "
                "same data=... data.root=... data.prepared=..., or leave data.prepared out"
            )
        super().setup(stage)

    def fit_to(self, picture_format: PictureFormat, max_positions: int) -> None:
        """As before; it also settles from where training reads its pictures, for that depends on their size."""
        super().fit_to(picture_format, max_positions)
        if self._prepared is not None and self._overfit_images is None:
            files = self.splits["train"].load
            assert isinstance(files, PhotographFiles)
            if places := self._large_enough(files, picture_format.resize_shortest or max(picture_format.size)):
                prepared = PreparedFiles(files, places)
                self.splits["train"] = replace(self.splits["train"], load_augmented=prepared)
                return
        log.info("training pictures: read from their own files")

    def _large_enough(self, files: PhotographFiles, pixels: int) -> Places | None:
        """The prepared pictures, if there are any, of at least so many pixels on the shorter side."""
        folder = readable(self.prepared_folder)
        places = find_prepared(self.prepared_folder, self._root, [Path(files.path(i)) for i in range(len(files))])
        if places.size is None:
            if packs_in(self.prepared_folder):
                log.warning("of the pictures in %s none is current; python prepare.py makes them anew", folder)
            return None
        if places.size < pixels:
            problem = (
                f"the pictures in {folder} have {places.size} pixels on the shorter side, and the model wants "
                f"{pixels}; python prepare.py ... size={8 * ceil(pixels / 7)} makes larger ones"
            )
            if self._prepared != "auto":
                raise UserError(f"{problem}, data.prepared=null does without")
            log.warning("%s", problem)
            return None
        log.info("training pictures: %d prepared ones of %d pixels in %s", len(places), places.size, folder)
        if others := len(files) - len(places):
            log.warning("%d others are new or have changed since: their own files are read; run prepare.py", others)
        return places

    def _divided(self) -> dict[str, list[Photograph]]:
        divided = split_photographs(
            find_photographs(self._dataset, self._root, self._layout),
            seed=self.seed,
            fraction=self._fraction,
            use_restval=self._use_restval,
            on_missing=self._on_missing,
        )
        divided = without_unreadable(divided, self._on_missing)
        refuse_empty(divided)
        return divided


def _split(photographs: list[Photograph], on_missing: str) -> Split:
    files = PhotographFiles([photograph.path for photograph in photographs], on_missing)
    captions = [photograph.captions for photograph in photographs]
    return Split([p.image_id for p in photographs], captions, files, skips_damaged=on_missing == "skip")
