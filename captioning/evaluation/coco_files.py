"""COCO's results JSON and captions JSON -> candidates and references by picture."""

import json
from collections.abc import Iterator
from pathlib import Path

from captioning.errors import UserError

PictureId = int | str

_RESULTS = '[{"image_id": 42, "caption": "a dog"}, ...]'
_ANNOTATIONS = '{"annotations": [{"image_id": 42, "caption": "a dog"}, ...], ...}'


def read_results(path: Path) -> dict[PictureId, str]:
    """The candidates of a COCO results file, in its order; a caption may be empty.

    Raises:
        UserError: if it can't be read, is no list of `{"image_id": ..., "caption": ...}`, or names a picture twice.
    """
    rows = _read(path, _RESULTS)
    if not isinstance(rows, list):
        raise UserError(f"{path} holds {_kind(rows)}, not a list; a results file looks like {_RESULTS}")
    if not rows:
        raise UserError(f"{path} holds no captions; a results file looks like {_RESULTS}")
    candidates: dict[PictureId, str] = {}
    for place, picture, caption in _captions(path, "", rows, _RESULTS):
        if picture in candidates:
            raise UserError(f"{place}: picture {picture} has a candidate already; keep one caption for each picture")
        candidates[picture] = caption
    return candidates


def read_references(path: Path) -> dict[PictureId, list[str]]:
    """The references of a COCO captions file, by picture, in its order.

    Raises:
        UserError: if it can't be read, has no `annotations` of `{"image_id": ..., "caption": ...}`, or one is empty.
    """
    file = _read(path, _ANNOTATIONS)
    if not isinstance(file, dict) or not isinstance(file.get("annotations"), list):
        raise UserError(f"{path} holds no list of annotations; a captions file looks like {_ANNOTATIONS}")
    references: dict[PictureId, list[str]] = {}
    for place, picture, caption in _captions(path, "annotations", file["annotations"], _ANNOTATIONS):
        if not caption.strip():
            raise UserError(f"{place}: the reference of picture {picture} is empty; remove it, or write a caption")
        references.setdefault(picture, []).append(caption)
    if not references:
        raise UserError(f"{path} holds no captions; give the file with the references, like captions_val2017.json")
    return references


def _read(path: Path, example: str) -> object:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{path} can't be read: {reason}; give a file like {example}") from error
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f", line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path} is not JSON{where}; it should look like {example}") from error


def _captions(path: Path, name: str, rows: list, example: str) -> Iterator[tuple[str, PictureId, str]]:
    """Each row's place, as a person would look it up, its picture and its caption."""
    for number, row in enumerate(rows):
        place = f"{path}, {name}[{number}]"
        if not isinstance(row, dict):
            raise UserError(f"{place} is {_kind(row)}; the file should look like {example}")
        picture, caption = row.get("image_id"), row.get("caption")
        if isinstance(picture, bool) or not isinstance(picture, int | str):
            raise UserError(f"{place}: image_id is {json.dumps(picture)[:40]}; give a whole number or a string")
        if not isinstance(caption, str):
            raise UserError(f"{place}: the caption of picture {picture} is {json.dumps(caption)[:40]}; give a string")
        yield place, picture, caption


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
