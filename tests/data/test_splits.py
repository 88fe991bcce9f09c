"""Photographs -> train, val and test, and files that are no whole pictures met before a model is built."""

import logging
import os
from itertools import chain
from pathlib import Path

import pytest
from data_sets import draw
from PIL import Image

from captioning.data import stored
from captioning.data.records import Photograph
from captioning.data.splits import split_photographs, without_missing, without_unreadable
from captioning.data.stored import PORTION, PictureFiles
from captioning.errors import UserError

# Photographs -> train, val and test.


@pytest.fixture
def folder(tmp_path):
    """100 names that are there; nothing here looks into the files."""
    for number in range(100):
        (tmp_path / f"{number}.jpg").touch()
    return tmp_path


def photographs(folder: Path, *splits: str) -> list[Photograph]:
    return [Photograph(i, folder / f"{i}.jpg", ("words",), split) for i, split in enumerate(splits)]


def ids(divided):
    return {name: [p.image_id for p in members] for name, members in divided.items()}


def test_the_files_splits_are_kept_and_restval_joins_train(folder):
    given = photographs(folder, "test", "train", "restval", "val", "train")
    assert ids(split_photographs(given, seed=1)) == {"train": [1, 2, 4], "val": [3], "test": [0]}
    assert ids(split_photographs(given, seed=1, use_restval=False))["train"] == [1, 4]


def test_photographs_without_a_split_are_divided_by_the_seed(folder, caplog):
    caplog.set_level(logging.INFO)
    given = photographs(folder, *[""] * 100)
    divided = ids(split_photographs(given, seed=1))
    assert [len(divided[name]) for name in ("train", "val", "test")] == [76, 12, 12]
    assert sorted(chain(*divided.values())) == list(range(100))
    assert "seed=1 divides the photographs: train 76, val 12, test 12" in caplog.text
    again = ids(split_photographs(given[::-1], seed=1))
    assert {name: set(members) for name, members in again.items()} == {n: set(m) for n, m in divided.items()}
    assert ids(split_photographs(given, seed=2)) != divided


def test_a_photograph_keeps_its_side_when_others_go(folder):
    given = photographs(folder, *[""] * 100)
    before, after = ids(split_photographs(given, seed=1)), ids(split_photographs(given[10:], seed=1))
    moved = [i for name in after for i in after[name] if i not in before[name]]
    assert len(moved) <= 5  # only those at a border, since val and test are fixed fractions


@pytest.mark.parametrize(("count", "sizes"), [(2, [1, 1, 0]), (3, [1, 1, 1]), (5, [3, 1, 1])])
def test_small_sets_leave_no_split_empty(folder, count, sizes):
    divided = split_photographs(photographs(folder, *[""] * count), seed=7)
    assert [len(divided[name]) for name in ("train", "val", "test")] == sizes


def test_one_photograph_cannot_be_divided(folder):
    with pytest.raises(UserError, match=r"no photographs for val \(there are train 1, val 0, test 0\)"):
        split_photographs(photographs(folder, ""), seed=7)


def test_a_fraction_takes_a_nested_part_of_train_alone(folder):
    given = photographs(folder, *["train"] * 80, *["val"] * 10, *["test"] * 10)
    parts = {f: ids(split_photographs(given, seed=3, fraction=f)) for f in (0.1, 0.3, 1.0)}
    assert [len(part["train"]) for part in parts.values()] == [8, 24, 80]
    assert set(parts[0.1]["train"]) < set(parts[0.3]["train"]) < set(parts[1.0]["train"])
    assert all(part["val"] == list(range(80, 90)) for part in parts.values())
    assert ids(split_photographs(given, seed=4, fraction=0.1))["train"] != parts[0.1]["train"]


def test_a_fraction_that_leaves_nothing_is_refused(folder):
    with pytest.raises(UserError, match=r"data\.fraction=0\.1 of 2 training photographs leaves none; raise it"):
        split_photographs(photographs(folder, "train", "train", "val"), seed=1, fraction=0.1)


@pytest.mark.parametrize("splits", [["val", "test"], ["train", "test"], ["restval", "val"], []])
def test_an_empty_train_or_val_is_refused_with_the_counts(folder, splits):
    empty = "val" if "val" not in splits and "train" in splits else "train"
    with pytest.raises(UserError, match=rf"no photographs for {empty} \(there are train \d, val \d, test \d\)"):
        split_photographs(photographs(folder, *splits), seed=1, use_restval=False)


@pytest.mark.parametrize("second", ["val", "train"])
def test_an_image_id_that_comes_twice_is_refused(folder, second):
    given = [*photographs(folder, "train", "val"), Photograph(0, folder / "9.jpg", ("words",), second)]
    with pytest.raises(UserError, match=f"image 0 is in train and again in {second}; remove it from one of them"):
        split_photographs(given, seed=1)


def test_a_file_in_two_splits_is_refused_also_under_two_ids(folder):
    given = [*photographs(folder, "train", "val"), Photograph("other", folder / "0.jpg", ("words",), "test")]
    with pytest.raises(UserError, match=r"0\.jpg \(image 0\) is in train, and in test as .*0\.jpg \(image other"):
        split_photographs(given, seed=1)


