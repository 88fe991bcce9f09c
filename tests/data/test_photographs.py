"""The data module of photographs in files."""

import os
import pickle

import pytest
import torch
from data_sets import coco, draw, draw_photograph, flickr8k
from PIL import Image

from captioning.data.batch import PictureFormat
from captioning.data.datamodule import PhotographDataModule, PhotographFiles
from captioning.data.records import DamagedPicture
from captioning.errors import UserError

CROPS = {"crop_scale": [0.7, 1.0], "brightness": 0.0, "contrast": 0.0, "flip": True}
SETTINGS = {
    "layout": "auto",
    "fraction": 1.0,
    "use_restval": True,
    "on_missing": "error",
    "prepared": "auto",
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
        module("flickr8k", tmp_path).new_tokenizer()
    assert module("flickr8k", tmp_path, on_missing="skip").read()["train"].image_ids == ["a.jpg"]


def test_leaving_out_unreadable_pictures_must_not_empty_a_split(tmp_path):
    (flickr8k(tmp_path) / "Images/c.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"no photographs for val \(there are train 2, val 0, test 1\)"):
        module("flickr8k", tmp_path, on_missing="skip").read()


def test_damage_that_shows_only_in_training_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff broken \xff\xd9")
    with pytest.raises(
        DamagedPicture, match=r"x\.jpg cannot be read: .*; replace it, or go on without it by data\.on_missing=skip"
    ):
        PhotographFiles([tmp_path / "x.jpg"], "error")(0)
    with pytest.raises(DamagedPicture, match=r"x\.jpg cannot be read: .*; replace it, or delete it$"):
        PhotographFiles([tmp_path / "x.jpg"], "skip")(0)


def test_the_files_travel_to_loader_workers(tmp_path):
    draw(tmp_path / "ünï code.jpg")
    files = pickle.loads(pickle.dumps(PhotographFiles([tmp_path / "ünï code.jpg"], "error")))
    assert isinstance(files(0), Image.Image)


def test_a_photographs_identity_changes_with_its_path_size_or_time_of_change(tmp_path):
    path = tmp_path / "a.jpg"
    for name in "ab":
        draw(tmp_path / f"{name}.jpg")
    files = PhotographFiles([path, tmp_path / "b.jpg"], "error")
    seen = [files.identity(0), files.identity(0), files.identity(1)]
    os.utime(path, ns=(0, 1_000_000_001))
    seen.append(files.identity(0))
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(0, 1_000_000_001))
    seen.append(files.identity(0))
    assert seen[0] == seen[1] and len(set(seen)) == 4


def prepared_set(root, size=16):
    """Flickr8k's layout with photographs of 120 x 90 pixels, of which those of train are prepared."""
    flickr8k(root)
    for seed, name in enumerate("abcd"):
        draw_photograph(root / "Images" / f"{name}.jpg", seed)
    made = module("flickr8k", root)
    assert made.prepare(size, num_workers=0).stored == 2
    return made


def fitted(root, pixels=16, **changed):
    made = module("flickr8k", root, augmentation=CROPS, **changed)
    made.connect(made.new_tokenizer(), PictureFormat(size=(pixels, pixels)), max_positions=64)
    return made


def test_augmentation_reads_prepared_pictures_and_nothing_else_does(tmp_path, caplog):
    prepared_set(tmp_path)
    with caplog.at_level("INFO"):
        splits = fitted(tmp_path).splits
    assert "training pictures: 2 prepared ones of 16 pixels in" in caplog.text
    assert splits["train"].load_augmented(0).size == (21, 16)
    assert splits["train"].load(0).size == splits["val"].load(0).size == (120, 90)
    assert splits["val"].load_augmented is None and splits["test"].load_augmented is None


def test_training_rows_are_those_of_the_files_but_for_the_detail(tmp_path):
    prepared_set(tmp_path)
    small = fitted(tmp_path).rows("train", training=True)
    whole = fitted(tmp_path, prepared=None).rows("train", training=True)
    for index in ((0, 0), (0, 1), (1, 0)):
        difference = (small[index].pixels.int() - whole[index].pixels.int()).abs().float()
        assert 0 < difference.mean() < 10
    assert torch.equal(
        fitted(tmp_path).rows("val")[0, 0].pixels, fitted(tmp_path, prepared=None).rows("val")[0, 0].pixels
    )


def test_a_photograph_that_changed_is_read_from_its_file(tmp_path, caplog):
    prepared_set(tmp_path)
    draw(tmp_path / "Images/b.jpg", "blue")
    splits = fitted(tmp_path).splits
    assert [splits["train"].load_augmented(i).size for i in (0, 1)] == [(21, 16), (12, 8)]
    assert "1 others are new or have changed since" in caplog.text
    draw(tmp_path / "Images/a.jpg", "blue")
    assert fitted(tmp_path).splits["train"].load_augmented is None
    assert "none is current" in caplog.text


def test_pictures_too_small_for_the_model_are_not_read(tmp_path, caplog):
    prepared_set(tmp_path)
    assert fitted(tmp_path, pixels=24).splits["train"].load_augmented is None
    assert "have 16 pixels on the shorter side, and the model wants 24; python prepare.py ... size=32" in caplog.text
    with pytest.raises(UserError, match="the model wants 24"):
        fitted(tmp_path, pixels=24, prepared=str(tmp_path / "prepared"))


def test_a_named_folder_must_hold_prepared_pictures(tmp_path):
    prepared_set(tmp_path)
    (tmp_path / "prepared").rename(tmp_path / "small")
    assert fitted(tmp_path).splits["train"].load_augmented is None
    assert fitted(tmp_path, prepared=str(tmp_path / "small")).splits["train"].load_augmented is not None
    with pytest.raises(UserError, match=r"data\.prepared=nowhere holds no prepared pictures; make them with"):
        fitted(tmp_path, prepared="nowhere")


def test_overfitting_reads_the_files_themselves(tmp_path):
    prepared_set(tmp_path)
    assert fitted(tmp_path, overfit_images=1).splits["train"].load_augmented is None


def test_preparing_needs_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"data\.prepared=null names no folder"):
        module("flickr8k", flickr8k(tmp_path), prepared=None).prepare(16, 0)
