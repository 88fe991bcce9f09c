"""COCO's and Karpathy's JSON files, and every way in which one can be malformed."""

import json

import pytest
from data_sets import by_id, coco, coco_file, draw, heard, karpathy, write_json  # noqa: F401  # `heard` is a fixture for all
from pycocotools.coco import COCO

from captioning.data.datasets import find_photographs
from captioning.data.readers.annotations import tidied
from captioning.errors import UserError

# COCO


def test_coco_numbers_its_photographs_and_keeps_their_captions_order(tmp_path):
    photographs = find_photographs("coco", coco(tmp_path))
    assert [(p.image_id, p.split) for p in photographs] == [(1, "train"), (2, "train"), (3, "val")]
    assert photographs[2].captions == ("caption 0 of 3", "caption 1 of 3")
    assert photographs[2].path == tmp_path / "val2017" / "000000000003.jpg"
    assert photographs[2].path.is_file()


@pytest.mark.parametrize("folders", ["{}", "images/{}", "images", ""])
@pytest.mark.parametrize("year", [2017, 2014])
def test_pictures_lie_where_people_have_them(tmp_path, folders, year):
    for split, ids in {"train": [1, 2], "val": [3]}.items():
        write_json(tmp_path / "annotations" / f"captions_{split}{year}.json", coco_file(ids))
        for i in ids:
            draw(tmp_path / folders.format(f"{split}{year}") / f"{i:012d}.jpg")
    photographs = find_photographs("coco", tmp_path)
    assert [(p.image_id, p.split) for p in photographs] == [(1, "train"), (2, "train"), (3, "val")]
    assert all(p.path.is_file() for p in photographs)


def test_names_may_hold_a_folder_or_be_absolute_within_the_root(tmp_path):
    data = coco_file([1, 2])
    data["images"][0]["file_name"] = "train2017/000000000001.jpg"
    data["images"][1]["file_name"] = str(tmp_path / "train2017/000000000002.jpg")
    write_json(coco(tmp_path) / "annotations/captions_train2017.json", data)
    assert all(p.path.is_file() for p in find_photographs("coco", tmp_path))


def test_captions_are_tidied_and_empty_ones_counted(tmp_path, caplog):
    data = coco_file([1, 2])
    data["annotations"][0]["caption"] = " two\n words\u2009\t. "
    data["annotations"][1]["caption"] = " \n"
    data["annotations"].append(dict(data["annotations"][2]))  # the same annotation twice
    data["annotations"].append(data["annotations"][2] | {"id": 99})  # another person's same words
    data["images"].append({"id": 7, "file_name": "7.jpg"})
    write_json(coco(tmp_path) / "annotations/captions_train2017.json", data)
    photographs = by_id(find_photographs("coco", tmp_path))
    assert photographs[1].captions == ("two words .",)
    assert photographs[2].captions == ("caption 0 of 2", "caption 1 of 2", "caption 0 of 2")
    assert 7 not in photographs
    assert (
        "1 empty captions left out, 1 repeated rows left out, 1 photographs without a caption left out" in caplog.text
    )


def test_pycocotools_prints_nothing(tmp_path, capsys):
    find_photographs("coco", coco(tmp_path))
    assert capsys.readouterr() == ("", "")


def changed(key, index, **values):
    def change(data):
        data[key][index].update(values)

    return change


