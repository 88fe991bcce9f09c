"""Pictures in tables, as Parquet files and the `datasets` library have them: the rows are those that it yields."""
# ruff: noqa: F811  # a fixture of another file

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from data_sets import draw_photograph, write
from forms import COUNTS, picture_of, shape_rows
from test_folder import COMMON, batches_of, drawn  # noqa: F401  # a fixture of another file

from captioning.data import arrow
from captioning.data.arrow import HubPictures, hub_index, hub_splits
from captioning.data.datamodule import HubDataModule, ShardsDataModule
from captioning.data.images import UnreadablePicture
from captioning.data.index import Columns
from captioning.data.remote import Blocks
from captioning.data.shards import ShardPictures, index_of
from captioning.errors import UserError

USUAL = Columns(None, None, lines=False)
SPLITS = {"train": range(4), "validation": range(4, 6), "test": range(6, 7)}


def library() -> Any:
    """`datasets`, which takes two seconds to import: not where tests are only collected."""
    return pytest.importorskip("datasets", reason="datasets writes and reads these data sets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(library().config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    library().disable_progress_bars()


def captions_of(i: int) -> list[str]:
    return [f"caption {n} of {i}" for n in range(1 + i % 3)]


def as_files(root: Path) -> Path:
    """ImageFolder: pictures in a folder for each split, with a list of captions each."""
    for split, numbers in SPLITS.items():
        for i in numbers:
            draw_photograph(root / split / f"{i}.jpg", i, size=(24, 18))
        rows = [json.dumps({"file_name": f"{i}.jpg", "captions": captions_of(i)}) for i in numbers]
        write(root / split / "metadata.jsonl", *rows)
    return root


def saved(root: Path) -> Path:
    """`save_to_disk`, of pictures whose bytes are in the tables."""
    files = library().load_dataset(str(as_files(root.parent / "files")))
    files.map(lambda row: row).save_to_disk(str(root))
    return root


def as_parquet(root: Path) -> Path:
    files, root = library().load_dataset(str(as_files(root.parent / "files"))), root
    root.mkdir()
    for split, rows in files.items():
        rows.to_parquet(str(root / f"{split}-00000-of-00001.parquet"))
    return root


def pictures_of(name: Path, cache: Path, **keys: object) -> dict[str, HubPictures]:
    found = {}
    for split, parts in hub_splits(str(name), None, None, keys.get("split_column")).items():
        indices = [hub_index(f"{name} {split}", part, USUAL, cache, name) for part in parts]
        found[split] = pickle.loads(pickle.dumps(HubPictures(indices, parts, USUAL)))
    return found


def rows_of(pictures) -> list[tuple[bytes, str]]:
    captions = [list(one) for one in pictures.rows.captions]
    return [(pictures.read(i), caption) for i in range(len(pictures)) for caption in captions[i]]


def as_tars(root: Path) -> Path:
    """WebDataset's tars, which the library reads too."""
    files = library().load_dataset(str(as_files(root.parent / "files")))
    for split, rows in files.cast_column("image", library().Image(decode=False)).items():
        root.mkdir(exist_ok=True)
        with tarfile.open(root / f"{split}-0.tar", "w") as tar:
            for i, row in enumerate(rows):
                texts = json.dumps({"captions": row["captions"]}).encode()
                for suffix, data in (("jpg", Path(row["image"]["path"]).read_bytes()), ("json", texts)):
                    info = tarfile.TarInfo(f"{split}{i}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root


def test_tars_that_datasets_reads_give_the_rows_that_shards_give(tmp_path):
    root = as_tars(tmp_path / "set")
    for split, theirs in pictures_of(root, tmp_path / "cache").items():
        ours = indexed(root / f"{'validation' if split == 'val' else split}-0.tar")
        assert rows_of(ours) == rows_of(theirs) and len(ours)


@pytest.mark.parametrize("form", [as_files, saved, as_parquet])
def test_rows_are_those_that_datasets_yields(tmp_path, form):
    root, files = form(tmp_path / "set"), tmp_path / ("set" if form is as_files else "files")
    pictures = pictures_of(root, tmp_path / "cache")
    load = library().load_from_disk if form is saved else library().load_dataset
    for split, theirs in load(str(root)).cast_column("image", library().Image(decode=False)).items():
        ours = rows_of(pictures[{"validation": "val"}.get(split, split)])
        expected = [
            (row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes(), caption)
            for row in theirs
            for caption in row["captions"]
        ]
        assert ours == expected and len(ours) >= len(SPLITS[split])
        assert ours[0][0] == (files / split / f"{SPLITS[split][0]}.jpg").read_bytes()
    if form is as_files:
        assert list(pictures["train"].rows.names) == [f"train/{i}.jpg" for i in SPLITS["train"]]


def table(path: Path, rows: list[dict], **options: object) -> Path:
    pytest.importorskip("pyarrow.parquet").write_table(
        arrow.needed("pyarrow", "shards").Table.from_pylist(rows), path, **options
    )
    return path


def indexed(path: Path, columns: Columns = USUAL) -> ShardPictures:
    blocks = Blocks(path.parent / "blocks", 10**9)
    return ShardPictures([index_of(str(path), columns, path.parent / "cache", blocks)], blocks)


def test_parquet_is_read_by_row_groups_of_which_few_are_held(tmp_path, monkeypatch):
    data = [draw_photograph(tmp_path / f"{i}.jpg", i).read_bytes() for i in range(9)]
    rows = [{"jpg": one, "caption": f"caption {i}", "key": f"{i:09d}"} for i, one in enumerate(data)]
    pictures = indexed(table(tmp_path / "a.parquet", rows, row_group_size=2))
    assert rows_of(pictures) == [(one, f"caption {i}") for i, one in enumerate(data)]
    assert list(pictures.rows.runs) == [0, 0, 1, 1, 2, 2, 3, 3, 4] and pictures.rows.names[3] == "000000003"
    monkeypatch.setattr(arrow, "HELD_BYTES", 9 * len(data[0]) // 2)
    arrow._groups.clear()
    for i in (8, 0, 4, 2, 6, 8):
        assert pictures.read(i) == data[i]
        assert len(arrow._groups) <= 2


def test_a_cell_may_be_a_path_and_rows_of_one_picture_are_joined(tmp_path):
    for i in range(2):
        draw_photograph(tmp_path / f"photos/{i}.jpg", i)
    rows = [{"image": f"photos/{i}.jpg", "text": text} for i, text in ((0, "a"), (1, "b"), (0, "c"))]
    pictures = indexed(
        table(tmp_path / "a.parquet", [*rows, {"image": "photos/2.jpg", "text": "d"}, {"image": None, "text": "e"}])
    )
    assert list(pictures.rows.names) == ["photos/0.jpg", "photos/1.jpg", "photos/2.jpg", "00000004"]
    assert [list(one) for one in pictures.rows.captions] == [["a", "c"], ["b"], ["d"], ["e"]]
    assert [pictures.flaw(i) for i in range(4)] == [None, None, "no such file", "an empty cell"]
    (tmp_path / "photos/1.jpg").unlink()
    with pytest.raises(UnreadablePicture, match="no such file"):
        pictures.read(1)


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"x": b"", "caption": "a"}, USUAL, "has the columns x, caption; which one holds the picture"),
        (
            {"image": b"", "caption": "a"},
            Columns("y", None, lines=False),
            r"data.image_column=y is none of the columns of",
        ),
        (
            {"image": b"", "caption": "a"},
            Columns(None, "y", lines=False),
            r"data.caption_column=y is none of the columns",
        ),
    ],
)
def test_columns_that_are_not_there_are_said(tmp_path, row, columns, said):
    with pytest.raises(UserError, match=said):
        indexed(table(tmp_path / "a.parquet", [row]), columns)


