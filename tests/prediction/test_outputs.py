"""Pictures become JSONL, CSV or COCO results, and every reader of these finds in them what was written."""

import csv
import io
import json
import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import noise_pictures, prediction, saved_model

from captioning.data.readers.coco import read_results
from captioning.errors import UserError
from captioning.prediction import run
from captioning.prediction.inputs import InputPictures
from captioning.prediction.journal import CaptionedPicture
from captioning.prediction.outputs import FORMATS, format_of
from captioning.prediction.outputs.coco import coco_image_id
from captioning.prediction.outputs.csv import cell, without_apostrophes
from captioning.prediction.outputs.files import Format

# Texts as cells meet them: mostly of what makes cells, formulas and lines.
CELLS = st.text(st.one_of(st.sampled_from("=+-@＝;,\t\r\n\0'\" a\xa0\u200b\ufeff\u2028"), st.characters()), max_size=12)
READABLE = CELLS.filter(lambda text: not re.search("[\ud800-\udfff]", text))
LOG_PROBABILITIES = st.floats(-50, 0)


def record(path: str, caption: str | None = None, log_probability=math.nan, alternatives=(), **known):
    """A picture; its place is nothing to a format."""
    return CaptionedPicture(
        0, path, caption=caption, log_probability=log_probability, alternatives=alternatives, **known
    )


def text_of(output: str, *records: CaptionedPicture) -> str:
    file = io.BytesIO()
    written = format_of(output)(file)
    for one in records:
        written.add(one)
    written.finish()
    return file.getvalue().decode()


def table(text: str) -> list[list[str]]:
    """What Python's csv finds, the byte order mark taken away as `utf-8-sig` does."""
    read = text.encode().decode("utf-8-sig")  # encode: it is UTF-8, whatever the names
    return list(csv.reader(io.StringIO(read, newline=""), strict=True))


def test_the_suffix_chooses_the_format():
    names = {"c.jsonl": "JsonLines", "c": "JsonLines", "c.JSON": "CocoResults", "a.b/c.csv": "Csv", "x.json.csv": "Csv"}
    assert {name: format_of(name).__name__ for name in names} == names


@pytest.mark.parametrize("name", ["c.txt", "c.xlsx", "c.jsonl.gz", "run 0.7"])
def test_any_other_suffix_is_refused(name):
    said = f"output={name} ends in {Path(name).suffix}; name a .jsonl, a .csv or a .json file"
    with pytest.raises(UserError, match=re.escape(said)):
        format_of(name)


def test_csv_is_a_table_with_numbers():
    rows = [
        record("a.jpg", 'a "big", red dog', -0.25),
        record("b.jpg", error="empty file"),
        record("c.jpg", "", -math.inf),
    ]
    assert text_of("c.csv", *rows) == (
        "\ufeffpath,caption,log_probability,error\r\n"
        '"a.jpg","a ""big"", red dog",-0.25,\r\n'
        '"b.jpg",,,"empty file"\r\n'
        '"c.jpg","",,\r\n'
    )


def test_ids_are_a_column_and_a_key_after_the_path():
    rows = [record("a.jpg", "a dog", -1.0, image_id=7), record("b.jpg", error="empty file", image_id="=b")]
    head, first, second = table(text_of("c.csv", *rows))
    assert head == ["path", "image_id", "caption", "log_probability", "error"]
    assert (first, second) == (["a.jpg", "7", "a dog", "-1.0", ""], ["b.jpg", "'=b", "", "", "empty file"])
    assert text_of("c.jsonl", *rows).splitlines() == [
        '{"path": "a.jpg", "image_id": 7, "caption": "a dog", "log_probability": -1.0}',
        '{"path": "b.jpg", "image_id": "=b", "error": "empty file"}',
    ]


def test_ids_for_some_pictures_only_are_our_bug():
    with pytest.raises(AssertionError, match="all pictures have an image_id, or none has"):
        text_of("c.csv", record("a.jpg", "a dog", -1.0), record("b.jpg", "a dog", -1.0, image_id=1))


def test_no_pictures_give_a_header_or_an_empty_list():
    assert table(text_of("c.csv")) == [["path", "caption", "log_probability", "error"]]
    assert json.loads(text_of("c.json")) == []


# OWASP, CSV Injection; blanks and quotes in front, line ends within, and separators that are not ours.
@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("\nx", "'\nx"),
        ("＝1", "'＝1"),
        ("  =1", "'  =1"),
        ("\xa0\u200b=1", "'\xa0\u200b=1"),
        ("\"'=1", "'\"'=1"),
        ("'=1", "''=1"),
        ("'\tx", "''\tx"),  # or else it would read back as a tab
        ("\ufeff=1", "'\ufeff=1"),
        ("\t=1", "'\t'=1"),
        ("a;=1", "a;'=1"),
        ('a"; "=1', 'a";\' "=1'),
        ("a\n=1\r\n=2", "a\n'=1\r\n'=2"),
        ("a\t@b", "a\t'@b"),
        ("a = b - c", "a = b - c"),
        ("a,=1", "a,=1"),  # the comma is ours, and quoted
        ("x-1.jpg", "x-1.jpg"),
        ("", ""),
    ],
)
def test_what_would_be_a_formula_gets_an_apostrophe(text, safe):
    assert cell(text) == '"' + safe.replace('"', '""') + '"'


