"""The file of captions is complete and in order, or not there; what existed is never lost by accident.

What holds for the rows of one format holds for those of all: they differ in `formats.py` alone.
"""

import csv
import json
import logging
import os
import re
import tempfile
from pathlib import Path

import pytest

from captioning.errors import UserError
from captioning.prediction.formats import Row
from captioning.prediction.outputs import check_output, is_complete, rows_of
from captioning.prediction.results import CaptionWriter

SETTINGS = {"decoding": {"num_beams": 3}, "checkpoint": "läufe/best.ckpt"}


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_table(path: Path) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_rows_are_written_in_order_and_settings_once(tmp_path):
    output = tmp_path / "captions.jsonl"
    with CaptionWriter(output, SETTINGS) as writer:
        writer.write_error(1, Path("b.jpg"), "empty file")  # a batch names its unreadable pictures first
        writer.write_caption(0, "a.jpg", "a dog", -0.25)
        writer.write_caption(2, "c.jpg", "a cat", -1.5)
        assert (writer.captioned, writer.failed) == (2, 1)
    assert rows(output) == [
        {"path": "a.jpg", "caption": "a dog", "log_probability": -0.25},
        {"path": "b.jpg", "error": "empty file"},
        {"path": "c.jpg", "caption": "a cat", "log_probability": -1.5},
    ]
    assert json.loads((tmp_path / "captions.settings.json").read_text(encoding="utf-8")) == SETTINGS
    assert listing(tmp_path) == {"captions.jsonl", "captions.settings.json"}


def test_no_pictures_give_an_empty_file(tmp_path):
    with CaptionWriter(tmp_path / "c.jsonl", {}):
        pass
    assert (tmp_path / "c.jsonl").read_text() == ""


def test_every_row_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    with CaptionWriter(tmp_path / "c.jsonl", {}) as writer:
        writer.write_caption(0, "a.jpg", "a dog", -1.0)
        assert len(rows(tmp_path / "c.partial.jsonl")) == 1
        assert not (tmp_path / "c.jsonl").exists()


def test_letters_of_every_script_stay_readable(tmp_path):
    with CaptionWriter(tmp_path / "c.jsonl", SETTINGS) as writer:
        writer.write_caption(0, "été/写真.jpg", "un café 🐕", -1.0)
    text = (tmp_path / "c.jsonl").read_text(encoding="utf-8")
    assert "été/写真.jpg" in text
    assert "un café 🐕" in text
    assert "läufe" in (tmp_path / "c.settings.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["two\nlines.jpg", "\u2028 \u2029 \x85 \x0c \x1e \r.jpg", os.fsdecode(b"latin\xe9.jpg"), 'q"uo\\te,.jpg']
)
def test_any_file_name_fills_one_line_and_comes_back_the_same(tmp_path, name):
    with CaptionWriter(tmp_path / "c.jsonl", {"input": name}) as writer:
        writer.write_caption(0, name, name, -1.0)
        writer.write_error(1, name, name)
    assert len((tmp_path / "c.jsonl").read_bytes().split(b"\n")) == 3
    one, two = rows(tmp_path / "c.jsonl")  # str.splitlines finds no more lines either
    assert one["path"] == one["caption"] == two["path"] == two["error"] == name
    assert os.fsencode(one["path"]) == os.fsencode(name)


def test_a_log_probability_that_is_no_number_becomes_null(tmp_path):
    with CaptionWriter(tmp_path / "c.jsonl", {}) as writer:
        writer.write_caption(0, "a.jpg", "", float("-inf"))
        writer.write_caption(1, "b.jpg", "", float("nan"))
    assert [row["log_probability"] for row in rows(tmp_path / "c.jsonl")] == [None, None]


def test_settings_that_are_no_json_fail_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        CaptionWriter(tmp_path / "c.jsonl", {"temperature": float("nan")})
    CaptionWriter(tmp_path / "c.jsonl", {"checkpoint": Path("run/best.ckpt")})


