"""JSONL: one JSON object a line. The journal has the same lines, and so becomes such an output as it is."""

from captioning.prediction.journal import CaptionedPicture
from captioning.prediction.outputs.files import Format


class JsonLines(Format):
    """A line a picture, see `CaptionedPicture.line`."""

    is_journal = True
    holds_alternatives = True

    def add(self, record: CaptionedPicture) -> None:
        """The line."""
        self.file.write(record.line().encode())
