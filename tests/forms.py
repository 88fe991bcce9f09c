"""Drawn shapes, written in every form that a folder of pictures and captions of one's own may have."""

import csv
import json
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from data_sets import write, write_json
from PIL import Image

from captioning.shapes.grammar import captions_of
from captioning.shapes.scenes import draw, scene_of, split_indices

COUNTS = {"train": 28, "val": 12, "test": 4}  # as `small_runs.TINY` has them
FOLDERS = {"train": "train", "val": "validation", "test": "test"}

# (path, captions, split) of each picture
Rows = list[tuple[str, tuple[str, ...], str]]


def shape_rows(seed: int = 42) -> Rows:
    """In the order in which every form gives them."""
    return [
        (f"{FOLDERS[split]}/{index:08d}.png", tuple(captions_of(seed, index)), split)
        for split, count in COUNTS.items()
        for index in split_indices(split, count)
    ]


def picture_of(path: str, seed: int = 42, size: int = 24) -> bytes:
    """The PNG of one of these rows."""
    file = BytesIO()
    Image.fromarray(draw(scene_of(seed, int(Path(path).stem)), size)).save(file, "PNG")
    return file.getvalue()


def write_pictures(root: Path, rows: Rows, place: Callable[[str], str] = str) -> Path:
    """The pictures of the rows, each at `place` of its path."""
    for path, _, _ in rows:
        file = root / place(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture_of(path))
    return root


def flat(rows: Rows, **columns: Callable[[str, str, str], Any]) -> list[dict[str, Any]]:
    """A row for each caption."""
    return [
        {name: of(path, caption, split) for name, of in columns.items()}
        for path, captions, split in rows
        for caption in captions
    ]


def _csv(path: Path, table: list[dict], delimiter: str = ",", encoding: str = "utf-8", end: str = "\n") -> Path:
    text = StringIO()
    writer = csv.DictWriter(text, list(table[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def _jsonl(path: Path, table: list[dict]) -> Path:
    return write(path, *(json.dumps(row, ensure_ascii=False) for row in table))


def _parquet(path: Path, table: list[dict]) -> Path:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    write_table(Table.from_pylist(table), path)
    return path


def _in_each_folder(write_table: Callable[[Path, list[dict]], Path], suffix: str) -> Callable[[Path, Rows], None]:
    def write_all(root: Path, rows: Rows) -> None:
        for folder in FOLDERS.values():
            here = [(Path(path).name, captions, split) for path, captions, split in rows if path.startswith(folder)]
            write_table(root / folder / f"metadata{suffix}", flat(here, file_name=_path, text=_caption))

    return write_all


def _at_root(write_table: Callable[..., Path], name: str, **columns: Any) -> Callable[[Path, Rows], None]:
    def write_one(root: Path, rows: Rows) -> None:
        write_table(root / name, flat(rows, **columns))

    return write_one


def _path(path: str, caption: str, split: str) -> str:
    return path


def _caption(path: str, caption: str, split: str) -> str:
    return caption


def _split(path: str, caption: str, split: str) -> str:
    return {"val": "validation"}.get(split, split)


def _texts(suffix: str) -> Callable[[Path, Rows], None]:
    def write_texts(root: Path, rows: Rows) -> None:
        for path, captions, _ in rows:
            write(root / Path(path).with_suffix(suffix), *captions)

    return write_texts


def _lists(root: Path, rows: Rows) -> None:
    """A table that says nothing of splits, pictures all in one folder, and a list for each split."""
    _csv(root / "captions.csv", flat(rows, Image=lambda path, *_: Path(path).name, Caption=_caption))
    for split in FOLDERS:
        write(root / f"{split}.txt", *(Path(path).stem for path, _, of in rows if of == split))


def coco_of(rows: Rows, first: int = 1) -> dict[str, list[dict]]:
    """A COCO file of these rows."""
    images = [{"id": i, "file_name": Path(path).name} for i, (path, _, _) in enumerate(rows, start=first)]
    captions = [(i, caption) for i, (_, of, _) in enumerate(rows, start=first) for caption in of]
    annotations = [{"id": n, "image_id": i, "caption": caption} for n, (i, caption) in enumerate(captions)]
    return {"images": images, "annotations": annotations}


def _coco(root: Path, rows: Rows) -> None:
    write_json(root / "annotations" / "captions.json", coco_of(rows))


def _coco_for_each_split(root: Path, rows: Rows) -> None:
    for split in FOLDERS:
        write_json(root / f"{split}.json", coco_of([row for row in rows if row[2] == split]))


def _lists_of_captions(root: Path, rows: Rows) -> None:
    members = [{"filename": path, "sentences": list(captions), "split": split} for path, captions, split in rows]
    write_json(root / "data.json", {"info": {"year": 2026}, "data": members})


def _by_name(root: Path, rows: Rows) -> None:
    write_json(root / "captions.json", {path: list(captions) for path, captions, _ in rows})


# Name -> writer and the overrides that it needs.
FORMS: dict[str, tuple[Callable[[Path, Rows], None], dict[str, Any]]] = {
    "metadata.jsonl in each folder": (_in_each_folder(_jsonl, ".jsonl"), {}),
    "metadata.csv in each folder": (_in_each_folder(_csv, ".csv"), {}),
    "metadata.parquet in each folder": (_in_each_folder(_parquet, ".parquet"), {}),
    "metadata.jsonl at the root": (_at_root(_jsonl, "metadata.jsonl", image_file_name=_path, caption=_caption), {}),
    "metadata.csv at the root": (_at_root(_csv, "metadata.csv", file_name=_path, caption=_caption, split=_split), {}),
    "texts": (_texts(".txt"), {"captions_per_file": "lines"}),
    "captions beside": (_texts(".caption"), {"captions_per_file": "lines"}),
    "tags beside": (_texts(".tags"), {"captions_per_file": "lines", "caption_suffix": ".tags"}),
    "CSV with lists": (_lists, {}),
    "CSV of Windows": (
        _at_root(lambda path, table: _csv(path, table, ";", "utf-8-sig", "\r\n"), "a.csv", Bild=_path, Text=_caption),
        {"image_column": "Bild"},
    ),
    "TSV in UTF-16": (
        _at_root(lambda path, table: _csv(path, table, "\t", "utf-16"), "a.tsv", caption=_caption, image=_path),
        {},
    ),
    "CSV in another encoding": (
        _at_root(lambda path, table: _csv(path, table, ",", "cp1252"), "a.csv", path=_path, café=_caption),
        {"encoding": "cp1252", "caption_column": "café"},
    ),
    "JSONL": (_at_root(_jsonl, "all.jsonl", image=_path, caption=_caption, split=_split), {}),
    "Parquet": (_at_root(_parquet, "all.parquet", image_path=_path, text=_caption, split=_split), {}),
    "JSON of rows": (_lists_of_captions, {}),
    "JSON of names": (_by_name, {}),
    "COCO": (_coco, {}),
    "COCO for each split": (_coco_for_each_split, {}),
}


def write_form(root: Path, name: str) -> tuple[dict[str, Any], Rows]:
    """Pictures and captions under `root` in this form: the keys of `data` that it needs, and the rows in order."""
    make, keys = FORMS[name]
    place = (lambda path: f"pictures/{Path(path).name}") if make is _lists else str
    rows = shape_rows()
    write_pictures(root, rows, place)
    make(root, rows)
    return keys, sorted((place(path), captions, split) for path, captions, split in rows)
