"""The data module of photographs in files."""

import os
import pickle

import pytest
from data_sets import coco, draw, flickr8k
from PIL import Image

from captioning.data.photographs import PhotographDataModule, PhotographFiles
from captioning.errors import UserError

SETTINGS = {
    "layout": "auto",
    "fraction": 1.0,
    "use_restval": True,
    "on_missing": "error",
    "tokenizer": None,
    "batch_size": 2,
    "captions_per_image": 2,
    "max_tokens": 16,
    "num_workers": 0,
    "augmentation": {"crop_scale": None, "brightness": 0.0, "contrast": 0.0, "flip": False},
    "overfit_images": None,
    "seed": 1,
}


def module(dataset, root, **changed):
    return PhotographDataModule(dataset=dataset, root=str(root), **SETTINGS | changed)


def test_pictures_and_captions_stay_together(tmp_path):
    colours = {"a": "red", "b": "lime", "c": "blue", "d": "white"}
    flickr8k(tmp_path)
    for name, colour in colours.items():
        draw(tmp_path / "Images" / f"{name}.jpg", colour)
    splits = module("flickr8k", tmp_path).read()
    assert {name: split.image_ids for name, split in splits.items()} == {
        "train": ["a.jpg", "b.jpg"],
        "val": ["c.jpg"],
        "test": ["d.jpg"],
    }
    assert list(splits["train"].captions[1]) == ["caption 0 of b .", "caption 1 of b ."]
    red, green, blue = splits["train"].load(1).getpixel((5, 5))
    assert green > 200 > 50 > max(red, blue)


def test_a_data_set_without_test_captions_has_no_test_split(tmp_path):
    assert list(module("coco", coco(tmp_path)).read()) == ["train", "val"]


def test_a_truncated_picture_is_met_at_set_up(tmp_path):
    path = flickr8k(tmp_path) / "Images/b.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"1 of 4 picture files are unreadable, such as .*b\.jpg \(truncated"):
        module("flickr8k", tmp_path).setup()
    assert module("flickr8k", tmp_path, on_missing="skip").read()["train"].image_ids == ["a.jpg"]


def test_leaving_out_unreadable_pictures_must_not_empty_a_split(tmp_path):
    (flickr8k(tmp_path) / "Images/c.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"no photographs for val \(there are train 2, val 0, test 1\)"):
        module("flickr8k", tmp_path, on_missing="skip").read()


def test_damage_that_shows_only_in_training_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff broken \xff\xd9")
    with pytest.raises(
        UserError, match=r"x\.jpg cannot be read: .*; replace it, or delete it and set data\.on_missing"
    ):
        PhotographFiles([tmp_path / "x.jpg"])(0)


def test_the_files_travel_to_loader_workers(tmp_path):
    draw(tmp_path / "ünï code.jpg")
    files = pickle.loads(pickle.dumps(PhotographFiles([tmp_path / "ünï code.jpg"])))
    assert isinstance(files(0), Image.Image)


def test_a_photographs_identity_changes_with_its_path_size_or_time_of_change(tmp_path):
    path = tmp_path / "a.jpg"
    for name in "ab":
        draw(tmp_path / f"{name}.jpg")
    files = PhotographFiles([path, tmp_path / "b.jpg"])
    seen = [files.identity(0), files.identity(0), files.identity(1)]
    os.utime(path, ns=(0, 1_000_000_001))
    seen.append(files.identity(0))
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(0, 1_000_000_001))
    seen.append(files.identity(0))
    assert seen[0] == seen[1] and len(set(seen)) == 4