def test_a_file_that_is_no_parquet_and_groups_too_large_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"a\.parquet is no whole Parquet file: .*; fetch it again"):
        indexed(write(tmp_path / "a.parquet", "words"))
    monkeypatch.setattr(arrow, "MOST_GROUP_BYTES", 10)
    with pytest.raises(UserError, match=r"a row group of 0\.0 GB, .*row_group_size=1000"):
        indexed(table(tmp_path / "b.parquet", [{"image": bytes(99), "caption": "a"}]))


def test_one_split_is_divided_by_its_column_and_others_are_left_out(tmp_path):
    def of(rows: dict[str, list], name: str) -> Path:
        library().Dataset.from_dict(rows).save_to_disk(str(tmp_path / name))
        return tmp_path / name

    pictures = [draw_photograph(tmp_path / f"{i}.jpg", i).read_bytes() for i in range(4)]
    rows = {"image": pictures, "caption": list("abcd"), "split": ["train", "restval", "val", "other"]}
    found = pictures_of(of(rows, "one"), tmp_path / "cache")
    assert {split: [caption for _, caption in rows_of(one)] for split, one in found.items()} == {
        "train": ["a", "b"],
        "val": ["c"],
    }
    assert list(pictures_of(of({"image": pictures, "caption": list("abcd")}, "all"), tmp_path / "cache")) == ["train"]
    with pytest.raises(UserError, match=r"has the splits val, test, not train and validation"):
        pictures_of(of(rows | {"split": ["val", "val", "test", "test"]}, "none"), tmp_path / "cache")
    with pytest.raises(UserError, match=r"data\.split_column=part is none of the columns of .*: image, caption"):
        pictures_of(tmp_path / "all", tmp_path / "cache", split_column="part")