@pytest.mark.parametrize("existing", ["c.jsonl", "c.settings.json"])
def test_an_existing_file_is_refused_unless_overwrite(tmp_path, existing):
    (tmp_path / existing).write_text("precious")
    with pytest.raises(UserError, match=rf"{existing} exists already; replace it with overwrite=true"):
        check_output(tmp_path / "c.jsonl", overwrite=False)
    with pytest.raises(UserError, match="exists already"), CaptionWriter(tmp_path / "c.jsonl", {}):
        pytest.fail("the block must not start")
    assert listing(tmp_path) == {existing}
    check_output(tmp_path / "c.jsonl", overwrite=True)
    assert (tmp_path / existing).read_text() == "precious"
    with CaptionWriter(tmp_path / "c.jsonl", {}, overwrite=True):
        pass
    assert (tmp_path / existing).read_text() != "precious"


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_other_formats_are_in_order_whole_and_last_too(tmp_path, suffix):
    output, partial = tmp_path / f"c{suffix}", tmp_path / f"c.partial{suffix}"
    with CaptionWriter(output, SETTINGS) as writer:
        writer.write_caption(1, "b.jpg", "a cat", -1.5, image_id=8)
        assert partial.read_text() == ""
        writer.write_caption(0, "a.jpg", "a dog", -0.25, image_id=7)
        text = partial.read_text(encoding="utf-8")
        assert text.index("a dog") < text.index("a cat") and not output.exists()
    read = {".csv": read_table, ".json": lambda path: json.loads(path.read_text())}[suffix]
    assert [(str(row["image_id"]), row["caption"]) for row in read(output)] == [("7", "a dog"), ("8", "a cat")]
    assert json.loads((tmp_path / "c.settings.json").read_text(encoding="utf-8")) == SETTINGS
    assert listing(tmp_path) == {output.name, "c.settings.json"}
    with pytest.raises(UserError, match="exists already; replace it with overwrite=true"):
        check_output(output, overwrite=False)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_an_interrupted_run_leaves_what_its_format_can_be_read_as(tmp_path, suffix, caplog):
    output, partial = tmp_path / f"c{suffix}", tmp_path / f"c.partial{suffix}"
    output.write_text("precious")
    with pytest.raises(KeyboardInterrupt), CaptionWriter(output, {}, overwrite=True) as writer:
        writer.write_caption(0, "a.jpg", "a dog", -1.0)
        writer.write_error(1, "b.jpg", "empty file")
        raise KeyboardInterrupt
    read = {".csv": read_table, ".json": lambda path: json.loads(path.read_text())}[suffix]
    assert read(partial)[0]["caption"] == "a dog"
    assert f"the {len(read(partial))} rows so far are in {partial}" in caplog.text
    assert output.read_text() == "precious"


def test_a_failure_at_the_very_end_ends_a_list_once(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"), CaptionWriter(tmp_path / "c.json", {}) as writer:
        writer.write_caption(0, "a.jpg", "a dog", -1.0)
        monkeypatch.setattr(os, "fsync", full)
    assert len(json.loads((tmp_path / "c.partial.json").read_text())) == 1


def test_a_suffix_that_names_no_format_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match=r"c\.txt ends in \.txt; name a \.jsonl, a \.csv or a \.json file"):
        check_output(tmp_path / "new" / "c.txt", overwrite=False)
    assert not listing(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "told"), [(".jsonl", "why"), (".csv", "why"), (".json", r"out, .*all: b\.jpg \(emp")]
)
def test_pictures_that_could_not_be_read_are_counted(tmp_path, caplog, suffix, told):
    with CaptionWriter(tmp_path / f"c{suffix}", {}) as writer:
        writer.write_caption(0, "a.jpg", "a dog", -1.0)
        writer.write_error(1, "b.jpg", "empty file")
    assert re.search(f"1 of 2 pictures could not be read; .*{told}", caplog.text)


