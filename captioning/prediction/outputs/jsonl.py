"""JSONL: one JSON object a line. The journal has the same lines, and so becomes such an output as it is."""

import json
from typing import IO

from captioning.prediction.journal import LEFT_OUT, CaptionedPicture
from captioning.prediction.outputs.files import Format


class JsonLines(Format):
    """A line a picture, see `CaptionedPicture.line`."""

    is_journal = True
    holds_alternatives = True

    def add(self, record: CaptionedPicture) -> None:
        """The line."""
        self.file.write(record.line().encode())

    @classmethod
    def counts(cls, file: IO[bytes]) -> tuple[int, int]:
        """Lines with a caption, and without."""
        captioned = failed = 0
        for line in file:
            row = json.loads(line)
            captioned += "caption" in row
            failed += "caption" not in row and not row["error"].startswith(LEFT_OUT)
        return captioned, failed
