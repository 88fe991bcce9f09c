"""What a COCO file must be, and the sentence for each way that it is not."""

import json

import pytest

from captioning.errors import UserError
from captioning.evaluation.coco_files import read_references, read_results


@pytest.fixture
def written(tmp_path):
    def write(value: object) -> object:
        path = tmp_path / "file.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


def row(picture: object = 1, caption: object = "a dog") -> dict:
    return {"image_id": picture, "caption": caption}


def test_candidates_come_in_the_files_order_and_may_be_empty(written):
    path = written([row(2), row("b", ""), row(1, "a cat")])
    assert list(read_results(path).items()) == [(2, "a dog"), ("b", ""), (1, "a cat")]


def test_references_are_gathered_by_picture(written):
    path = written({"images": [], "annotations": [row(2), row(1), row(2, "two dogs")]})
    assert read_references(path) == {2: ["a dog", "two dogs"], 1: ["a dog"]}


def test_a_byte_order_mark_is_no_matter(written):
    assert read_results(written("\ufeff" + json.dumps([row()]))) == {1: "a dog"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[{", r"is not JSON, line 1: .*; it should look like \["),
        ("", "is not JSON"),
        ({"annotations": []}, "holds an object, not a list"),
        ([], "holds no captions"),
        ([1], r"\[0\] is a number"),
        ([row(), row(1, "x")], r"\[1\]: picture 1 has a candidate already; keep one"),
        ([row(None)], r"image_id is null; give a whole number or a string"),
        ([row(1.5)], r"image_id is 1\.5"),
        ([row(True)], r"image_id is true"),
        ([row(1, ["a"])], r'the caption of picture 1 is \["a"\]; give a string'),
        ([{"image_id": 3}], "the caption of picture 3 is null"),
    ],
)
def test_a_results_file_that_is_none_is_refused_in_one_sentence(written, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read_results(written(content))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([row()], "holds no list of annotations; a captions file looks like"),
        ({"annotations": 3}, "holds no list of annotations"),
        ({"annotations": []}, "holds no captions"),
        ({"annotations": [row(1, " \n")]}, r"annotations\[0\]: the reference of picture 1 is empty; remove it"),
        ({"annotations": [None]}, r"annotations\[0\] is null"),
    ],
)
def test_a_captions_file_that_is_none_is_refused_in_one_sentence(written, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read_references(written(content))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.json can't be read: No such file"):
        read_results(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'[{"image_id": 1, "caption": "caf\xe9"}]')
    with pytest.raises(UserError, match=r"latin.json can't be read: it is not UTF-8 text"):
        read_results(tmp_path / "latin.json")
