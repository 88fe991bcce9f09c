"""From splits, or photographs in files, to batches through the LightningDataModule."""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from data_sets import coco, draw, draw_photograph, flickr8k
from PIL import Image
from support import CAPTIONS, TwoColouredPictures

from captioning.data.batch import IGNORE, CaptionBatch, PictureFormat
from captioning.data.datamodule import CaptionDataModule, PhotographDataModule, Photographs
from captioning.data.records import DamagedPicture, Split
from captioning.data.stored import PictureFiles
from captioning.errors import UserError
from captioning.shapes.datamodule import ShapesDataModule

# From a handful of splits to batches through the LightningDataModule.


NO_AUGMENTATION = {"crop_scale": None, "brightness": 0.0, "contrast": 0.0, "flip": False}
AUGMENTATION = {"crop_scale": [0.3, 0.9], "brightness": 0.2, "contrast": 0.2, "flip": True}
COMMON: dict[str, Any] = {
    "tokenizer": None,
    "batch_size": 3,
    "captions_per_image": 5,
    "max_tokens": 64,
    "num_workers": 0,
    "augmentation": NO_AUGMENTATION,
    "overfit_images": None,
    "seed": 1,
}
COUNTS = {"train": 7, "val": 5}


class Drawn(CaptionDataModule):
    """Pictures of two colours; picture i of a split has 1 + i % 6 captions."""

    def read(self) -> dict[str, Split]:
        return {
            name: Split(
                [f"{name} {i}" for i in range(count)],
                [[f"{CAPTIONS[k % len(CAPTIONS)]} {i}" for k in range(1 + i % 6)] for i in range(count)],
                TwoColouredPictures(),
            )
            for name, count in COUNTS.items()
        }


def module(kind: type[CaptionDataModule] = Drawn, **changed: Any) -> CaptionDataModule:
    made = kind(**COMMON | changed)
    made.connect(made.new_tokenizer(), PictureFormat(size=(16, 16)), max_positions=64)
    return made


def captions_in(made: CaptionDataModule, batches: list[CaptionBatch]) -> list[str]:
    found = []
    for batch in batches:
        for index, labels in zip(batch.caption_index, batch.labels, strict=True):
            found += [made.tokenizer.decode(labels[index == k].tolist()) for k in range(1, int(index.max()) + 1)]
    return sorted(found)


def captions_of(split: Split) -> list[str]:
    return sorted(caption for captions in split.captions for caption in captions)


def equal(one: CaptionBatch, other: CaptionBatch) -> bool:
    names = ("pixel_values", "input_ids", "position_ids", "caption_index", "labels")
    return one.image_ids == other.image_ids and all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)


@pytest.mark.parametrize("captions_per_image", [1, 2, 5])
def test_every_loader_gives_every_caption_once(captions_per_image):
    made = module(captions_per_image=captions_per_image)
    assert captions_in(made, list(made.train_dataloader())) == captions_of(made.splits["train"])
    assert captions_in(made, list(made.val_dataloader())) == captions_of(made.splits["val"])


def test_batches_are_padded_only_to_their_own_longest_row():
    batches = list(module(batch_size=1).train_dataloader())
    assert all((batch.caption_index > 0).all() for batch in batches), "a row alone needs no padding"
    assert len({batch.input_ids.shape[1] for batch in batches}) > 1


def test_bytes_leave_the_loader():
    batch = next(iter(module().train_dataloader()))
    assert batch.pixel_values.dtype == torch.uint8 and batch.pixel_values.shape == (3, 3, 16, 16)


def test_training_is_shuffled_and_validation_in_order():
    made = module()

    def ids(loader) -> list[str]:
        return [image_id for batch in loader for image_id in batch.image_ids]

    assert ids(made.val_dataloader()) == [f"val {i}" for i in range(5)]
    trained = ids(made.train_dataloader())
    assert set(trained) == {f"train {i}" for i in range(7)}
    assert trained != sorted(trained)


