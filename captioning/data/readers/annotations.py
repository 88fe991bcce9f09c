"""What every reader of annotation files needs.

Text and JSON, with errors that say in which line, or under which key, something is wrong; the folders where pictures
lie, each listed once; and `Gathering`, which makes one record a photograph, refuses contradictions and counts oddities.
"""

import codecs
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioning.data.records import Photograph
from captioning.errors import UserError

log = logging.getLogger(__name__)


def read_text(path: Path, encoding: str | None = None) -> str:
    """The whole file without its byte order mark; raises UserError with file and line where it can't be read so.

    Args:
        path: of the file.
        encoding: what `data.encoding` says, where there is this key; of UTF-8, a byte order mark of UTF-16 is believed
            rather. None is UTF-8, and that alone.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    name = encoding or "utf-8"
    if is_utf8 := codecs.lookup(name).name == "utf-8":
        is_utf16 = encoding and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        name = "utf-16" if is_utf16 else "utf-8-sig"
    try:
        return data.decode(name)
    except UnicodeError as error:
        line = data.count(b"\n", 0, getattr(error, "start", len(data))) + 1
        way_out = "save the file in UTF-8 or fetch it again"
        if encoding:
            other = "cp1252" if is_utf8 else "utf-8"
            way_out = f"say what it is written in, such as data.encoding={other}, or save it in UTF-8"
        said = "UTF-8" if is_utf8 else encoding
        raise UserError(f"{path}:{line}: this is not {said} text; {way_out}") from error


def read_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """(line number, stripped line) of every line that is not blank."""
    # Only "\n" ends a line: captions may hold what str.splitlines() takes for an end too.
    for number, line in enumerate(read_text(path, encoding).split("\n"), start=1):
        if line := line.strip():
            yield number, line


@dataclass(slots=True)
class Node:
    """A value in a JSON file that knows where it stands; `where` is like `annotations[3]`, empty for the whole file.

    As text it is file, line and `where`; the line is looked up then, since only errors tell it.
    """

    file: Path
    where: str
    value: Any
    encoding: str | None = None

    def __str__(self) -> str:
        return self._place(self.where) if self.where else str(self.file)

    def objects(self, key: str) -> "Iterator[Node]":
        """The members, all of them objects, of the list under `key`, or with an empty key of the value itself."""
        members = self._get(key, list, "a list")
        for index, value in enumerate(members):
            member = Node(self.file, f"{self._name(key)}[{index}]", value, self.encoding)
            if not isinstance(value, dict):
                raise UserError(f"{member} is {_short(value)}, not an object")
            yield member

    def text(self, key: str) -> str:
        """The string under `key`."""
        return self._get(key, str, "a text")

    def whole(self, key: str) -> int:
        """The whole number under `key`."""
        return self._get(key, int, "a whole number")

    def text_or_whole(self, key: str) -> str | int:
        """The string or whole number under `key`."""
        return self._get(key, str | int, "a text or a whole number")

    def _get(self, key: str, kind: Any, words: str) -> Any:
        if key and not isinstance(self.value, dict):
            raise UserError(f"{self} is {_short(self.value)}, not an object with the key {key!r}")
        if key and key not in self.value:
            raise UserError(f"{self._place(self.where, self._name(key))} is missing; it should be {words}")
        value = self.value[key] if key else self.value
        if not isinstance(value, kind) or isinstance(value, bool):
            place = self._place(self._name(key)) if key else self
            raise UserError(f"{place} is {_short(value)}, not {words}")
        return value

    def _place(self, where: str, name: str = "") -> str:
        """File and line of the value at `where`, and its name, or that of a member which it lacks."""
        return f"{self.file}:{_line_of(read_text(self.file, self.encoding), where)}: {name or where}"

    def _name(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where and key else self.where or key


def read_json(path: Path, encoding: str | None = None) -> Node:
    """The whole of a JSON file; raises UserError with file and line where it is none."""
    text = read_text(path, encoding)
    try:
        return Node(path, "", json.loads(text), encoding)
    except json.JSONDecodeError as error:
        ends = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        cut = "; the file ends too early, fetch it again" if ends else "; fetch it again"
        raise UserError(f"{path}:{error.lineno}: this is not valid JSON ({error.msg}){cut}") from error
    except RecursionError as error:
        raise UserError(f"{path} nests too deeply for an annotation file") from error


def _line_of(text: str, where: str) -> int:
    """The line on which the value at `where` begins, in a text that is known to be JSON."""
    decoder, at = json.JSONDecoder(), 0
    for step in re.findall(r"[^.\[\]]+", where):
        at = _blanks(text, at)
        passed = 0  # members of this object or list
        is_list, at = text[at] == "[", _blanks(text, at + 1)
        while True:
            key = str(passed)
            if not is_list:
                key, at = decoder.raw_decode(text, at)
                at = _blanks(text, at, ":")
            if key == step:
                break
            at = _blanks(text, decoder.raw_decode(text, at)[1], ",")
            passed += 1
    return text.count("\n", 0, at) + 1


def _blanks(text: str, at: int, and_a: str = "") -> int:
    """Where the white space after `at` ends, and this character with the white space behind it."""
    while at < len(text) and (text[at] in " \t\r\n" or text[at] == and_a):
        at += 1
    return at


def _short(value: object) -> str:
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 40 else f"{written[:40]}…"


def names_in(folder: Path) -> frozenset[str]:
    """The names in a folder, none where there is no such folder; one listing instead of a question for each file."""
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208  # names alone, for 118,000 files
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from error


class PictureFolders:
    """The folders under root in which pictures may lie, the likeliest first; "" is root itself."""

    def __init__(self, root: Path, folders: Sequence[str]):
        self._folders = [str(root / folder) for folder in folders]
        self._listings: dict[str, frozenset[str]] = {}
        there = (root / folder for folder in folders if folder and (root / folder).is_dir())
        self._expected = next(there, root / folders[0])

    def find(self, name: str) -> Path | None:
        """The file of this relative name, where it is there."""
        head, slash, tail = name.rpartition("/")
        for folder in self._folders:
            if tail in self._names(folder + slash + head):
                return Path(folder, name)
        return None

    def expected(self, name: str) -> Path:
        """The same, or the path at which it should lie."""
        return self.find(name) or self._expected / name

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            self._listings[folder] = names_in(Path(folder))
        return self._listings[folder]


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
    name = name.removeprefix(f"{root}/")  # an absolute path, of the folder that it is in
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or OUTWARDS.search(name):
        raise UserError(f"{place} names the file {name!r}, which leads out of {root}; correct the name")
    return "/".join(parts)
