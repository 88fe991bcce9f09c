"""What a COCO file must be, and the sentence for each way that it is not."""

import json

import pytest

from captioning.data.readers.coco import read_references, read_results
from captioning.errors import UserError


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
        ("[{", r"file\.json:1: this is not valid JSON .*\. The file should look like \["),
        ("", "is not valid JSON"),
        ({"annotations": []}, r'is {"annotations": \[\]}, not a list\. The file should look like \['),
        ([], "holds no captions"),
        ([1], r"file\.json:1: \[0\] is 1, not an object"),
        ([row(), row(1, "x")], r"\[1\]: picture 1 has a candidate already; keep one"),
        ([row(None)], r"\[0\]\.image_id is null, not a text or a whole number"),
        ([row(1.5)], r"image_id is 1\.5"),
        ([row(True)], r"image_id is true"),
        ([row(1, ["a"])], r'caption is \["a"\], not a text'),
        ([{"image_id": 3}], r"\[0\]\.caption is missing; it should be a text"),
    ],
)
def test_a_results_file_that_is_none_is_refused_in_one_sentence(written, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read_results(written(content))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([row()], r"not an object with the key 'annotations'\. The file should look like {"),
        ({"annotations": 3}, "annotations is 3, not a list"),
        ({"annotations": []}, "holds no captions"),
        ({"annotations": [row(1, " \n")]}, r"annotations\[0\]: the reference of picture 1 is empty; remove it"),
        ({"annotations": [None]}, r"annotations\[0\] is null, not an object"),
    ],
)
def test_a_captions_file_that_is_none_is_refused_in_one_sentence(written, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read_references(written(content))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.json cannot be read: No such file"):
        read_results(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'[{"image_id": 1, "caption": "caf\xe9"}]')
    with pytest.raises(UserError, match=r"latin.json:1: this is not UTF-8 text"):
        read_results(tmp_path / "latin.json")
