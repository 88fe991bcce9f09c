"""What every reader does with what it reads: one record a photograph, contradictions refused, oddities counted."""

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from captioning.data.records import Photograph
from captioning.errors import UserError

log = logging.getLogger(__name__)

OUTWARDS = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.($|[/\\])|\0")  # absolute, of a Windows drive, with a `..`


@dataclass(slots=True)
class _Entry:
    path: Path
    split: str
    place: object  # its str() says where the annotation files name the photograph
    captions: list[str] = field(default_factory=list)
    keys: set[tuple] = field(default_factory=set)


class Gathering:
    """Photographs as the rows of annotation files give them, in the order of their first appearance."""

    def __init__(self, source: str):
        self._source = source
        self._entries: dict[int | str, _Entry] = {}
        self._counts: Counter[str] = Counter()

    def __contains__(self, image_id: int | str) -> bool:
        return image_id in self._entries

    def add(self, image_id: int | str, path: Path, split: str, place: object) -> None:
        """A photograph; the same again changes nothing, another file or split under the same id is a UserError."""
        known = self._entries.setdefault(image_id, _Entry(path, split, place))
        if known.split != split:
            raise UserError(
                f"image {image_id} is in {known.split} ({known.place}) and in {split} ({place}); "
                "remove it from one of them, or a model is judged by what it has seen"
            )
        if known.path != path:
            raise UserError(
                f"image {image_id} is {known.path} ({known.place}) and {path} ({place}); "
                "an image id stands for one file, so remove one entry or give it another id"
            )

    def caption(self, image_id: int | str, text: str, number: int | None = None) -> None:
        """A caption of a photograph that was added; `number` tells a repeated row from two people's same words."""
        entry, text = self._entries[image_id], tidied(text)
        if not text:
            self._counts["empty captions left out"] += 1
        elif number is not None and (number, text) in entry.keys:
            self._counts["repeated rows left out"] += 1
        else:
            entry.keys.add((number, text))
            entry.captions.append(text)

    def count(self, oddity: str, number: int = 1) -> None:
        """Something for the log that is no reason to stop."""
        self._counts[oddity] += number

    def photographs(self) -> list[Photograph]:
        """All that have a caption; what was left out goes into one line of the log."""
        photographs = [
            Photograph(image_id, entry.path, tuple(entry.captions), entry.split)
            for image_id, entry in self._entries.items()
            if entry.captions
        ]
        self._counts["photographs without a caption left out"] += len(self._entries) - len(photographs)
        if oddities := [f"{number} {oddity}" for oddity, number in self._counts.items() if number]:
            log.info("%s: %s", self._source, ", ".join(oddities))
        return photographs


def tidied(caption: str) -> str:
    """Single spaces, none at the ends; half a surrogate pair, which no tokenizer takes, becomes U+FFFD."""
    if not caption.isascii():
        caption = caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(caption.split())


def inside(name: str, root: Path, place: object) -> str:
    """The file name of an annotation, relative to a folder; raises UserError for one that leads out of `root`."""
    # Text alone, without pathlib: there are 123,000 names in COCO.
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or OUTWARDS.search(name):
        raise UserError(f"{place} names the file {name!r}, which leads out of {root}; correct the name")
    return "/".join(parts)