def test_a_data_set_that_is_not_there_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("nobody/nothing", tmp_path / "empty"):
        with pytest.raises(UserError, match=rf"^data\.name={name} cannot be loaded: .*; give OWNER/NAME"):
            hub_splits(str(name), None, None, None)


def drawn_shapes_as_tars(root: Path) -> ShardsDataModule:
    """As webdataset writes them; a key that holds its folder gives the image id of the file."""
    wds = pytest.importorskip("webdataset", reason="webdataset writes these shards")
    for split in COUNTS:
        with wds.ShardWriter(str(root / f"{split}-%03d.tar"), maxcount=7, verbose=0) as sink:
            for path, captions, _ in (row for row in shape_rows() if row[2] == split):
                sink.write(
                    {"__key__": path.removesuffix(".png"), "png": picture_of(path), "json": {"captions": captions}}
                )
    roots = {"root": "train-{000..003}.tar", "val_root": "val-*.tar", "test_root": "test-000.tar"}
    named = {key: str(root / pattern) for key, pattern in roots.items()}
    return ShardsDataModule(
        dataset="shards", cache_gigabytes=1.0, local_cache=None, lanes=None, **named, **of_indices(root)
    )


def drawn_shapes_as_tables(root: Path) -> HubDataModule:
    """As `datasets` saves them."""
    splits = {}
    for split in COUNTS:
        rows = [row for row in shape_rows() if row[2] == split]
        images = [{"bytes": picture_of(path), "path": path} for path, *_ in rows]
        captions = [list(of_picture) for _, of_picture, _ in rows]
        kinds = {"image": library().Image(), "caption": library().List(library().Value("string"))}
        splits[split] = library().Dataset.from_dict({"image": images, "caption": captions}, library().Features(kinds))
    library().DatasetDict(splits).save_to_disk(str(root / "set"))
    keys = dict.fromkeys(("subset", "revision", "split_column"))
    return HubDataModule(dataset="hub", name=str(root / "set"), **keys, **of_indices(root))


def of_indices(root: Path) -> dict[str, Any]:
    keys = {"image_column": None, "caption_column": None, "captions_per_file": "one", "cache": str(root / "cache")}
    return COMMON | keys | {"fraction": 1.0, "on_missing": "error", "prepared": None}


@pytest.mark.parametrize("form", [drawn_shapes_as_tars, drawn_shapes_as_tables])
def test_batches_are_those_of_the_drawn_shapes(drawn, tmp_path, form):
    met = batches_of(form(tmp_path))
    for one, other in zip(drawn, met, strict=True):
        assert all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("pixel_values", "input_ids", "labels"))
    paths = [Path(path) for path, *_ in shape_rows()]  # of which datasets saves the names alone
    ids = {path.name if form is drawn_shapes_as_tables else str(path) for path in paths}
    assert {image_id for batch in met for image_id in batch.image_ids} == ids
