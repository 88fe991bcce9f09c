"""What annotation files give, in whichever format they come: photographs, and splits of pictures with their captions.

Needs neither torch nor a picture library, so that annotation files are read, and found wrong, before these are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from captioning.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

ImageId = int | str  # COCO's number, or a file name


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph, its captions and the split that its annotation files put it in.

    `image_id` is unique in a data set. `split` is `train`, `restval`, `val`, `test`, or the empty string where the
    files say nothing.
    """

    image_id: ImageId
    path: Path
    captions: tuple[str, ...]
    split: str = ""


class Pictures(Protocol):
    """Numbered pictures; must be picklable, for workers."""

    def __call__(self, i: int) -> Image.Image:
        """Picture i, upright RGB; raises DamagedPicture where its file is found damaged only now."""

    def identity(self, i: int) -> str:
        """Changes whenever picture i does, and is no other picture's; found without decoding it."""


class DamagedPicture(UserError):
    """A picture of a data set turns out to be unreadable after set-up has taken it as sound."""


@dataclass(frozen=True)
class Split:
    """N pictures and their captions, as annotation files or the drawn data set give them."""

    image_ids: Sequence[ImageId]
    captions: Sequence[Sequence[str]]
    load: Pictures
    skips_damaged: bool = False  # whether rows go on without a picture that raises DamagedPicture

    def __len__(self) -> int:
        return len(self.image_ids)

    def first(self, pictures: int, captions: int) -> Split:
        """The same data set cut to its first pictures and the first captions of each."""
        fewer = [of_picture[:captions] for of_picture in self.captions[:pictures]]
        return replace(self, image_ids=self.image_ids[:pictures], captions=fewer)
