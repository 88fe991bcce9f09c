"""The one shape in which every annotation format arrives."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph, its captions and the split that its annotation files put it in.

    `image_id` is unique in a data set: COCO's number, or a Flickr file name. `split` is `train`, `restval`, `val`,
    `test`, or the empty string where the files say nothing.
    """

    image_id: int | str
    path: Path
    captions: tuple[str, ...]
    split: str = ""
