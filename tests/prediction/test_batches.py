"""How pictures are batched for prediction: what can be read is stacked, the rest is named."""

from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from captioning.data.batch import PictureFormat
from captioning.data.images import read_picture
from captioning.data.transforms import EvaluationTransform
from captioning.prediction.batches import PictureBatch, PictureItems, Share, collate_pictures, picture_loader
from captioning.prediction.sources import PictureFiles, find_pictures
from captioning.prediction.thumbnails import thumbnail


def batches(paths: list[Path], workers: int) -> list[PictureBatch]:
    items = PictureItems(PictureFiles(paths), len(paths), EvaluationTransform(PictureFormat((8, 6))))
    return list(DataLoader(items, batch_size=2, num_workers=workers, collate_fn=collate_pictures))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_can_be_read_and_name_the_rest(tmp_path, workers):
    for name, colour in (("0.png", "red"), ("2.png", "blue")):
        Image.new("RGB", (30, 20), colour).save(tmp_path / name)
    for name in ("1.png", "3.png", "5.png"):
        (tmp_path / name).touch()
    first, second, third = batches([tmp_path / f"{number}.png" for number in (0, 1, 3, 4, 2, 5)], workers)
    assert first.indices == [0]
    assert first.pixel_values.shape == (1, 3, 8, 6)
    assert first.pixel_values[0, :, 0, 0].tolist() == [255, 0, 0]
    assert first.unreadable == [(1, "empty file")]
    assert second == PictureBatch([], None, [(2, "empty file"), (3, "no such file")], [])
    assert third.indices == [4]
    assert third.pixel_values[0, :, 0, 0].tolist() == [0, 0, 255]
    assert third.unreadable == [(5, "empty file")]


def test_thumbnails_are_made_on_the_way_where_they_are_wanted(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "0.png")
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for wanted, expected in ((True, [thumbnail(read_picture(paths[0]))]), (False, [None])):
        loader = picture_loader(
            PictureFiles(paths),
            2,
            Share(0, 2, batch_size=2),
            PictureFormat((8, 6)),
            num_workers=0,
            pin_memory=False,
            thumbnails=wanted,
        )
        assert [batch.thumbnails for batch in loader] == [expected]


def test_the_awkward_folder_can_be_batched_whole(shared_data):
    paths = find_pictures(shared_data / "awkward-images")
    assert len(paths) == 21
    loaded = batches(paths, workers=0)
    assert sum(len(batch.indices) for batch in loaded) == 15
    refused = {paths[index].name for batch in loaded for index, _ in batch.unreadable}
    assert refused == {"truncated.jpg", "header-only.jpg", "empty.jpg", "text.jpg", "noise.png", "bomb.png"}
