"""COCO results: what COCO's evaluation server takes."""

import re
from pathlib import Path
from typing import IO

from captioning.errors import UserError
from captioning.prediction.inputs import InputPictures
from captioning.prediction.journal import CaptionedPicture, to_json
from captioning.prediction.outputs.files import Format

# COCO's own names: 000000000139.jpg of 2017, COCO_val2014_000000000042.jpg of 2014.
COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?([0-9]{12})")


class CocoResults(Format):
    """`[{"image_id": ..., "caption": ...}, ...]`, a picture a line; one without a caption is left out.

    `image_id` is the picture's own, or else the number in a file name of COCO's (`000000000139.jpg` is 139), or else
    the file's name without its suffix.
    """

    about_failures = "the results leave them out, and the evaluation server wants all: {reasons}"

    def __init__(self, file: IO[bytes], pictures: InputPictures | None = None):
        super().__init__(file)
        self._opening = "["

    @classmethod
    def check(cls, output: str | Path, pictures: InputPictures) -> None:
        """Raise UserError if two pictures have one `image_id`."""
        known: dict[int | str, Path] = {}
        for place, path in enumerate(pictures.paths):
            image_id = pictures.image_ids[place] if pictures.image_ids else coco_image_id(path)
            if known.setdefault(image_id, path) is not path:
                raise UserError(
                    f"output={output}: {known[image_id]} and {path} would both be image_id {image_id} of COCO "
                    "results, which know no folders; caption them apart, or name a .jsonl or a .csv file"
                )

    def add(self, record: CaptionedPicture) -> None:
        """The object, with what separates it from the one before."""
        if record.caption is None:
            return
        image_id = coco_image_id(record.path) if record.image_id is None else record.image_id
        self._write(f"{self._opening}\n{to_json({'image_id': image_id, 'caption': record.caption})}")
        self._opening = ","

    def finish(self) -> None:
        """The bracket."""
        self._write("[\n]\n" if self._opening == "[" else "\n]\n")

    def _write(self, text: str) -> None:
        self.file.write(text.encode())


def coco_image_id(path: str | Path) -> int | str:
    """The number in a file name of COCO's, or any other file's name without its suffix.

    >>> [coco_image_id(name) for name in ("COCO_val2014_000000000042.jpg", "val/000000000139.jpg", "7.jpg")]
    [42, 139, '7']
    """
    stem = Path(path).stem
    found = COCO_NAME.fullmatch(stem)
    return int(found[1]) if found else stem
