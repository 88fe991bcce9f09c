"""`data=coco|flickr30k|flickr8k`: photographs in files, with captions in annotation files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioning.data.datamodule import CaptionDataModule
from captioning.data.layouts import find_photographs
from captioning.data.picture_checks import without_unreadable
from captioning.data.pictures import UnreadablePicture, read_picture
from captioning.data.records import Photograph
from captioning.data.rows import Split
from captioning.data.splits import check_division, refuse_empty, split_photographs
from captioning.errors import UserError


class PhotographFiles:
    """Paths as one array of bytes, which loader workers share; called with i reads photograph i."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = np.array([str(path) for path in paths])

    def __call__(self, i: int) -> Image.Image:
        path = str(self._paths[i])
        try:
            return read_picture(path)
        except UnreadablePicture as error:
            raise UserError(
                f"{path} cannot be read: {error}; replace it, or delete it and set data.on_missing=skip"
            ) from error

    def identity(self, i: int) -> str:
        """The file's path, size in bytes and time of change."""
        path = os.path.abspath(self._paths[i])  # noqa: PTH100  # Path.resolve asks the disk about every folder
        status = os.stat(path)  # noqa: PTH116
        return f"{path} {status.st_size} {status.st_mtime_ns}"


class PhotographDataModule(CaptionDataModule):
    """Photographs under `root` with the captions of the annotation files there; see `layouts.py` and `splits.py`."""

    def __init__(
        self,
        *,
        dataset: str,
        root: str,
        layout: str,
        fraction: float,
        use_restval: bool,
        on_missing: str,
        **common: Any,
    ):
        super().__init__(**common)
        check_division(fraction=fraction, use_restval=use_restval, on_missing=on_missing)  # before COCO is read
        if not isinstance(root, str) or not root:
            raise UserError(f"data.root={root} must be a folder; set data.root=PATH")
        self._dataset, self._root, self._layout = dataset, Path(root).expanduser(), layout
        self._fraction, self._use_restval, self._on_missing = fraction, use_restval, on_missing

    def read(self) -> dict[str, Split]:
        """Read the annotation files and divide the photographs."""
        divided = split_photographs(
            find_photographs(self._dataset, self._root, self._layout),
            seed=self.seed,
            fraction=self._fraction,
            use_restval=self._use_restval,
            on_missing=self._on_missing,
        )
        divided = without_unreadable(divided, self._on_missing)
        refuse_empty(divided)
        return {name: _split(photographs) for name, photographs in divided.items() if photographs}


def _split(photographs: list[Photograph]) -> Split:
    files = PhotographFiles([photograph.path for photograph in photographs])
    return Split([p.image_id for p in photographs], [p.captions for p in photographs], files)