@given(CELLS)
def test_no_reader_that_splits_where_it_likes_finds_a_formula(text):
    for separator in (";", "\t"):
        for line in re.split("[\r\n]", cell(text)[1:-1]):
            for piece in line.split(separator):
                assert piece.strip(' "\xa0\u200b\ufeff')[:1] not in tuple("=+-@＝"), piece


@given(st.lists(st.tuples(READABLE, READABLE, LOG_PROBABILITIES), max_size=4))
def test_a_table_read_back_gives_all_texts_and_numbers(written):
    found = table(text_of("c.csv", *(record(*row) for row in written)))[1:]
    back = [
        (without_apostrophes(path), without_apostrophes(caption), float(number)) for path, caption, number, _ in found
    ]
    assert back == [(path, caption, round(number, 6)) for path, caption, number in written]


def test_a_name_that_is_no_utf8_is_told_in_every_format():
    name = os.fsdecode(b"latin\xe9.jpg")
    assert table(text_of("c.csv", record(name, "a dog", -1.0)))[1][0] == "latin\\udce9.jpg"
    assert json.loads(text_of("c.jsonl", record(name, "a dog", -1.0)).encode())["path"] == name
    assert json.loads(text_of("c.json", record(name, "a dog", -1.0)).encode())[0]["image_id"] == name[:-4]


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("val2017/000000000139.jpg", 139),
        ("COCO_val2014_000000000042.jpg", 42),
        ("COCO_train2014_000000581921.jpg", 581921),
        ("139.jpg", "139"),
        ("0000000000139.jpg", "0000000000139"),
        ("COCO_val2014_000000000042 (1).jpg", "COCO_val2014_000000000042 (1)"),
        ("٠٠٠٠٠٠٠٠٠١٣٩.jpg", "٠٠٠٠٠٠٠٠٠١٣٩"),
        ("a.b.jpg", "a.b"),
    ],
)
def test_the_id_of_a_picture_is_the_number_in_a_name_of_cocos_or_the_name(name, image_id):
    found = coco_image_id(name)
    assert (found, type(found)) == (image_id, type(image_id))


def test_coco_results_are_a_list_of_what_was_captioned_a_picture_a_line(tmp_path):
    rows = [
        record("0.jpg", error="empty file"),
        record("000000000139.jpg", "a \u2028dog", -1.0, [("a dog", -1.0)]),
        record("b.jpg", "", -1.0),
        record("c.jpg", "a cat", -1.0, image_id=5),
    ]
    text = text_of("c.json", *rows)
    assert text.split("\n") == [
        "[",
        '{"image_id": 139, "caption": "a \\u2028dog"},',
        '{"image_id": "b", "caption": ""},',
        '{"image_id": 5, "caption": "a cat"}',
        "]",
        "",
    ]
    (tmp_path / "c.json").write_text(text)
    assert read_results(tmp_path / "c.json") == {139: "a \u2028dog", "b": "", 5: "a cat"}


@given(st.lists(st.tuples(CELLS, st.one_of(st.none(), CELLS)), max_size=4, unique_by=lambda row: row[0]))
def test_coco_results_are_json_whatever_was_captioned(captions):
    rows = [record("x", caption, -1.0, error=caption, image_id=picture) for picture, caption in captions]
    found = json.loads(text_of("c.json", *rows).encode())
    assert found == [{"image_id": p, "caption": c} for p, c in captions if c is not None]


def test_two_pictures_with_one_id_are_refused_before_any_work():
    def check(output, *names, image_ids=None):
        format_of(output).check(output, InputPictures([Path(name) for name in names], image_ids))

    said = r"output=c\.json: a/1\.jpg and b/1\.jpg would both be image_id 1 of COCO results"
    with pytest.raises(UserError, match=said):
        check("c.json", "a/1.jpg", "b/1.jpg")
    check("c.json", "a/1.jpg", "b/1.jpg", image_ids=[1, 2])
    check("c.csv", "a/1.jpg", "b/1.jpg")
    check("c.json", "139.jpg", "000000000139.jpg")


class Markdown(Format):
    """A table as Markdown has it."""

    def add(self, record: CaptionedPicture) -> None:
        self.file.write(f"| {record.path} | {record.caption or record.error} |\n".encode())


def test_a_new_format_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, ".md", Markdown)
    model, pictures = saved_model(tmp_path / "model"), noise_pictures(tmp_path / "pictures", 3)
    pictures[1].write_bytes(b"")
    given = (model, pictures[0].parent, tmp_path / "captions.md", "batch_size=2")
    done = run.predict(prediction(*given))
    assert (done.captioned, done.failed) == (2, 1)
    assert run.predict(prediction(*given, "resume=true")) == done, "nothing is left to do"
    first, second, third = (tmp_path / "captions.md").read_text(encoding="utf-8").splitlines()
    assert second == f"| {pictures[1]} | empty file |"
    assert first.startswith(f"| {pictures[0]} | ") and third.startswith(f"| {pictures[2]} | ")
    assert {path.name for path in tmp_path.glob("captions*")} == {"captions.md", "captions.md.settings.json"}