@pytest.mark.parametrize(("suffix", "times"), [(".jsonl", 0), (".csv", 1), (".json", 1)])
def test_alternatives_that_find_no_room_are_told_of_once(tmp_path, caplog, suffix, times):
    with CaptionWriter(tmp_path / f"c{suffix}", {}) as writer:
        for index in range(3):
            writer.write_caption(index, f"{index}.jpg", "a dog", -1.0, [("a dog", -1.0), ("a cat", -2.0)])
    assert caplog.text.count("the others want a .jsonl file") == times
    assert ("a cat" in (tmp_path / f"c{suffix}").read_text()) == (not times)


def test_a_second_picture_with_an_id_keeps_the_rows_before_it(tmp_path):
    said = r"a/1\.jpg and b/1\.jpg would both be image_id 1"
    with pytest.raises(UserError, match=said), CaptionWriter(tmp_path / "c.json", {}) as writer:
        writer.write_caption(0, "a/1.jpg", "a dog", -1.0)
        writer.write_caption(1, "b/1.jpg", "a cat", -1.0)
    assert json.loads((tmp_path / "c.partial.json").read_text()) == [{"image_id": "1", "caption": "a dog"}]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_keeps_what_existed_and_says_where_its_rows_are(tmp_path, caplog, stop):
    output = tmp_path / "c.jsonl"
    output.write_text("precious")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(stop),
        CaptionWriter(output, {}, overwrite=True) as writer,
    ):
        writer.write_caption(0, "a.jpg", "a dog", -1.0)
        raise stop
    assert output.read_text() == "precious"
    assert [row["path"] for row in rows(tmp_path / "c.partial.jsonl")] == ["a.jpg"]
    assert f"the 1 rows so far are in {tmp_path / 'c.partial.jsonl'}" in caplog.text
    assert listing(tmp_path) == {"c.jsonl", "c.partial.jsonl", "c.jsonl.settings.partial.json"}


def test_a_run_stopped_before_its_first_row_leaves_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt), CaptionWriter(tmp_path / "c.jsonl", {}):
        raise KeyboardInterrupt
    assert not listing(tmp_path)
    assert "nothing was written" in caplog.text


def stopped(output, *captions, settings=None, **options):
    """A run over `a.jpg`, `b.jpg` and on that is stopped behind these captions; None could not be read."""
    with pytest.raises(KeyboardInterrupt), CaptionWriter(output, settings or SETTINGS, **options) as writer:
        write(writer, *captions)
        raise KeyboardInterrupt


def write(writer, *captions):
    for place, caption in enumerate(captions):
        if caption is None:
            writer.write_error(place, known(place).path, "empty file")
        else:
            writer.write_caption(place, known(place).path, caption, -0.5)


def known(place):
    return Row(f"{'abcdefg'[place]}.jpg")


def test_the_rows_of_an_earlier_interrupted_run_are_not_lost(tmp_path):
    output = tmp_path / "c.jsonl"
    stopped(output, "a dog")
    for refused in (lambda: check_output(output, overwrite=False), CaptionWriter(output, SETTINGS).__enter__):
        with pytest.raises(
            UserError, match=r"c\.partial\.jsonl holds the rows of a run .* resume=true, or begin anew with"
        ):
            refused()
    assert len(rows(tmp_path / "c.partial.jsonl")) == 1
    with CaptionWriter(output, SETTINGS, overwrite=True) as writer:
        write(writer, "a cat")
    assert [row["caption"] for row in rows(output)] == ["a cat"]
    assert listing(tmp_path) == {"c.jsonl", "c.settings.json"}