def test_missing_files_are_counted_and_the_first_named(folder):
    given = photographs(folder, "train", *["val"] * 104)
    with pytest.raises(UserError) as error:
        split_photographs(given, seed=1)
    names = ", ".join(str(folder / f"{i}.jpg") for i in (100, 101, 102))
    assert str(error.value) == (
        f"5 of 105 picture files are missing, such as {names}; data.on_missing=skip leaves them out"
    )


def test_missing_files_can_be_left_out(folder, caplog):
    given = photographs(folder, "train", *["val"] * 104)
    divided = split_photographs(given, seed=1, on_missing="skip")
    assert ids(divided)["val"] == list(range(1, 100))
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "5 of 105 picture files are missing, such as " in caplog.text


def test_photographs_that_are_not_used_may_be_missing(folder):
    gone = [Photograph(f"gone {i}", folder / f"gone {i}.jpg", ("words",), "restval") for i in range(5)]
    split_photographs([*photographs(folder, "train", "val"), *gone], seed=1, use_restval=False)


def test_when_every_file_is_missing_skipping_is_no_advice(tmp_path):
    with pytest.raises(
        UserError, match=r"all 2 picture files are missing, such as .*0\.jpg, .*; unpack the pictures there$"
    ):
        split_photographs(photographs(tmp_path / "nowhere", "train", "val"), seed=1, on_missing="skip")


def test_skipping_must_not_empty_a_split(tmp_path):
    draw(tmp_path / "0.jpg")
    with pytest.raises(UserError, match=r"no photographs for val \(there are train 1, val 0, test 0\)"):
        split_photographs(photographs(tmp_path, "train", "val"), seed=1, on_missing="skip")


# Files that are no whole pictures are met before a model is built.


def why_unreadable(path):
    return PictureFiles([path]).flaw(0)


def training_files(*paths):
    return {"train": [Photograph(path.name, path, ("words",), "train") for path in paths], "val": []}


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.jpg"
    draw(path)
    return path


def test_a_whole_jpeg_is_not_decoded(whole, monkeypatch):
    monkeypatch.setattr(stored, "decode_picture", lambda data: pytest.fail("decoded"))
    assert why_unreadable(whole) is None


def test_a_picture_that_only_looks_damaged_is_accepted(whole):
    whole.write_bytes(whole.read_bytes() + b"added by a camera")
    assert why_unreadable(whole) is None
    named_jpg = whole.with_name("png.jpg")
    Image.new("RGB", (4, 4)).save(named_jpg, "PNG")
    assert why_unreadable(named_jpg) is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "empty file"),
        (lambda data: data[: len(data) * 2 // 3], "truncated"),
        (lambda data: b"<html>not found</html>", "not a picture, or damaged at its start"),
        (lambda data: b"\xff", "not a picture"),
    ],
)
def test_damage_is_named_with_its_reason(whole, damage, reason):
    whole.write_bytes(damage(whole.read_bytes()))
    assert reason in why_unreadable(whole)


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert why_unreadable(tmp_path / "folder.jpg") == "a folder, not a file"
    assert why_unreadable(tmp_path / "link.jpg") == "no such file"
    assert why_unreadable(tmp_path / "pipe.jpg") == "not a regular file"


def test_unreadable_files_are_counted_or_left_out(tmp_path, whole, caplog):
    empty, text = tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.touch()
    text.write_text("words")
    with pytest.raises(UserError) as error:
        without_unreadable(training_files(empty, whole, text), "error")
    named = f"{empty} (empty file), {text} (not a picture, or damaged at its start)"
    found = f"2 of 3 picture files are unreadable, such as {named}"
    assert str(error.value) == f"{found}; data.on_missing=skip leaves them out"
    assert without_unreadable(training_files(empty, whole, text), "skip") == training_files(whole)
    assert f"{found}; they are left out" in caplog.text


def test_the_last_files_are_checked_as_the_first(tmp_path, whole):
    data = whole.read_bytes()
    paths = [tmp_path / f"{i}.jpg" for i in range(PORTION * 2 + 3)]
    for path in paths[:-1]:
        path.write_bytes(data)
    paths[-1].touch()
    assert without_unreadable(training_files(*paths), "skip") == training_files(*paths[:-1])


def test_no_real_photograph_is_suspected(shared_data):
    assert [p.name for p in (shared_data / "flickr8k/Images").iterdir() if why_unreadable(p)] == []


@pytest.mark.parametrize(
    ("there", "named", "said"),
    [
        ("photos/A.JPG", "photos/a.jpg", r"has A\.JPG instead: rename the files"),
        ("photos/a.png", "photos/a.jpg", r"has a\.png instead"),
        ("photos/a.jpg", "photos/train\\a.jpg", "their names hold backslashes: write /"),
        ("elsewhere/deep/a.jpg", "photos/a.jpg", r"a\.jpg lies in \S+/elsewhere/deep: move the pictures"),
        ("other/b.jpg", "photos/a.jpg", "unpack the pictures there"),
    ],
)
def test_where_all_pictures_are_missing_what_is_near_is_said(tmp_path, there, named, said):
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).touch()
    missing = Photograph(1, tmp_path / named, ("a",), "train")
    with pytest.raises(UserError, match=rf"all 1 picture files are missing, such as .*; .*{said}"):
        without_missing({"train": [missing]}, "error")