def epochs_of(made: CaptionDataModule, count: int = 2) -> list[CaptionBatch]:
    loader = made.train_dataloader()
    batches = []
    for epoch in range(count):
        loader.batch_sampler.sampler.set_epoch(epoch)  # as Lightning does
        batches += list(loader)
    return batches


def test_any_number_of_workers_gives_the_same_batches():
    alone = epochs_of(module(augmentation=AUGMENTATION))
    shared = epochs_of(module(augmentation=AUGMENTATION, num_workers=2))
    assert len(alone) == len(shared) == 6
    assert all(equal(one, other) for one, other in zip(alone, shared, strict=True))
    assert not any(equal(one, other) for one, other in zip(alone[:3], alone[3:], strict=True)), "epochs differ"


def test_lightning_tells_the_loader_its_epoch():
    from lightning.fabric.utilities.data import _set_sampler_epoch

    made = module(augmentation=AUGMENTATION)
    loader = made.train_dataloader()
    _set_sampler_epoch(loader, 1)
    assert all(equal(one, other) for one, other in zip(list(loader), epochs_of(made)[3:], strict=True))


def test_only_training_is_augmented():
    made, plain = module(augmentation=AUGMENTATION), module()
    for name in ("val", "train"):
        assert torch.equal(made.rows(name)[0, 0].pixels, plain.rows(name)[0, 0].pixels)
    assert not torch.equal(made.rows("train", training=True)[0, 0].pixels, plain.rows("train")[0, 0].pixels)


def test_cut_captions_are_one_warning_a_split(caplog):
    with caplog.at_level(logging.WARNING):
        module(max_tokens=8)
    assert len(caplog.records) == 2
    assert all("longer than data.max_tokens=8 and were cut" in record.getMessage() for record in caplog.records)


def test_no_position_is_beyond_the_limit():
    made = module(max_tokens=8)
    batches = [*made.train_dataloader(), *made.val_dataloader()]
    assert max(int(batch.position_ids.max()) for batch in batches) == 7
    assert max(int((batch.labels != IGNORE).sum(1).max()) for batch in batches) > 8, "the limit is a caption's"


def test_overfitting_trains_and_validates_on_the_same_first_captions_as_they_are():
    made = module(overfit_images=2, augmentation=AUGMENTATION)
    assert made.splits.keys() == {"train", "val"}
    for loader in (made.train_dataloader(), made.val_dataloader()):
        batches = list(loader)
        assert sorted(image_id for batch in batches for image_id in batch.image_ids) == ["train 0", "train 1"]
        assert captions_in(made, batches) == sorted(captions[0] for captions in made.read()["train"].captions[:2])
        assert all(torch.equal(b.pixel_values[:, 0, :, 0], torch.full((2, 16), 255).byte()) for b in batches)
    assert len(module(overfit_images=99).splits["train"]) == 7


def test_a_tokenizer_is_learned_from_the_training_captions_or_loaded(tmp_path):
    learned = module().tokenizer
    assert 257 < learned.vocab_size <= CaptionDataModule.TRAINED_VOCAB_SIZE
    Path(tmp_path / "tokenizer.json").write_text(learned.to_json(), encoding="utf-8")
    assert module(tokenizer=str(tmp_path)).tokenizer.encode(CAPTIONS) == learned.encode(CAPTIONS)


def test_captions_longer_than_the_decoder_are_refused_with_both_numbers():
    made = Drawn(**COMMON)
    said = (
        r"data\.max_tokens=64 is more than the decoder's 9 positions, and a caption of train has \d\d tokens; lower it"
    )
    with pytest.raises(UserError, match=said):
        made.connect(made.new_tokenizer(), PictureFormat(size=(16, 16)), max_positions=9)
    cut = Drawn(**COMMON | {"max_tokens": 9})
    cut.connect(cut.new_tokenizer(), PictureFormat(size=(16, 16)), max_positions=9)


def test_one_split_alone_can_be_connected():
    made, tokenizer = Drawn(**COMMON), module().tokenizer
    made.connect(tokenizer, PictureFormat(size=(16, 16)), max_positions=64, only="val")
    assert made.tokens.keys() == {"val"} and len(list(made.val_dataloader())) == 2
    with pytest.raises(UserError, match="split=test is not in this data set; it has train, val"):
        made.connect(tokenizer, PictureFormat(size=(16, 16)), max_positions=64, only="test")


