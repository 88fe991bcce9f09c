"""Which annotation files are read where several lie, and what a user reads where none do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from data_sets import coco, draw, flickr8k, flickr30k, heard, karpathy, write, write_json  # noqa: F401  # `heard` is a fixture for all

from captioning.data.datasets import find_photographs, recognise
from captioning.errors import UserError

ALL_TRAIN = {"a.jpg": "train", "b.jpg": "train", "c.jpg": "train", "d.jpg": "val"}


def splits(dataset, root, layout="auto"):
    return {p.image_id: p.split for p in find_photographs(dataset, root, layout)}


def kaggle(root):
    return write(root / "captions.txt", "image,caption", *(f"{name}.jpg,words" for name in "abcd"))


def test_the_official_release_comes_before_karpathys_json(tmp_path, caplog):
    karpathy(flickr8k(tmp_path) / "dataset_flickr8k.json", ALL_TRAIN)
    assert splits("flickr8k", tmp_path)["c.jpg"] == "val"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "Flickr8k, official layout: reading Flickr8k_text/Flickr8k.token.txt, " in caplog.text
    assert "there too: karpathy (dataset_flickr8k.json), which data.layout=NAME chooses" in caplog.text


def test_a_layout_with_splits_comes_before_one_without(tmp_path):
    karpathy(flickr8k(tmp_path, lists=False) / "dataset_flickr8k.json", ALL_TRAIN)
    kaggle(tmp_path)
    assert splits("flickr8k", tmp_path) == ALL_TRAIN
    (tmp_path / "dataset_flickr8k.json").unlink()
    assert set(splits("flickr8k", tmp_path).values()) == {""}


def test_layout_names_the_one_to_read(tmp_path):
    karpathy(flickr8k(tmp_path) / "dataset_flickr8k.json", ALL_TRAIN)
    assert splits("flickr8k", tmp_path, "karpathy") == ALL_TRAIN
    with pytest.raises(UserError, match=r"data\.layout=kagle is none of auto, official, karpathy, kaggle"):
        splits("flickr8k", tmp_path, "kagle")
    with pytest.raises(
        UserError, match=r"looked for captions\.txt \(kaggle layout\); did you mean data\.layout=official\?"
    ):
        splits("flickr8k", tmp_path, "kaggle")
    with pytest.raises(
        UserError, match=r"data\.layout=kaggle is none of auto, official, official2014, karpathy, the layouts of COCO"
    ):
        splits("coco", tmp_path, "kaggle")


def test_the_official_lists_divide_kaggles_captions_too(tmp_path):
    kaggle(flickr8k(tmp_path))
    assert splits("flickr8k", tmp_path, "kaggle")["d.jpg"] == "test"


@pytest.mark.parametrize(
    "folder",
    ["Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset", ""],
)
def test_the_picture_folders_of_flickr8k_are_known(tmp_path, folder):
    kaggle(tmp_path)
    draw(tmp_path / folder / "b.jpg")
    found = {p.image_id: p.path for p in find_photographs("flickr8k", tmp_path)}
    assert found["b.jpg"] == tmp_path / folder / "b.jpg"


def test_pictures_may_be_spread_over_several_folders(tmp_path):
    kaggle(tmp_path)
    draw(tmp_path / "Images/a.jpg")
    draw(tmp_path / "Flicker8k_Dataset/b.jpg")
    found = {p.image_id: p.path for p in find_photographs("flickr8k", tmp_path)}
    assert found["a.jpg"].is_file()
    assert found["b.jpg"].is_file()
    assert found["c.jpg"] == tmp_path / "Images/c.jpg"  # where it should be


@pytest.mark.parametrize("captions", ["results.csv", "flickr30k_images/results.csv"])
@pytest.mark.parametrize("folder", ["flickr30k_images", "flickr30k-images", "flickr30k_images/flickr30k_images"])
def test_kaggles_folders_of_flickr30k_are_known(tmp_path, captions, folder):
    text = (flickr30k(tmp_path / "other") / "results.csv").read_text()
    write(tmp_path / captions, *text.splitlines())
    draw(tmp_path / folder / "a.jpg")
    assert find_photographs("flickr30k", tmp_path)[0].path == tmp_path / folder / "a.jpg"


def test_a_file_that_is_missing_beside_another_is_named(tmp_path):
    (coco(tmp_path) / "annotations/captions_train2017.json").unlink()
    with pytest.raises(
        UserError,
        match=r"captions_val2017\.json is in data\.root=.*, but captions_train2017\.json is not; "
        r"python prepare\.py download=coco .* or get .*annotations_trainval2017\.zip from cocodataset\.org",
    ):
        find_photographs("coco", tmp_path)


@pytest.mark.parametrize(
    ("dataset", "wanted", "source"),
    [
        ("coco", "annotations/captions_train2017.json and annotations/captions_val2017.json", "cocodataset.org"),
        ("flickr8k", "captions.txt (kaggle layout)", "forms.illinois.edu/sec/1713398"),
        ("flickr30k", "results_20130124.token (official layout)", "hsankesara/flickr-image-dataset"),
    ],
)
def test_an_empty_folder_gives_directions(tmp_path, dataset, wanted, source):
    root = tmp_path / "deep" / "here"
    root.mkdir(parents=True)
    with pytest.raises(UserError) as error:
        recognise(dataset, root, without="; or use none")
    message = str(error.value)
    for part in (f"data.root={root}", wanted, source, f"dataset_{dataset}.json", "caption_datasets.zip"):
        assert part in message
    assert message.endswith("set data.root to that folder; or use none")
    assert "\n" not in message


def test_a_root_that_is_no_folder_says_so(tmp_path):
    with pytest.raises(
        UserError,
        match=r"data\.root=.*/nowhere/coco does not exist; python prepare\.py download=coco .* or get train2017\.zip",
    ):
        find_photographs("coco", tmp_path / "nowhere" / "coco")
    file = write(tmp_path / "lone" / "file", "words")
    with pytest.raises(UserError, match=r"data\.root=.*/lone/file is a file, not the folder of COCO"):
        find_photographs("coco", file)


def test_the_right_folder_near_by_is_pointed_out(tmp_path):
    right = coco(tmp_path / "data" / "coco")
    hint = rf"did you mean data\.root={right}\?$"
    for wrong in (tmp_path / "data", right / "train2017", tmp_path / "data" / "cocoa", right / "annotations"):
        with pytest.raises(UserError, match=hint):
            find_photographs("coco", wrong)


def test_the_text_folder_of_flickr8k_is_told_from_its_root(tmp_path):
    with pytest.raises(
        UserError, match=rf"holds captions, but not their pictures; did you mean data\.root={tmp_path}\?"
    ):
        find_photographs("flickr8k", flickr8k(tmp_path) / "Flickr8k_text")


def test_another_data_set_in_the_folder_is_pointed_out(tmp_path):
    with pytest.raises(UserError, match=r"did you mean data=flickr30k\?"):
        find_photographs("flickr8k", flickr30k(tmp_path))


def test_a_closed_folder_is_passed_by_in_the_search(tmp_path, monkeypatch):
    root = tmp_path / "data"
    (root / "lost+found").mkdir(parents=True)
    is_file = Path.is_file

    def closed(path):
        if "lost+found" in path.parts:
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(UserError, match="no captions of COCO"):
        find_photographs("coco", root)


def test_an_unknown_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.dataset=coca is none of coco, flickr8k, flickr30k"):
        find_photographs("coca", tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "captions.csv", "metadata.jsonl"])
def test_a_folder_of_ones_own_is_known_for_one(tmp_path, name):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match=r"prepare\.py download=coco"):
        find_photographs("coco", tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="did you mean data=folder, which takes"):
        find_photographs("coco", tmp_path)


def test_karpathys_json_of_coco_stands_without_the_official_files(tmp_path):
    karpathy(tmp_path / "dataset_coco.json", {"1.jpg": "train"})
    write_json(tmp_path / "annotations/captions_val2017.json", json.loads('{"images": [], "annotations": []}'))
    assert splits("coco", tmp_path) == {1: "train"}


def test_reading_annotations_needs_no_torch():
    program = "import sys, captioning.data.datasets, captioning.data.splits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
