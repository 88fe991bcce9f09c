"""Text and JSON files, with errors that say in which line, or under which key, something is wrong."""

import json
import re
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
    """A value in a JSON file that knows where it stands; `where` is like `annotations[3]`, empty for the whole file.

    As text it is file, line and `where`; the line is looked up then, since only errors tell it.
    """

    file: Path
    where: str
    value: Any

    def __str__(self) -> str:
        return _place(self.file, self.where) if self.where else str(self.file)

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
            raise UserError(f"{_place(self.file, self.where, self._name(key))} is missing; it should be {words}")
        value = self.value[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{_place(self.file, self._name(key))} is {_short(value)}, not {words}")
        return value

    def _name(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key


def read_json(path: Path) -> Node:
    """The whole of a JSON file; raises UserError with file and line where it is none."""
    text = read_text(path)
    try:
        return Node(path, "", json.loads(text))
    except json.JSONDecodeError as error:
        ends = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        cut = "; the file ends too early, fetch it again" if ends else "; fetch it again"
        raise UserError(f"{path}:{error.lineno}: this is not valid JSON ({error.msg}){cut}") from error
    except RecursionError as error:
        raise UserError(f"{path} nests too deeply for an annotation file") from error


def _place(file: Path, where: str, name: str = "") -> str:
    """File and line of the value at `where`, and its name, or that of a member which it lacks."""
    return f"{file}:{_line_of(file, where)}: {name or where}"


def _line_of(file: Path, where: str) -> int:
    """The line on which the value at `where` begins, in a file that is known to be JSON."""
    text, decoder, at = read_text(file), json.JSONDecoder(), 0
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