def without(key, index, name):
    return lambda data: data[key][index].pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("annotations", 3, "image_id"), r"annotations\[3\]\.image_id is missing; it should be a whole number"),
        (changed("annotations", 3, image_id="2"), r'annotations\[3\]\.image_id is "2", not a whole number'),
        (changed("annotations", 1, caption=None), r"annotations\[1\]\.caption is null, not a text"),
        (changed("annotations", 1, id=True), r"annotations\[1\]\.id is true, not a whole number"),
        (changed("annotations", 2, image_id=55), r"annotations\[2\] is a caption of image 55, which is not in"),
        (without("images", 1, "file_name"), r"images\[1\]\.file_name is missing"),
        (changed("images", 1, file_name="../x.jpg"), r"images\[1\] names the file '\.\./x\.jpg', which leads out of"),
        (changed("images", 1, file_name="/etc/x.jpg"), "leads out of"),
        (changed("images", 1, file_name="C:\\x.jpg"), "leads out of"),
        (changed("images", 1, file_name="a\\..\\..\\x.jpg"), "leads out of"),
        (changed("images", 1, file_name=""), "leads out of"),
        (changed("images", 1, id=1), r"image 1 is .*01\.jpg \(.*images\[0\]\) and .*02\.jpg \(.*images\[1\]\)"),
        (changed("images", 1, id=3), r"image 3 is in train \(.*train2017\.json:\d+: images\[1\]\) and in val"),
        (lambda data: data.pop("annotations"), r"json:1: annotations is missing; it should be a list"),
        (lambda data: data.update(images={}), r"json:1: images is \{\}, not a list"),
        (lambda data: data["images"].append(5), r"images\[2\] is 5, not an object"),
    ],
)
def test_a_malformed_coco_file_is_named_with_the_key(tmp_path, change, message):
    data = coco_file([1, 2])
    path = coco(tmp_path) / "annotations/captions_train2017.json"
    if message.startswith("image 3"):
        data["annotations"] = data["annotations"][:2]
    change(data)
    write_json(path, data)
    with pytest.raises(UserError, match=message) as error:
        find_photographs("coco", tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [],\n "annotations": [,]}', r"2017\.json:2: this is not valid JSON \(.*\); fetch it again$"),
        (b'{"images": [\n{"id": 1},\n', r"2017\.json:3: .* the file ends too early, fetch it again"),
        (b"", r"2017\.json:1: .* ends too early"),
        (b'{"images": "\n\xff"}', r"2017\.json:2: this is not UTF-8"),
        (b"[" * 200_000, "nests too deeply"),
        (b"[]", r"2017\.json is \[\], not an object with the key 'images'"),
    ],
)
def test_what_is_no_json_is_named_with_its_line(tmp_path, content, message):
    (coco(tmp_path) / "annotations/captions_val2017.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        find_photographs("coco", tmp_path)


# Karpathy's JSON


def test_karpathys_splits_keep_their_names(tmp_path):
    splits = {"a.jpg": "train", "b.jpg": "restval", "c.jpg": "val", "d.jpg": "test"}
    karpathy(tmp_path / "dataset_flickr8k.json", splits)
    draw(tmp_path / "Flicker8k_Dataset" / "a.jpg")
    photographs = find_photographs("flickr8k", tmp_path)
    assert {p.image_id: p.split for p in photographs} == splits
    assert photographs[0].captions == ("caption 0 of a.jpg", "caption 1 of a.jpg")
    assert photographs[0].path == tmp_path / "Flicker8k_Dataset/a.jpg"


def test_karpathys_files_of_2014_are_found_in_the_folders_of_2017(tmp_path):
    names = {f"COCO_train2014_{n:012d}.jpg": "train" for n in (1, 2, 3)}
    karpathy(tmp_path / "dataset_coco.json", names, filepath="train2014")
    draw(tmp_path / "train2014/COCO_train2014_000000000001.jpg")
    draw(tmp_path / "val2017/000000000002.jpg")
    photographs = find_photographs("coco", tmp_path)
    assert [str(p.path.relative_to(tmp_path)) for p in photographs] == [
        "train2014/COCO_train2014_000000000001.jpg",
        "val2017/000000000002.jpg",
        "train2014/COCO_train2014_000000000003.jpg",  # is nowhere: reported as missing under the name of the file
    ]
    assert [p.image_id for p in photographs] == [1, 2, 3]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"split": "trian"}, r"images\[0\]\.split is 'trian', not one of train, restval, val, test"),
        ({"cocoid": "9"}, r'images\[0\]\.cocoid is "9", not a whole number'),
        ({"cocoid": 1}, r"image 1 is .*a\.jpg \(.*images\[0\]\) and .*b\.jpg \(.*images\[1\]\)"),
        ({"filepath": "../.."}, "leads out of"),
        ({"sentences": [{"tokens": []}]}, r"images\[0\]\.sentences\[0\]\.raw is missing"),
    ],
)
def test_a_malformed_karpathy_file_is_named_with_the_key(tmp_path, extra, message):
    karpathy(tmp_path / "dataset_coco.json", {"a.jpg": "train", "b.jpg": "train"}, **extra)
    with pytest.raises(UserError, match=message):
        find_photographs("coco", tmp_path)


def test_half_a_surrogate_pair_does_not_reach_the_tokenizer():
    assert tidied(json.loads('"a \\ud83d dog \\ud83d\\udc15"')) == "a \ufffd dog 🐕"


# Real files


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_is_read_as_pycocotools_reads_it(shared_data, split):
    reference = COCO(shared_data / f"coco/annotations/captions_{split}2017.json")
    mine = [p for p in find_photographs("coco", shared_data / "coco") if p.split == split]
    assert [p.image_id for p in mine] == list(reference.imgs)
    for photograph in mine:
        theirs = tuple(" ".join(a["caption"].split()) for a in reference.imgToAnns[photograph.image_id])
        assert photograph.captions == theirs
        assert photograph.path.name == reference.imgs[photograph.image_id]["file_name"]
        assert photograph.path.is_file()


def test_coco_has_all_its_validation_captions(shared_data, tmp_path):
    coco(tmp_path)
    path = tmp_path / "annotations/captions_val2017.json"
    path.write_bytes((shared_data / "coco-full-text/captions_val2017.json").read_bytes())
    validation = [p for p in find_photographs("coco", tmp_path) if p.split == "val"]
    assert (len(validation), sum(len(p.captions) for p in validation)) == (5000, 25_014)


def test_karpathys_coco_agrees_with_coco(shared_data):
    official, karpathys = (by_id(find_photographs("coco", shared_data / "coco", k)) for k in ("official", "karpathy"))
    assert official.keys() == karpathys.keys()
    for image_id, photograph in karpathys.items():
        assert sorted(photograph.captions) == sorted(official[image_id].captions)
        assert photograph.path == official[image_id].path
    splits = [p.split for p in karpathys.values()]
    assert [splits.count(split) for split in ("train", "restval", "val", "test")] == [48, 16, 16, 16]


def test_a_malformed_entry_is_named_with_its_line(tmp_path):
    coco(tmp_path)
    path = tmp_path / "annotations" / "captions_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][2]["caption"] = 7
    path.write_text(json.dumps(content, indent=1))
    (line,) = [n for n, text in enumerate(path.read_text().splitlines(), start=1) if text.strip() == '"caption": 7']
    with pytest.raises(UserError, match=rf"train2017\.json:{line}: annotations\[2\]\.caption is 7, not a text"):
        find_photographs("coco", tmp_path)
