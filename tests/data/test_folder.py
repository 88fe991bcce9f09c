"""`data=folder`: every form gives the same pictures, captions and splits; and what a user reads where one does not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from data_sets import draw, heard, write, write_json  # noqa: F401  # `heard` is a fixture for all
from forms import COUNTS, FORMS, coco_of, write_form
from small_runs import TINY, configured

from captioning.cli import quoted
from captioning.config import TrainConfig
from captioning.data.batch import PictureFormat
from captioning.data.datamodule import FolderDataModule
from captioning.data.readers.folder import OwnFolder, read_folder
from captioning.errors import UserError
from captioning.runs import read_checkpoint
from captioning.shapes.datamodule import ShapesDataModule
from captioning.training.run import train

COMMON: dict[str, Any] = {
    "tokenizer": None,
    "batch_size": 4,
    "max_tokens": 64,
    "num_workers": 0,
    "overfit_images": None,
    "seed": 42,
    "captions_per_image": 6,  # all that a picture has: which would share a row is drawn by its id
    "augmentation": {"crop_scale": None, "brightness": 0.0, "contrast": 0.0, "flip": False},
}
PHOTOGRAPHS = {"fraction": 1.0, "use_restval": True, "on_missing": "error", "prepared": None}


def rows_of(root, **keys):
    photographs, _ = read_folder(OwnFolder(root, **keys))
    return [(p.path.relative_to(root).as_posix(), p.captions, p.split) for p in photographs]


def module(root, **keys):
    own = {name: field.default for name, field in OwnFolder.__dataclass_fields__.items() if name != "root"}
    return FolderDataModule(dataset="folder", root=str(root), **COMMON | PHOTOGRAPHS | own | keys)


def batches_of(datamodule):
    datamodule.connect(datamodule.new_tokenizer(), PictureFormat(size=(24, 24)), max_positions=64)
    loaders = datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()
    return [batch for loader in loaders for batch in loader]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, form):
    if "arquet" in form:
        pytest.importorskip("pyarrow")
    keys, rows = write_form(tmp_path, form)
    assert rows_of(tmp_path, **keys) == rows


@pytest.fixture(scope="module")
def drawn():
    counts = {f"{split}_pictures": count for split, count in COUNTS.items()}
    return batches_of(ShapesDataModule(image_size=None, **counts, **COMMON))


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_every_form_are_those_of_the_drawn_shapes(drawn, tmp_path, form):
    if "arquet" in form:
        pytest.importorskip("pyarrow")
    keys, rows = write_form(tmp_path, form)
    met = batches_of(module(tmp_path, **keys))
    for one, other in zip(drawn, met, strict=True):
        assert all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("pixel_values", "input_ids", "labels"))
    ids = {image_id for batch in met for image_id in batch.image_ids}
    assert ids == (set(range(1, len(rows) + 1)) if form == "COCO" else {path for path, _, _ in rows})


@pytest.mark.slow
def test_training_from_every_form_gives_the_weights_of_the_drawn_shapes(tmp_path):
    like_shapes = ("data.tokenizer=null", "data.num_workers=0", "data.batch_size=4", "data.augmentation=null")
    of_model = tuple(one for one in TINY if not one.startswith("data"))
    ways = {"shapes": TINY}
    for form in FORMS:
        keys, _ = write_form(tmp_path / form, form)
        own = (quoted(f"data.{key}={value}") for key, value in keys.items())
        ways[form] = ("data=folder", f"data.root='{tmp_path / form}'", *like_shapes, *own, *of_model)
    weights = {}
    for form, overrides in ways.items():
        run_dir = tmp_path / "runs" / form
        train(configured(TrainConfig, *overrides, "data.captions_per_image=6", f"run_dir='{run_dir}'"))
        weights[form] = read_checkpoint(run_dir / "checkpoints/last.ckpt")["state_dict"]
    expected = weights["shapes"]
    for form, met in weights.items():
        assert met.keys() == expected.keys() and all(torch.equal(expected[name], met[name]) for name in met), form


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_datasets_library_reads_the_same_rows_of_a_folder(tmp_path, suffix):
    datasets = pytest.importorskip("datasets")
    _, rows = write_form(tmp_path / "set", f"metadata.{suffix} in each folder")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    met = []
    for split, of_split in loaded.items():
        of_split = of_split.cast_column("image", datasets.Image(decode=False))
        met += [(row["image"]["path"], row["text"], split.replace("validation", "val")) for row in of_split]
    expected = [(str(tmp_path / "set" / path), caption, split) for path, of, split in rows for caption in of]
    assert sorted(met) == sorted(expected)


# ------------------------------------------------------------------------------------ what is tolerated, and refused


@pytest.fixture
def root(tmp_path):
    """Four pictures and no captions: `train/a.jpg`, `train/b.jpg`, `val/c.jpg`, `d.jpg`."""
    for name in ("train/a", "train/b", "val/c", "d"):
        draw(tmp_path / f"{name}.jpg")
    return tmp_path


def refused(root, match, **keys):
    with pytest.raises(UserError, match=match):
        read_folder(OwnFolder(root, **keys))


def captions(root, **keys):
    return {path: captions for path, captions, _ in rows_of(root, **keys)}


TWO = ["train/a.jpg,a dog", "val/c.jpg,a cat"]


def test_fields_may_hold_commas_quotes_and_line_ends(root):
    quoted = ['"train/a.jpg","red, ""big"" dog\r\non grass"', "val/c.jpg,so, no quotes", 'val/c.jpg,"a", she said']
    write(root / "a.csv", "file,caption", *quoted, end="\r\n")
    assert captions(root) == {
        "train/a.jpg": ('red, "big" dog on grass',),
        "val/c.jpg": ("so, no quotes", '"a", she said'),
    }
    write(root / "a.csv", "caption,file", '"a, b",train/a.jpg', "c, d,val/c.jpg")
    refused(
        root, r"a\.csv:3: this row has 3 cells, and the first line names 2 columns: 'c,d,val/c\.jpg'; put quotation"
    )
    write(root / "a.csv", "file,caption", 'train/a.jpg,"never closed', "val/c.jpg,a cat")
    refused(root, r"a\.csv:2: a quotation mark opens here and is not closed: '\"never closed'; close it at its end, or")


def test_columns_are_guessed_said_and_named(root, caplog):
    write(root / "a.csv", "id;Image Path;Alt-Text", "1;train/a.jpg;a dog", "2;val/c.jpg;a cat")
    assert captions(root) == {"train/a.jpg": ("a dog",), "val/c.jpg": ("a cat",)}
    assert "columns: Image Path is the picture, Alt-Text the caption" in caplog.text
    refused(
        root,
        r"data\.caption_column=words is none of the columns of .*a\.csv: id, Image Path, A",
        caption_column="words",
    )
    write(root / "a.csv", "Datei,Wort,Satz", "train/a.jpg,a,b", "val/c.jpg,c,d")
    refused(
        root, r"a\.csv names its columns Datei, Wort, Satz; which one holds the picture\? say data\.image_column=NAME"
    )
    refused(root, "which one holds the caption", image_column="Datei")
    both = {"image_column": "Datei", "caption_column": ["Wort", "Satz"]}
    assert captions(root, **both)["train/a.jpg"] == ("a", "b")
    write(root / "a.csv", "image,caption_0,caption_1", "train/a.jpg,a,b", 'val/c.jpg,c,""')
    assert captions(root) == {"train/a.jpg": ("a", "b"), "val/c.jpg": ("c",)}
    write(root / "a.csv", "filename,raw", 'train/a.jpg,"[""one"", ""two""]"', "val/c.jpg,[x]")
    assert captions(root) == {"train/a.jpg": ("one", "two"), "val/c.jpg": ("[x]",)}


def test_text_in_another_encoding_is_named_with_its_row(root):
    (root / "a.csv").write_bytes("file,caption\ntrain/a.jpg,a dog\nval/c.jpg,un café\n".encode("cp1252"))
    refused(
        root, r"a\.csv:3: this is not UTF-8 text; say what it is written in, such as data\.encoding=cp1252, or save"
    )
    assert captions(root, encoding="cp1252")["val/c.jpg"] == ("un café",)
    refused(root, r"a\.csv:3: this is not utf-16 text; say .*data\.encoding=utf-8", encoding="utf-16")
    with pytest.raises(UserError, match=r"data\.encoding=utf-9 must be an encoding of text that Python knows, such as"):
        configured(TrainConfig, "data=folder", "data.encoding=utf-9")


def test_a_picture_is_found_by_the_end_of_its_path(root):
    names = ["C:\\photos\\a.jpg,by Windows", f"{root}/val/c.jpg,absolute", "b,no suffix", "../old/d.jpg,moved"]
    write(root / "a.csv", "path,text", *names)
    met = captions(root, split_by="seed")
    assert met == dict(
        zip(
            ["d.jpg", "train/a.jpg", "train/b.jpg", "val/c.jpg"],
            [("moved",), ("by Windows",), ("no suffix",), ("absolute",)],
            strict=True,
        )
    )
    draw(root / "val" / "a.jpg")
    refused(
        root, r"a\.csv:2: C:\\photos\\a\.jpg may be train/a\.jpg or val/a\.jpg; write its path from", split_by="seed"
    )
    write(root / "a.csv", "path,text", "https://example.org/a.jpg,words")
    refused(root, r"a\.csv:2: https://example\.org/a\.jpg is not a file; fetch the pictures first")
    write(root / "a.csv", "path,text", "../secret/x.jpg,words")
    refused(root, "names the file '../secret/x.jpg', which leads out of")
    write(root / "a.csv", "path,text", *TWO, ",words")
    refused(root, r"a\.csv:4: path is '', not a picture's name")


def test_no_picture_is_in_two_splits(root):
    write(root / "a.csv", "path,text,split", "d.jpg,one,train", "d.jpg,two,dev")
    refused(root, r"image d\.jpg is in train \(.*a\.csv:2\) and in val \(.*a\.csv:3\)")
    write(root / "a.csv", "path,text,split", "train/a.jpg,one,val")
    refused(
        root, r"a\.csv:2 puts train/a\.jpg in val, and its folder in train; data\.split_by=column or folder says which"
    )
    write(root / "a.csv", "path,text,split", "train/a.jpg,one,val", "val/c.jpg,one,train")
    assert [split for *_, split in rows_of(root, split_by="column")] == ["val", "train"]
    assert [split for *_, split in rows_of(root, split_by="folder")] == ["train", "val"]
    assert [split for *_, split in rows_of(root, split_by="seed")] == ["", ""]
    for split, names in {"train": ["a", "c"], "val": ["c.jpg"]}.items():
        write(root / f"{split}.txt", *names)
    refused(root, r"val/c\.jpg is in train \(.*train\.txt:2\) and in val \(.*val\.txt:1\)", split_by="lists")
    (root / "val" / "linked.jpg").symlink_to(root / "train" / "a.jpg")
    write(root / "a.csv", "path,text", *TWO, "val/linked.jpg,a dog")
    with pytest.raises(UserError, match=r"train/a\.jpg \(.*\) is in train, and in val as .*val/linked\.jpg"):
        module(root).read()


def test_files_of_captions_for_each_split_count_before_the_folders_of_pictures(root):
    write(root / "my-train.csv", "path,text", "val/c.jpg,a cat", "train/b.jpg,a cow")
    assert [split for *_, split in rows_of(root)] == ["train", "val"], "there is but one"
    write(root / "my-val.csv", "path,text", "train/a.jpg,a dog")
    assert {path: split for path, _, split in rows_of(root)} == {
        "train/a.jpg": "val",
        "train/b.jpg": "train",
        "val/c.jpg": "train",
    }
    write(root / "my-val.csv", "path,text", "train/b.jpg,a cow")
    refused(root, r"image train/b\.jpg is in train \(.*my-train\.csv:3\) and in val \(.*my-val\.csv:2\)")


def test_what_says_no_split_or_an_unknown_one_is_refused(root):
    write(root / "a.csv", "path,text,split", "train/a.jpg,one,fold 3")
    refused(
        root, r"a\.csv:2: split is 'fold 3', not a split such as train, val or test; data\.split_column names another"
    )
    write(root / "a.csv", "path,text", "train/a.jpg,one", "train/b.jpg,two")
    refused(
        root, r"no photographs for val in data\.root=.* \(there are train 2\); add them, or let data\.split_by=seed"
    )
    refused(root, "has no column split; say data.split_column=NAME", split_by="column")
    refused(root, "by lists", split_by="lists")
    write(root / "a.csv", "path,text", *TWO, "d.jpg,neither")
    assert rows_of(root)[0] == ("d.jpg", ("neither",), "")


def test_where_it_cannot_be_said_which_file_is_meant_it_is_asked(root):
    refused(root, r"no captions in data\.root=.*, which holds 4 pictures and 0 other files: looked for metadata\.jsonl")
    for name in ("one.csv", "two.csv"):
        write(root / name, "path,text", *TWO)
    refused(root, r"holds several files of captions: one\.csv, two\.csv; name the one with data\.captions")
    assert len(rows_of(root, captions="one.csv")) == 2
    refused(root, r"data\.captions=six\.csv is no file, seen from", captions="six.csv")
    refused(root, r"no captions of layout texts in .*; did you mean data\.layout=table\?", layout="texts")
    for suffix in ("csv", "jsonl"):
        write(root / f"metadata.{suffix}")
    refused(root, r"holds metadata\.csv and metadata\.jsonl; name the one that is meant with data\.captions")
    refused(root / "nowhere", r"data\.root=.*nowhere does not exist; set data\.root=FOLDER")
    refused(root / "one.csv", r"one\.csv is a file: name its folder, and the file with data\.captions")


def test_texts_beside_pictures(root, caplog):
    for name in ("train/a", "train/b", "val/c"):
        write(root / f"{name}.txt", "tag, tag", "more")
        write(root / f"{name}.caption", "a sentence", "another")
    assert captions(root)["train/a.jpg"] == ("a sentence another",)
    assert "3 .txt files beside pictures unread, which data.caption_suffix=.txt reads" in caplog.text
    assert "1 pictures" in caplog.text and "have no caption" in caplog.text
    lines = captions(root, caption_suffix=".txt", captions_per_file="lines")
    assert lines["val/c.jpg"] == ("tag, tag", "more")
    draw(root / "val" / "c.png")
    refused(root, r"c\.caption may be of val/c\.jpg or val/c\.png; rename one of them")


def test_what_a_prediction_writes_beside_pictures_can_be_trained_on(whole, predict_command, root):
    arguments = (f"checkpoint={whole}", f"input={root}", f"output={root}/captions.jsonl", "text_files=true")
    assert predict_command(*arguments)[0] == 0
    lines = map(json.loads, (root / "captions.jsonl").read_text().splitlines())
    expected = {Path(line["path"]).relative_to(root).as_posix(): (line["caption"],) for line in lines}
    for layout in ("texts", "table"):
        assert captions(root, layout=layout, split_by="seed") == expected


def test_coco_files_whose_ids_begin_anew_go_by_paths(root):
    for split, name in {"train": "a.jpg", "val": "c.jpg"}.items():
        write_json(root / f"{split}.json", coco_of([(name, ("words",), split)]))
    assert [p.image_id for p in read_folder(OwnFolder(root))[0]] == ["train/a.jpg", "val/c.jpg"]
    content = coco_of([("a.jpg", ("words",), "train")])
    write_json(root / "train.json", content | {"annotations": [{"id": 1, "image_id": 9, "caption": "words"}]})
    refused(root, r"train\.json:1: annotations\[0\] is a caption of image 9, which is not in the list of images")
    write_json(root / "train.json", content | {"annotations": [{"id": 1, "image_id": 1, "bbox": []}]})
    refused(root, r"train\.json:1: annotations\[0\]\.caption is missing; it should be a text")


def test_a_coco_file_and_its_pictures_may_lie_anywhere(root, tmp_path_factory):
    file = write_json(
        tmp_path_factory.mktemp("test") / "x.json", coco_of([("a.jpg", ("words",), ""), ("c.jpg", ("more",), "")])
    )
    assert rows_of(root, captions=str(file)) == [("train/a.jpg", ("words",), "train"), ("val/c.jpg", ("more",), "val")]


def test_missing_and_damaged_pictures_are_refused_or_left_out(root):
    write(root / "a.csv", "path,text", *TWO, "train/gone.jpg,a bird", "train/b.jpg,a cow")
    with pytest.raises(
        UserError, match=r"1 of 4 picture files are missing, such as .*train/gone\.jpg; data\.on_missing=sk"
    ):
        module(root).read()
    (root / "train/b.jpg").write_bytes(b"\xff\xd8\xff cut")
    left = module(root, on_missing="skip").read()
    assert list(left["train"].image_ids) == ["train/a.jpg"] and list(left["val"].image_ids) == ["val/c.jpg"]


def test_malformed_tables_are_named_with_the_row(root, monkeypatch):
    write(root / "a.jsonl", '{"image": "train/a.jpg", "text": 5}', "[1]")
    refused(root, r"a\.jsonl:1: text is 5, not a text or a list of texts")
    write(root / "a.jsonl", '{"image": "train/a.jpg", "text": "a"}', "[1]")
    refused(root, r"a\.jsonl:2: this is no JSON object: '\[1\]'; a line holds one row")
    (root / "a.jsonl").unlink()
    write(root / "a.json", '[{"image": "train/a.jpg", "text": "a"},', '{"image": 1.5, "text": "a"}]')
    refused(root, r"a\.json:2: \[1\]: image is 1\.5, not a picture's name")
    write(root / "a.json", '[{"image": ')
    refused(root, r"a\.json:2: this is not valid JSON")
    (root / "a.json").unlink()
    parquet, pyarrow = map(pytest.importorskip, ("pyarrow.parquet", "pyarrow"))
    table = pyarrow.Table.from_pylist([{"image": {"bytes": b"x", "path": None}, "text": "a"}])
    parquet.write_table(table, root / "a.parquet")
    refused(
        root, r"a\.parquet, row 1: image is .*, not a picture's name; pictures' bytes in Parquet are read by data=sh"
    )
    (root / "a.parquet").write_bytes(b"PAR1")
    refused(root, r"a\.parquet is no whole Parquet file \(.*\); fetch it again")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(root, r"pyarrow is needed here, and not installed; pip install 'captioning\[parquet\]'")
