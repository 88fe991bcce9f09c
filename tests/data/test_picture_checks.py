"""Files that are no whole pictures are met before a model is built."""

import os

import pytest
from data_sets import draw
from PIL import Image

from captioning.data import splits as picture_checks
from captioning.data.records import Photograph
from captioning.data.splits import why_unreadable, without_unreadable
from captioning.errors import UserError


def splits(*paths):
    return {"train": [Photograph(path.name, path, ("words",), "train") for path in paths], "val": []}


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.jpg"
    draw(path)
    return path


def test_a_whole_jpeg_is_not_decoded(whole, monkeypatch):
    monkeypatch.setattr(picture_checks, "read_picture", lambda path: pytest.fail("decoded"))
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
        without_unreadable(splits(empty, whole, text), "error")
    named = f"{empty} (empty file), {text} (not a picture, or damaged at its start)"
    found = f"2 of 3 picture files are unreadable, such as {named}"
    assert str(error.value) == f"{found}; data.on_missing=skip leaves them out"
    assert without_unreadable(splits(empty, whole, text), "skip") == splits(whole)
    assert f"{found}; they are left out" in caplog.text


def test_the_last_files_are_checked_as_the_first(tmp_path, whole):
    data = whole.read_bytes()
    paths = [tmp_path / f"{i}.jpg" for i in range(picture_checks.PORTION * 2 + 3)]
    for path in paths[:-1]:
        path.write_bytes(data)
    paths[-1].touch()
    assert without_unreadable(splits(*paths), "skip") == splits(*paths[:-1])


def test_no_real_photograph_is_suspected(shared_data):
    assert [p.name for p in (shared_data / "flickr8k/Images").iterdir() if why_unreadable(p)] == []
