"""What `predict.py` wrote, read again: captions to be scored, which picture of an annotation file each is of, and
which pictures of an input have captions.
"""

import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from captioning.data.readers.coco import read_file_names, read_results
from captioning.data.readers.tables import Row, columns_of, read_table
from captioning.data.records import ImageId
from captioning.errors import UserError
from captioning.prediction.outputs.coco import coco_image_id
from captioning.prediction.outputs.csv import without_apostrophes
from captioning.prediction.outputs.parquet import as_utf8

Key = ImageId | PurePosixPath  # what a row names its picture by


def read_candidates(path: Path) -> dict[Key, str]:
    """The captions of a file, by the `image_id` of their rows or, where there is none, by `path`.

    JSONL and CSV by their suffix, else COCO's results. A row with the reason why there is no caption gives none.

    Raises:
        UserError: if it can't be read, is not like what `predict.py` writes, or names a picture twice.
    """
    if path.suffix.lower() not in (".jsonl", ".csv", ""):
        return cast(dict[Key, str], read_results(path))
    candidates: dict[Key, str] = {}
    for place, row in _rows(path):
        image_id, name, caption = row.get("image_id"), row.get("path"), row.get("caption")
        key = PurePosixPath(str(name).replace("\\", "/")) if image_id in (None, "") else image_id
        if key == PurePosixPath() or not isinstance(caption, str | None) or not isinstance(key, Key):
            raise UserError(f"{place}: a row names its picture by path or image_id, and has its caption as a text")
        if key in candidates:
            raise UserError(f"{place}: picture {key} has a candidate already; keep one caption for each picture")
        if caption or (caption == "" and not row.get("error")):
            candidates[key] = caption
    return candidates


def _rows(path: Path) -> Iterator[Row]:
    """The rows of JSON Lines or CSV, each with the columns that are wanted."""
    is_csv = path.suffix.lower() == ".csv"
    if is_csv and not {"caption"} < (columns := {*columns_of(path)}) & {"caption", "path", "image_id"}:
        met = f"it names {', '.join(sorted(columns))}" if columns else "it is empty"
        raise UserError(f"{path}:1: the first line must name the columns caption, and path or image_id; {met}")
    for place, row in read_table(path):
        if "path" not in row and "image_id" not in row:
            raise UserError(f'{place}: this is not a line such as {{"path": "a.jpg", "caption": "a dog"}}')
        yield place, {name: without_apostrophes(text) for name, text in row.items()} if is_csv else row


def captioned_names(path: Path) -> Iterator[str]:
    """The pictures that have a caption in a file, as `name_in_shard` or the input calls them.

    Raises:
        UserError: it is of COCO results, which have no names, or is damaged.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise UserError(f"{path} has COCO results, which name no files; name a .jsonl, .csv, .parquet or .tar file")
    for place, row in _of_tar(path) if suffix == ".tar" else read_table(path):
        if row.get("error"):
            continue
        name = row.get("path") or name_in_shard(row.get("shard"), row.get("key")) or row.get("key")
        if not isinstance(name, str):
            raise UserError(f"{place}: this row names no picture; name a file that predict.py wrote")
        yield as_utf8(without_apostrophes(name) if suffix == ".csv" else name)


def name_in_shard(shard: object, key: object) -> str | None:
    """A picture's name by the shard that it lies in and its key there; None of others."""
    return f"{shard}/{key}" if shard and key else None


def _of_tar(path: Path) -> Iterator[Row]:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json") and (file := tar.extractfile(member)):
                    yield f"{path}, {member.name}", json.loads(file.read())
    except (tarfile.TarError, ValueError, OSError) as error:
        raise UserError(f"{path} is no whole tar of predict.py ({error}); make it again, or name another") from error


def of_pictures(candidates: Mapping[Key, str], references: Mapping[Key, Any], annotations: Path) -> dict[Key, str]:
    """The candidates by the image ids of the annotation file; what belongs to none of its pictures stays as it is.

    "7" and 7 are one image id. Else a picture is known by its file's name, with its suffix or without, and by its
    folder too where several have one name.

    Raises:
        UserError: if a row may mean several pictures, or two rows mean one.
    """
    if all(key in references for key in candidates):
        return dict(candidates)
    by_text: dict[str, set[Key]] = defaultdict(set)
    for image_id in references:
        by_text[str(image_id)].add(image_id)
    files: Mapping[Any, str] = read_file_names(annotations)
    by_name: dict[str, set[Key]] = defaultdict(set)
    for image_id, name in files.items():
        for known in {PurePosixPath(name).name, PurePosixPath(name).stem}:
            by_name[known] |= {image_id} & references.keys()
    found: dict[Key, Key] = {}
    for key in candidates:
        if key in references:
            meant: set[Any] = {key}
        elif isinstance(key, PurePosixPath):
            meant = by_name[key.name] or by_name[key.stem] or by_text[key.name] or by_text[str(coco_image_id(key.name))]
            meant = {one for one in meant if f"/{key}".endswith(f"/{files.get(one)}")} or meant
        else:
            meant = by_text[str(key)] | by_name[str(key)]
        if len(meant) > 1:
            each = " or ".join(sorted(f"{one} ({files[one]})" if one in files else str(one) for one in meant))
            raise UserError(f"{key} may be picture {each} of {annotations}; name it by image_id, or by its whole path")
        picture = meant.pop() if meant else key
        if picture in found:
            raise UserError(f"{found[picture]} and {key} are both picture {picture}; keep one caption for each picture")
        found[picture] = key
    return {picture: candidates[key] for picture, key in found.items()}
