"""Tars of pictures with their captions beside them, as trainers that read WebDataset take them."""

import io
import tarfile
from pathlib import Path
from typing import IO

from captioning.data.images import UnreadablePicture, picture_suffixes
from captioning.errors import UserError
from captioning.prediction.inputs import InputPictures
from captioning.prediction.journal import LEFT_OUT, CaptionedPicture, rounded, to_json
from captioning.prediction.outputs.files import Format


class Tar(Format):
    """`KEY.jpg`, its bytes as they were, `KEY.txt`, the caption, and `KEY.json`: `path`, `log_probability`.

    A key is the picture's own in its shard, or else its file's name without suffix, with a number before it where
    several have one. A picture without a caption is left out. How many there were is in the tar's global header.
    """

    holds_pictures = True
    about_failures = "the tar leaves them out: {reasons}"

    def __init__(self, file: IO[bytes], pictures: InputPictures | None = None):
        super().__init__(file, pictures)
        self._records: list[CaptionedPicture] = []

    def add(self, record: CaptionedPicture) -> None:
        """Kept until the end."""
        self._records.append(record)

    def finish(self) -> None:
        """All of the tar."""
        assert self.pictures is not None
        captioned = [record for record in self._records if record.caption is not None]
        failed = sum(r.caption is None and not (r.error or "").startswith(LEFT_OUT) for r in self._records)
        counts = {"captioned": str(len(captioned)), "failed": str(failed)}
        taken: set[str] = set()
        with tarfile.open(fileobj=self.file, mode="w", format=tarfile.PAX_FORMAT, pax_headers=counts) as tar:
            for record in captioned:
                key = record.key or Path(record.path).stem.replace(".", "_")
                key = f"{record.place:08d}-{key}" if key in taken else key
                taken.add(key)
                try:
                    data = self.pictures.read(record.place)
                except UnreadablePicture as error:
                    raise UserError(
                        f"{record.path} could be read before, and now can't ({error}); resume=true goes on"
                    ) from error
                more = {"path": record.path, "log_probability": rounded(record.log_probability)}
                text = " ".join((record.caption or "").splitlines())
                parts = {suffix_of(record.path, data): data, ".txt": text.encode(), ".json": to_json(more).encode()}
                for suffix, content in parts.items():
                    member = tarfile.TarInfo(f"{key}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    @classmethod
    def counts(cls, file: IO[bytes]) -> tuple[int, int]:
        """As its header has them."""
        with tarfile.open(fileobj=file) as tar:
            tar.next()
            return int(tar.pax_headers["captioned"]), int(tar.pax_headers["failed"])


def suffix_of(name: str, data: bytes) -> str:
    """Of a picture's file; of a URL without one, as its content has it.

    >>> suffix_of("a/b.JPEG", b""), suffix_of("https://a.org/7?w=80", b"\\x89PNG")
    ('.jpeg', '.png')
    """
    suffix = Path(name).suffix.lower()
    return suffix if suffix in picture_suffixes() else ".png" if data.startswith(b"\x89PNG") else ".jpg"
