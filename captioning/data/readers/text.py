"""Text and JSON files, with errors that say in which line, or under which key, something is wrong."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioning.errors import UserError


def read_text(path: Path) -> str:
    """The whole file as UTF-8, without a byte order mark; raises UserError with file and line where it is not."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: this is not UTF-8 text; save the file in UTF-8 or fetch it again") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, stripped line) of every line that is not blank."""
    # Only "\n" ends a line: captions may hold what str.splitlines() takes for an end too.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line := line.strip():
            yield number, line


@dataclass(slots=True)
class Node:
    """A value in a JSON file that knows where it stands; `where` is like `annotations[3]`, empty for the whole file."""

    file: Path
    where: str
    value: Any

    def __str__(self) -> str:
        return f"{self.file}: {self.where}" if self.where else str(self.file)

    def objects(self, key: str) -> "Iterator[Node]":
        """The members, all of them objects, of the list under `key`."""
        members = self._get(key, list, "a list")
        for index, value in enumerate(members):
            member = Node(self.file, f"{self._name(key)}[{index}]", value)
            if not isinstance(value, dict):
                raise UserError(f"{member} is {_short(value)}, not an object")
            yield member

    def text(self, key: str) -> str:
        """The string under `key`."""
        return self._get(key, str, "a text")

    def whole(self, key: str) -> int:
        """The whole number under `key`."""
        return self._get(key, int, "a whole number")

    def _get(self, key: str, kind: type, words: str) -> Any:
        if not isinstance(self.value, dict):
            raise UserError(f"{self} is {_short(self.value)}, not an object with the key {key!r}")
        if key not in self.value:
            raise UserError(f"{self.file}: {self._name(key)} is missing; it should be {words}")
        value = self.value[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{self.file}: {self._name(key)} is {_short(value)}, not {words}")
        return value

    def _name(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key


def read_json(path: Path) -> Node:
    """The whole of a JSON file; raises UserError with file and line where it is none."""
    text = read_text(path)
    try:
        return Node(path, "", json.loads(text))
    except json.JSONDecodeError as error:
        cut = "; the file ends too early, fetch it again" if error.pos >= len(text.rstrip()) else ""
        raise UserError(f"{path}:{error.lineno}: this is not valid JSON ({error.msg}){cut}") from error
    except RecursionError as error:
        raise UserError(f"{path} nests too deeply for an annotation file") from error


def _short(value: object) -> str:
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 40 else f"{written[:40]}…"
