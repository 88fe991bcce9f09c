"""Pictures in the cells of Arrow tables: Parquet files, and data sets of the `datasets` library.

A cell is a picture's bytes, its path, or both as Hugging Face has them, `{"bytes": ..., "path": ...}`.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np

from captioning.data.images import UnreadablePicture, read_file
from captioning.data.index import Columns, Index, IndexedPictures, Mark, Rows, digest, kept_index
from captioning.data.readers.annotations import tidied
from captioning.data.readers.folder import CAPTIONS, NUMBERED, SPLIT_WORDS
from captioning.data.readers.tables import nearest, needed
from captioning.data.records import TextLists, Texts
from captioning.data.stored import flaw_of
from captioning.errors import UserError

log = logging.getLogger(__name__)

PICTURES = (
    "image",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "img",
    "picture",
    "photo",
    "bytes",
    "file_name",
    "image_path",
    "path",
)
URLS = ("url", "image_url")  # of pictures that lie elsewhere, in a table
KEYS = ("file_name", "key", "filename", "image_id", "id")  # of pictures whose cells have no path
HELD_BYTES = 2**28  # of row groups, by each process that reads Parquet files
MOST_GROUP_BYTES = 2**30


def bytes_in(cell: Any, folder: Path) -> bytes:
    """The picture of a cell; a path starts from `folder`. Raises UnreadablePicture."""
    path = cell
    if isinstance(cell, Mapping):
        cell, path = cell.get("bytes"), cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(path, str):
        raise UnreadablePicture("an empty cell" if path is None else f"a cell of {type(path).__name__}, not a picture")
    if "://" in path:
        raise UnreadablePicture(f"the URL {path}; fetch the pictures first, with img2dataset for instance")
    return read_file(folder / path)


def _columns(columns: Columns, names: Sequence[str], where: str) -> tuple[str, list[str], str | None]:
    """The columns of pictures, of captions and of keys, asked for or by their usual names."""
    known = nearest(names)
    if columns.image not in (None, *names):
        raise columns.refused(f"columns of {where}: {', '.join(names)}")
    if columns.caption not in (None, *names):
        raise UserError(f"data.caption_column={columns.caption} is none of the columns of {where}: {', '.join(names)}")
    image = columns.image or next((known[name] for name in PICTURES if name in known), None)
    if image is None:
        raise UserError(
            f"{where} has the columns {', '.join(names)}; which one holds the picture? say {columns.image_key}"
        )
    usual = (*CAPTIONS, "txt", "json")  # the last two of a tar that datasets has read
    captions = [columns.caption] if columns.caption else [known[name] for name in usual if name in known][:1]
    captions = captions or [known[name] for name in known if NUMBERED.fullmatch(name)]
    return image, captions, next((known[name] for name in KEYS if name in known and known[name] != image), None)


def rows_of(tables: Iterable[tuple[int, Any]], columns: Columns, where: str, folder: Path) -> tuple[Rows, str]:
    """The pictures of a table, given as (number of the run, pyarrow.Table) after each other; and their column.

    Rows whose pictures are equal to the byte are one picture, with all their captions.
    """
    image, numbers = "", count()
    pictures: dict[int | str, _Picture] = {}  # by content, where there is one
    taken: set[str] = set()
    for run, table in tables:
        image, of_captions, key = _columns(columns, table.column_names, where)
        kept = table.select(list(dict.fromkeys([image, *of_captions, *([key] if key else [])])))
        for record, row in zip(kept.to_pylist(), numbers, strict=False):  # in this order no number is lost
            texts = [text for name in of_captions for text in texts_in(record[name], columns)]
            data, flaw = _looked_at(record[image], folder)
            name = _name_of(record[image], record.get(key) if key else None, row, folder)
            one = pictures.get(digest(data))
            if not data or one is None or columns.predicted:
                name = f"{name}#{row}" if name in taken else name
                taken.add(name)
                one = pictures[digest(data) if data and not columns.predicted else name] = _Picture(
                    name, (row, len(data)), run, digest(data), flaw
                )
            one.captions.extend(texts)
    all_ = list(pictures.values())
    places = np.array([one.place for one in all_], np.int64).reshape(-1, 2)
    runs, contents = (np.array([getattr(one, name) for one in all_], np.int64) for name in ("run", "content"))
    captions = TextLists.of([one.captions for one in all_])
    return Rows(Texts.of(o.name for o in all_), places, runs, contents, captions, Texts.of(o.flaw for o in all_)), image


@dataclass
class _Picture:
    name: str
    place: tuple[int, int]
    run: int
    content: int
    flaw: str
    captions: list[str] = field(default_factory=list)


def _looked_at(cell: Any, folder: Path) -> tuple[bytes, str]:
    """The picture, and why it is none."""
    try:
        data = bytes_in(cell, folder)
    except UnreadablePicture as error:
        return b"", str(error)
    return data, flaw_of(lambda: data) or ""


def _name_of(cell: Any, key: Any, row: int, folder: Path) -> str:
    """The path under `folder` where a cell has one, and otherwise its key, or number."""
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    if not isinstance(path, str) or not path:
        return f"{row:08d}" if key is None else str(key)
    if not Path(path).is_absolute():
        return path
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else Path(path).name


def texts_in(value: Any, columns: Columns) -> list[str]:
    """The captions of a cell: a text, a list of them, or a list of objects with a text each."""
    if isinstance(value, str):
        value = value.split("\n") if columns.lines else [value]
    if isinstance(value, Mapping):
        value = next((value[name] for name in CAPTIONS if name in value), None)
        return texts_in(value, columns)
    found = []
    for one in value or ():
        found += texts_in(one, columns) if isinstance(one, Mapping) else [tidied(one)] if isinstance(one, str) else []
    return [text for text in found if text]


# Parquet files, by row groups.


def parquet_index(shard: str, mark: Mark, file: IO[bytes], columns: Columns) -> Index:
    """What is in a Parquet file."""
    parquet = needed("pyarrow.parquet", "shards")
    whole = _parquet_file(parquet, shard, file)
    groups = [whole.metadata.row_group(number) for number in range(whole.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > MOST_GROUP_BYTES:
        raise UserError(
            f"{shard} has a row group of {largest / 1e9:.1f} GB, and a picture is read with all of its group; write it "
            "with smaller ones, such as row_group_size=1000"
        )
    tables = ((number, whole.read_row_group(number)) for number in range(len(groups)))
    rows, column = rows_of(tables, columns, shard, Path(shard).parent)
    return Index(shard, mark, rows, column=column)


def names_in_parquet(shard: str, file: IO[bytes], columns: Columns) -> list[str] | None:
    """What a Parquet file names its pictures by, where they lie elsewhere: in a column of texts, `url` among them."""
    whole = _parquet_file(needed("pyarrow.parquet", "shards"), shard, file)
    types, known = needed("pyarrow.types", "shards"), nearest(whole.schema_arrow.names)
    usual = next((known[name] for name in (*PICTURES, *URLS) if name in known), None)
    column = columns.image or usual
    if column not in whole.schema_arrow.names:
        return None  # of which the index speaks
    kind = whole.schema_arrow.field(column).type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        return None
    return [name or "" for name in whole.read([column])[column].to_pylist()]


def _parquet_file(parquet: Any, shard: str, file: IO[bytes]) -> Any:
    try:
        return parquet.ParquetFile(file)
    except (ValueError, OSError) as error:  # ArrowInvalid is the first
        raise UserError(f"{shard} is no whole Parquet file: {error}; fetch it again") from error


_files = count()
_groups: OrderedDict[tuple[int, int, int], Any] = OrderedDict()  # columns of row groups, by process, file and number


class ParquetCells:
    """The pictures of a Parquet file; row groups in use are held, those of all files together up to `HELD_BYTES`."""

    def __init__(self, shard: str, file: IO[bytes], column: str):
        self._file = _parquet_file(needed("pyarrow.parquet", "shards"), shard, file)
        self._folder, self._column, self._number = Path(shard).parent, column, next(_files)
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = [0, *np.cumsum(counts).tolist()]

    def read_at(self, row: int, _: int) -> bytes:
        """The picture of a row."""
        number = bisect_right(self._starts, row) - 1
        return bytes_in(self._group(number)[row - self._starts[number]].as_py(), self._folder)

    def _group(self, number: int) -> Any:
        key = (os.getpid(), self._number, number)
        if key not in _groups:
            _groups[key] = self._file.read_row_group(number, columns=[self._column]).column(0).combine_chunks()
            while len(_groups) > 1 and sum(group.nbytes for group in _groups.values()) > HELD_BYTES:
                _groups.popitem(last=False)
        _groups.move_to_end(key)
        return _groups[key]


# Data sets of the `datasets` library.


def require_hub(name: str | None) -> Any:
    """The library `datasets`; raises UserError where it is not installed, or no data set is named."""
    if name is None:
        raise UserError(
            "data.name is missing; say which, for example data.name=OWNER/NAME, or a folder that datasets saved"
        )
    return needed("datasets", "hub")


def hub_splits(name: str, subset: str | None, revision: str | None, split_column: str | None) -> dict[str, list[Any]]:
    """A data set of the hub, or one that lies in a folder of this machine: what `datasets` has of each split.

    Karpathy's `restval` joins `train`. Where there is one split alone, its rows may say in a column which they are in.

    Raises:
        UserError: it is not there, is no such data set, or has nothing to train or to validate on.
    """
    datasets, folder = require_hub(name), Path(name).expanduser()
    is_saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        if is_saved:
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(folder) if folder.is_dir() else name, subset, revision=revision)
    except Exception as error:  # it raises nearly all that there is
        lines = str(error).strip().splitlines() or [type(error).__name__]
        offline = "; HF_HUB_OFFLINE is set" if datasets.config.HF_HUB_OFFLINE and not folder.is_dir() else ""
        raise UserError(
            f"data.name={name} cannot be loaded: {lines[0]}{offline}; give OWNER/NAME of a data set on the hub, or a "
            "folder that datasets saved or reads"
        ) from error
    found = dict(found) if isinstance(found, Mapping) else {str(found.split or "train"): found}
    if split_column is None and len(found) == 1 and "split" in next(iter(found.values())).column_names:
        split_column = "split"
    parts = list(found.items())
    if split_column is not None:
        parts = [part for rows in found.values() for part in _by_column(rows, split_column, name)]
    splits: dict[str, list[Any]] = {}
    for called, rows in parts:
        word = "train" if called == "restval" or len(parts) == 1 else SPLIT_WORDS.get(called.lower())
        if word is None:
            log.info("%s: the split %s is none to train, validate or test on, and is left out", name, called)
        elif len(rows):
            splits.setdefault(word, []).append(rows)
    if "train" not in splits or (len(splits) > 1 and "val" not in splits):
        raise UserError(
            f"data.name={name} has the splits {', '.join(called for called, _ in parts)}, not train and validation"
        )
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _by_column(rows: Any, column: str, name: str) -> list[tuple[str, Any]]:
    """The rows of each value of a column."""
    if column not in rows.column_names:
        raise UserError(f"data.split_column={column} is none of the columns of {name}: {', '.join(rows.column_names)}")
    values = np.array(rows[column])
    return [(str(value), rows.select(np.flatnonzero(values == value))) for value in dict.fromkeys(values.tolist())]


def hub_index(title: str, split: Any, columns: Columns, cache: Path, folder: Path) -> Index:
    """What is in a split of `datasets`, whose fingerprint changes with it; paths of pictures may be under `folder`."""
    mark = len(split), str(split._fingerprint)

    def make() -> Index:
        tables = _undecoded(split, columns, title).with_format("arrow").iter(batch_size=1000)
        rows, column = rows_of(((0, table) for table in tables), columns, title, folder)
        return Index(title, mark, rows, column=column)

    return kept_index(cache, title, mark, columns, make)


def _undecoded(split: Any, columns: Columns, title: str) -> Any:
    """The split with its pictures as bytes and paths."""
    image, *_ = _columns(columns, split.column_names, title)
    feature = split.features[image]
    kinds = needed("datasets", "hub")
    return split.cast_column(image, kinds.Image(decode=False)) if isinstance(feature, kinds.Image) else split


class HubPictures(IndexedPictures):
    """The pictures of splits of `datasets`, whose tables are mapped into memory."""

    def __init__(self, indices: Sequence[Index], splits: Sequence[Any], columns: Columns):
        super().__init__(indices)
        self._cells = [
            _undecoded(split, columns, index.shard).select_columns([index.column])
            for index, split in zip(indices, splits, strict=True)
        ]

    def reader(self, shard: int) -> Callable[[int, int], bytes]:
        """Called with a row."""

        def read_at(row: int, _: int) -> bytes:
            (cell,) = self._cells[shard][row].values()
            return bytes_in(cell, Path())

        return read_at