CAPTIONS = ("a dog", None, "two\nlines; =1", None, "a bird", "a cat", None)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
@pytest.mark.parametrize("torn", [0, 3, 17])
def test_a_resumed_run_ends_with_the_same_bytes_and_counts(tmp_path, suffix, torn):
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"c{suffix}"
    with CaptionWriter(whole, SETTINGS) as writer:
        write(writer, *CAPTIONS)
    expected = (writer.captioned, writer.failed)
    stopped(output, *CAPTIONS[:5])
    partial = output.with_name(f"c.partial{suffix}")
    before = partial.read_bytes()[: -torn or None]
    partial.write_bytes(before)
    with CaptionWriter(output, SETTINGS, resume=True, known=known) as writer:
        assert 2 <= writer.done <= 5
        so_far = {place: row for place, row, _ in writer.so_far()}
        assert [so_far[place].caption for place in so_far] == [CAPTIONS[place] for place in so_far]
        write(writer, *CAPTIONS)
        assert partial.read_bytes().startswith(before[: partial.stat().st_size - 60])
    assert output.read_bytes() == whole.read_bytes()
    assert (writer.captioned, writer.failed) == expected
    assert (tmp_path / "c.settings.json").read_bytes() == (tmp_path / "whole.settings.json").read_bytes()
    assert listing(tmp_path) == {whole.name, "whole.settings.json", output.name, "c.settings.json"}


def test_a_resumed_run_without_rows_begins(tmp_path):
    with CaptionWriter(tmp_path / "c.jsonl", SETTINGS, resume=True) as writer:
        write(writer, "a dog")
    assert writer.done == 0 and len(rows(tmp_path / "c.jsonl")) == 1


def test_a_run_does_not_go_on_from_rows_that_were_made_otherwise(tmp_path):
    output = tmp_path / "c.jsonl"
    stopped(output, "a dog")
    other = {**SETTINGS, "decoding": {"num_beams": 5}}
    said = r"made otherwise: decoding\.num_beams was 3 and is 5; say the same, or"
    with pytest.raises(UserError, match=said):
        CaptionWriter(output, other, resume=True).__enter__()
    (tmp_path / "c.jsonl.settings.partial.json").unlink()
    with pytest.raises(
        UserError, match=r"c\.partial\.jsonl lacks c\.jsonl\.settings\.partial\.json, how its rows were made"
    ):
        CaptionWriter(output, SETTINGS, resume=True).__enter__()
    (tmp_path / "c.jsonl.settings.partial.json").write_text("{")
    with pytest.raises(UserError, match=r"c\.jsonl\.settings\.partial\.json is damaged"):
        CaptionWriter(output, SETTINGS, resume=True).__enter__()
    assert len(rows(tmp_path / "c.partial.jsonl")) == 1


def test_two_runs_on_one_output_are_not_to_be_had(tmp_path):
    output = tmp_path / "c.jsonl"
    with CaptionWriter(output, SETTINGS) as writer:
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(
                UserError, match=r"another predict\.py is writing .*c\.partial\.jsonl; wait until it ends"
            ):
                CaptionWriter(output, SETTINGS, **options).__enter__()
        with pytest.raises(UserError, match="another predict"):
            check_output(output, overwrite=True)
        write(writer, "a dog")
    assert len(rows(output)) == 1
    check_output(output, overwrite=True)


def test_a_complete_output_has_nothing_to_resume(tmp_path):
    output = tmp_path / "c.jsonl"
    assert not is_complete(output, SETTINGS)
    stopped(output, "a dog")
    assert not is_complete(output, SETTINGS)
    with CaptionWriter(output, SETTINGS, resume=True) as writer:
        write(writer, "a dog", None)
    assert is_complete(output, SETTINGS)
    assert [row.caption for _, row, _ in rows_of(output, known)] == ["a dog", None]
    with pytest.raises(
        UserError, match=r"complete and was made otherwise: checkpoint was läufe/best\.ckpt and is None"
    ):
        is_complete(output, {"decoding": {"num_beams": 3}})


