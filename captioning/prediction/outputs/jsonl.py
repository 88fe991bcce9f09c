"""JSONL: one JSON object a line. The journal has the same lines, and so becomes such an output as it is."""

from pathlib import Path

from captioning.prediction.journal import CaptionedPicture, lines_of
from captioning.prediction.outputs.files import Format


class JsonLines(Format):
    """A line a picture, see `CaptionedPicture.line`."""

    holds_alternatives = True

    @classmethod
    def captions_in(cls, path: Path) -> int:
        """How many captions a complete file has."""
        return sum(record.caption is not None for record, _ in lines_of(path))

    def add(self, record: CaptionedPicture) -> None:
        """The line."""
        self.file.write(record.line().encode())