def test_no_batch_is_made_before_the_model_is_known():
    with pytest.raises(AssertionError, match=r"connect.* says first which model the data is for"):
        Drawn(**COMMON).val_dataloader()


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 2]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])])
def test_samples_are_spread_over_the_validation_pictures(count, expected):
    made = module(augmentation=AUGMENTATION)
    pixels, image_ids, captions = made.samples(count)
    assert image_ids == [f"val {i}" for i in expected]
    assert pixels[:, 1, 0, 0].tolist() == expected and pixels.dtype == torch.uint8
    assert captions == [list(made.splits["val"].captions[i]) for i in expected]


def shapes(**changed: Any) -> CaptionDataModule:
    sizes = {"image_size": 16, "train_pictures": 6, "val_pictures": 4, "test_pictures": 3}
    return module(ShapesDataModule, **sizes | changed)


def test_shapes_have_a_test_split_and_a_floor():
    made = shapes()
    assert captions_in(made, list(made.test_dataloader())) == captions_of(made.splits["test"])
    assert made.perplexity_floor is not None and 1 < made.perplexity_floor < 10


def test_what_is_learned_by_heart_has_no_floor():
    assert shapes(overfit_images=2).perplexity_floor is None
    assert module().perplexity_floor is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_in_mid_epoch_without_loading_what_was_done(num_workers):
    def batches(loader, epoch):
        loader.batch_sampler.set_epoch(epoch)
        return [batch.image_ids for batch in loader]

    loader = module(num_workers=num_workers).train_dataloader()
    whole, after = batches(loader, 1), batches(loader, 2)
    assert loader.state_dict() == {"batches": len(whole)}
    resumed = module(num_workers=num_workers).train_dataloader()
    resumed.load_state_dict({"batches": 2})
    assert len(resumed) == len(whole)
    assert batches(resumed, 1) == whole[2:]
    assert batches(resumed, 2) == after, "only the one epoch begins in its middle"


# The data module of photographs in files.


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


def photographs(dataset, root, **changed):
    return PhotographDataModule(dataset=dataset, root=str(root), **SETTINGS | changed)


def test_pictures_and_captions_stay_together(tmp_path):
    colours = {"a": "red", "b": "lime", "c": "blue", "d": "white"}
    flickr8k(tmp_path)
    for name, colour in colours.items():
        draw(tmp_path / "Images" / f"{name}.jpg", colour)
    splits = photographs("flickr8k", tmp_path).read()
    assert {name: split.image_ids for name, split in splits.items()} == {
        "train": ["a.jpg", "b.jpg"],
        "val": ["c.jpg"],
        "test": ["d.jpg"],
    }
    assert list(splits["train"].captions[1]) == ["caption 0 of b .", "caption 1 of b ."]
    red, green, blue = splits["train"].load(1).getpixel((5, 5))
    assert green > 200 > 50 > max(red, blue)


def test_a_data_set_without_test_captions_has_no_test_split(tmp_path):
    assert list(photographs("coco", coco(tmp_path)).read()) == ["train", "val"]