def test_a_folder_in_the_place_of_the_rows_is_told(tmp_path):
    (tmp_path / "c.partial.jsonl").mkdir()
    with pytest.raises(UserError, match=r"c\.partial\.jsonl is no file, and the rows so far would lie there; move it"):
        check_output(tmp_path / "c.jsonl", overwrite=True)


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    output = tmp_path / "c.jsonl"
    with pytest.raises(UserError, match="exists already"), CaptionWriter(output, {}) as writer:
        writer.write_caption(0, "a.jpg", "a dog", -1.0)
        output.write_text("another run's")
    assert output.read_text() == "another run's"
    assert len(rows(tmp_path / "c.partial.jsonl")) == 1


def test_a_picture_that_is_forgotten_or_written_twice_is_our_bug(tmp_path):
    with (
        pytest.raises(AssertionError, match="picture 0 was never written"),
        CaptionWriter(tmp_path / "c", {}) as writer,
    ):
        writer.write_error(1, "b.jpg", "empty file")
    with pytest.raises(AssertionError, match="twice"), CaptionWriter(tmp_path / "d", {}) as writer:
        writer.write_error(0, "b.jpg", "empty file")
        writer.write_error(0, "b.jpg", "empty file")


def test_missing_parent_folders_are_made(tmp_path):
    check_output(tmp_path / "new" / "deep" / "c.jsonl", overwrite=False)
    assert not listing(tmp_path / "new" / "deep")


def test_a_check_leaves_no_trace(tmp_path):
    check_output(str(tmp_path / "c.jsonl"), overwrite=False)
    assert not listing(tmp_path)


def test_a_folder_is_no_output(tmp_path):
    for output in (tmp_path, f"{tmp_path}/"):
        with pytest.raises(UserError, match="is a folder; name a file"):
            check_output(output, overwrite=True)


def test_a_file_on_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "c.jsonl", tmp_path / "file" / "deeper" / "c.jsonl"):
        with pytest.raises(UserError, match="is a file, not a folder"):
            check_output(output, overwrite=True)


def test_a_device_is_never_replaced_by_a_file():
    with pytest.raises(UserError, match="is a device or a pipe"):
        check_output("/dev/null", overwrite=True)


@pytest.mark.parametrize("name", ["x" * 300 + ".jsonl", "a\0b.jsonl"])
def test_an_impossible_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="can't be written"):
        check_output(tmp_path / name, overwrite=False)


def test_a_name_just_too_long_for_the_files_beside_it_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="can't be written: File name too long"):
        check_output(tmp_path / ("x" * 249 + ".jsonl"), overwrite=False)


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(UserError, match=r"can't be written: Permission denied; choose another place with output="):
        check_output(tmp_path / "c.jsonl", overwrite=False)


def test_rows_of_two_suffixes_keep_their_own_settings(tmp_path):
    for name, decoding in (("c.jsonl", "greedy"), ("c.csv", "sampling")):
        with pytest.raises(KeyboardInterrupt), CaptionWriter(tmp_path / name, {"decoding": decoding}) as writer:
            writer.write_caption(0, "a.jpg", "a dog", -1.0)
            raise KeyboardInterrupt
    with (
        pytest.raises(UserError, match="made otherwise: decoding was greedy and is sampling"),
        CaptionWriter(tmp_path / "c.jsonl", {"decoding": "sampling"}, resume=True),
    ):
        pass


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "real.jsonl"
    target.write_text("old")
    link = tmp_path / "c.jsonl"
    link.symlink_to(target)
    with CaptionWriter(link, {}, overwrite=True):
        pass
    assert link.is_symlink()
    assert target.read_text() == ""


def test_a_disk_that_fills_up_is_one_sentence(tmp_path, full_disk):
    with pytest.raises(UserError, match="can't be written: File too large"), CaptionWriter(tmp_path / "c", {}) as w:
        w.write_caption(0, "a.jpg", "a dog", -1.0)
        full_disk(100)
        w.write_caption(1, "b.jpg", "a dog" * 100, -1.0)
    assert not (tmp_path / "c").exists()