def test_a_truncated_picture_is_met_at_set_up(tmp_path):
    path = flickr8k(tmp_path) / "Images/b.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"1 of 4 picture files are unreadable, such as .*b\.jpg \(truncated"):
        photographs("flickr8k", tmp_path).new_tokenizer()
    assert photographs("flickr8k", tmp_path, on_missing="skip").read()["train"].image_ids == ["a.jpg"]


def test_where_all_pictures_lie_elsewhere_the_error_says_where_they_are_and_which_line_names_them(tmp_path):
    flickr8k(tmp_path)
    (tmp_path / "Images").rename(tmp_path / "photographs")
    expected = r"all 4 .*\(the first is named in \S+Flickr8k\.token\.txt:1\); a\.jpg lies in \S+/photographs: move"
    with pytest.raises(UserError, match=expected):
        photographs("flickr8k", tmp_path).read()


def test_leaving_out_unreadable_pictures_must_not_empty_a_split(tmp_path):
    (flickr8k(tmp_path) / "Images/c.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"no photographs for val \(there are train 2, val 0, test 1\)"):
        photographs("flickr8k", tmp_path, on_missing="skip").read()


def test_damage_that_shows_only_in_training_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff broken \xff\xd9")
    with pytest.raises(
        DamagedPicture, match=r"x\.jpg cannot be read: .*; replace it, or go on without it by data\.on_missing=skip"
    ):
        Photographs(PictureFiles([tmp_path / "x.jpg"]), "error")(0)
    with pytest.raises(DamagedPicture, match=r"x\.jpg cannot be read: .*; replace it, or delete it$"):
        Photographs(PictureFiles([tmp_path / "x.jpg"]), "skip")(0)


def test_the_files_travel_to_loader_workers(tmp_path):
    draw(tmp_path / "ünï code.jpg")
    files = pickle.loads(pickle.dumps(Photographs(PictureFiles([tmp_path / "ünï code.jpg"]), "error")))
    assert isinstance(files(0), Image.Image)


def test_a_photographs_identity_changes_with_its_path_size_or_time_of_change(tmp_path):
    path = tmp_path / "a.jpg"
    for name in "ab":
        draw(tmp_path / f"{name}.jpg")
    files = Photographs(PictureFiles([path, tmp_path / "b.jpg"]), "error")
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
    made = photographs("flickr8k", root)
    assert made.prepare(size, num_workers=0).stored == 2
    return made


def fitted(root, pixels=16, **changed):
    made = photographs("flickr8k", root, augmentation=CROPS, **changed)
    made.connect(made.new_tokenizer(), PictureFormat(size=(pixels, pixels)), max_positions=64)
    return made


def test_augmentation_reads_prepared_pictures_and_nothing_else_does(tmp_path, caplog):
    prepared_set(tmp_path)
    with caplog.at_level("INFO"):
        data = fitted(tmp_path)
    assert "training pictures: 2 prepared ones of 16 pixels in" in caplog.text
    assert data.training_pictures(0).size == (21, 16)
    assert data.splits["train"].load(0).size == data.splits["val"].load(0).size == (120, 90)
    assert data.rows("train")._load is data.splits["train"].load, "without augmentation"


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
    data = fitted(tmp_path)
    assert [data.training_pictures(i).size for i in (0, 1)] == [(21, 16), (12, 8)]
    assert "1 others are new or have changed since" in caplog.text
    draw(tmp_path / "Images/a.jpg", "blue")
    assert fitted(tmp_path).training_pictures is None
    assert "none is current" in caplog.text


def test_pictures_too_small_for_the_model_are_not_read(tmp_path, caplog):
    prepared_set(tmp_path)
    assert fitted(tmp_path, pixels=24).training_pictures is None
    assert "have 16 pixels on the shorter side, and the model wants 24; python prepare.py ... size=32" in caplog.text
    with pytest.raises(UserError, match="the model wants 24"):
        fitted(tmp_path, pixels=24, prepared=str(tmp_path / "prepared"))


def test_a_named_folder_must_hold_prepared_pictures(tmp_path):
    prepared_set(tmp_path)
    (tmp_path / "prepared").rename(tmp_path / "small")
    assert fitted(tmp_path).training_pictures is None
    assert fitted(tmp_path, prepared=str(tmp_path / "small")).training_pictures is not None
    with pytest.raises(UserError, match=r"data\.prepared=nowhere holds no prepared pictures; make them with"):
        fitted(tmp_path, prepared="nowhere")


def test_overfitting_reads_the_files_themselves(tmp_path):
    prepared_set(tmp_path)
    assert fitted(tmp_path, overfit_images=1).training_pictures is None


def test_preparing_needs_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"data\.prepared=null names no folder"):
        photographs("flickr8k", flickr8k(tmp_path), prepared=None).prepare(16, 0)
