"""The lines so far: in order, whole, of one process, and never lost by accident; the output is made of them at the end.

What holds for one format holds for all: they differ in what is made of the journal alone.
"""

import csv
import json
import logging
import math
import multiprocessing
import os
import re
import signal
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.errors import UserError
from captioning.files import unlocked
from captioning.prediction.journal import (
    CaptionedPicture,
    Journal,
    May,
    _locked,
    has_lines,
    journal_path,
    lines_of,
    lock_path,
    settings_path,
)
from captioning.prediction.outputs import check_output, counts_if_complete, put_in_place
from captioning.prediction.outputs.files import real_file

SETTINGS = {"decoding": {"num_beams": 3}, "checkpoint": "läufe/best.ckpt"}
SUFFIXES = [".jsonl", ".csv", ".json"]


def opened(output, settings=SETTINGS, **may) -> Journal:
    return Journal(output, real_file(output), settings, May(**may))


def picture(place: int, caption: str | None = "a dog", path: str | None = None, **known) -> CaptionedPicture:
    given = {"caption": caption, "log_probability": -0.5} if caption is not None else {"error": "empty file"}
    return CaptionedPicture(place, path or f"{'abcdefg'[place]}.jpg", **{**given, **known})


def write(journal: Journal, *captions: str | None) -> None:
    """These captions of `a.jpg`, `b.jpg` and on; None could not be read."""
    for place, caption in enumerate(captions):
        journal.add(picture(place, caption))


def complete(output, *captions, settings=SETTINGS, **may) -> Journal:
    """A whole prediction."""
    with opened(output, settings, **may) as journal:
        write(journal, *captions)
        put_in_place(journal)
    return journal


def stopped(output, *captions, settings=SETTINGS, **may) -> None:
    """A prediction that is stopped behind these captions."""
    with pytest.raises(KeyboardInterrupt), opened(output, settings, **may) as journal:
        write(journal, *captions)
        raise KeyboardInterrupt


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_table(path: Path) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------------- a line

TEXTS = st.text(st.one_of(st.sampled_from("=;,\t\r\n\0'\" a\xa0\u2028\x85"), st.characters()), max_size=12)
NUMBERS = st.one_of(st.floats(-50, 0), st.just(-math.inf), st.just(math.nan))
ALTERNATIVES = st.lists(st.tuples(TEXTS, NUMBERS), max_size=2)
CAPTIONED = st.builds(
    lambda *known: CaptionedPicture(0, *known), TEXTS, st.none() | TEXTS, TEXTS, NUMBERS, ALTERNATIVES
)
FAILED = st.builds(lambda path, reason: CaptionedPicture(0, path, error=reason), TEXTS, TEXTS)


@given(st.lists(st.one_of(CAPTIONED, FAILED), max_size=6), st.data())
def test_pictures_come_back_up_to_the_last_whole_line_wherever_the_file_was_cut(records, data):
    lines = [record.line().encode() for record in records]
    text = b"".join(lines)
    assert text.count(b"\n") == len(records), "a line each, whatever the texts hold"
    length = data.draw(st.integers(0, len(text)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "c.jsonl")
        file.write_bytes(text[:length])
        back = list(lines_of(file))
    ends = [len(b"".join(lines[: n + 1])) for n in range(len(lines))]
    assert [end for _, end in back] == [end for end in ends if end <= length]
    for (record, _), expected in zip(back, records, strict=False):
        assert (record.path, record.caption, record.error) == (expected.path, expected.caption, expected.error)
        assert record.line() == expected.line(), "and would be written the same"


@pytest.mark.parametrize("rest", [b"\0" * 50, b"{}\n", b'"a",b\r\n', b"[1]\n", b"null\n", b'{"path": "b", "x": 1}\n'])
def test_what_this_program_does_not_write_is_no_line(tmp_path, rest):
    (tmp_path / "c.jsonl").write_bytes(picture(0).line().encode() + rest)
    assert len(list(lines_of(tmp_path / "c.jsonl"))) == 1


def test_letters_of_every_script_stay_readable(tmp_path):
    with opened(tmp_path / "c.jsonl") as journal:
        journal.add(picture(0, "un café 🐕", "été/写真.jpg"))
        put_in_place(journal)
    text = (tmp_path / "c.jsonl").read_text(encoding="utf-8")
    assert "été/写真.jpg" in text
    assert "un café 🐕" in text
    assert "läufe" in (tmp_path / "c.settings.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["two\nlines.jpg", "\u2028 \u2029 \x85 \x0c \x1e \r.jpg", os.fsdecode(b"latin\xe9.jpg"), 'q"uo\\te,.jpg']
)
def test_any_file_name_fills_one_line_and_comes_back_the_same(tmp_path, name):
    with opened(tmp_path / "c.jsonl", {"input": name}) as journal:
        journal.add(picture(0, name, name))
        journal.add(picture(1, None, name, error=name))
        put_in_place(journal)
    assert len((tmp_path / "c.jsonl").read_bytes().split(b"\n")) == 3
    one, two = rows(tmp_path / "c.jsonl")  # str.splitlines finds no more lines either
    assert one["path"] == one["caption"] == two["path"] == two["error"] == name
    assert os.fsencode(one["path"]) == os.fsencode(name)


def test_a_log_probability_that_is_no_number_becomes_null():
    for number in (-math.inf, math.nan):
        assert json.loads(picture(0, log_probability=number).line())["log_probability"] is None


# -------------------------------------------------------------------------------------------------- a whole prediction


def test_lines_are_in_order_and_settings_are_written_once(tmp_path):
    output = tmp_path / "captions.jsonl"
    journal = complete(output, "a dog", None, "a cat")
    assert (journal.captioned, journal.failed) == (2, 1)
    assert rows(output) == [
        {"path": "a.jpg", "caption": "a dog", "log_probability": -0.5},
        {"path": "b.jpg", "error": "empty file"},
        {"path": "c.jpg", "caption": "a cat", "log_probability": -0.5},
    ]
    assert json.loads((tmp_path / "captions.settings.json").read_text(encoding="utf-8")) == {
        **SETTINGS,
        "captioned": 2,
        "failed": 1,
    }
    assert listing(tmp_path) == {"captions.jsonl", "captions.settings.json"}


def test_no_pictures_give_an_empty_file(tmp_path):
    complete(tmp_path / "c.jsonl")
    assert (tmp_path / "c.jsonl").read_text() == ""


@pytest.mark.parametrize(("suffix", "partial"), [(".jsonl", "c.partial.jsonl"), (".csv", "c.csv.partial.jsonl")])
def test_every_line_is_on_the_disk_as_soon_as_it_is_added_whatever_the_output_will_be(tmp_path, suffix, partial):
    with opened(tmp_path / f"c{suffix}") as journal:
        journal.add(picture(0))
        assert len(rows(tmp_path / partial)) == 1
        assert not (tmp_path / f"c{suffix}").exists()


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_other_formats_are_whole_and_last_too(tmp_path, suffix):
    output = tmp_path / f"c{suffix}"
    with opened(output) as journal:
        journal.add(picture(0, "a dog", image_id=7))
        journal.add(picture(1, "a cat", image_id=8))
        assert not output.exists()
        put_in_place(journal)
    read = {".csv": read_table, ".json": lambda path: json.loads(path.read_text())}[suffix]
    assert [(str(row["image_id"]), row["caption"]) for row in read(output)] == [("7", "a dog"), ("8", "a cat")]
    assert counts_if_complete(output, SETTINGS) == (2, 0)
    assert listing(tmp_path) == {output.name, f"{output.name}.settings.json"}
    with pytest.raises(UserError, match="exists already; replace it with overwrite=true"):
        check_output(output, overwrite=False)


def test_settings_that_are_no_json_fail_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        opened(tmp_path / "c.jsonl", {"temperature": float("nan")})
    opened(tmp_path / "c.jsonl", {"checkpoint": Path("run/best.ckpt")})


@pytest.mark.parametrize(
    ("suffix", "why"), [(".jsonl", "why"), (".csv", "why"), (".json", r"out, .*all: b\.jpg \(empty file\)$")]
)
def test_pictures_that_could_not_be_read_are_counted(tmp_path, caplog, suffix, why):
    complete(tmp_path / f"c{suffix}", "a dog", None)
    assert re.search(f"1 of 2 pictures could not be read; .*{why}", caplog.messages[0])


def test_of_many_that_could_not_be_read_the_first_are_named(tmp_path, caplog):
    complete(tmp_path / "c.json", *[None] * 5)
    assert caplog.messages[0].endswith("a.jpg (empty file), b.jpg (empty file), c.jpg (empty file), ...")


@pytest.mark.parametrize(("suffix", "times"), [(".jsonl", 0), (".csv", 1), (".json", 1)])
def test_alternatives_that_find_no_room_are_mentioned_once(tmp_path, caplog, suffix, times):
    with opened(tmp_path / f"c{suffix}") as journal:
        for place in range(3):
            journal.add(picture(place, alternatives=[("a dog", -1.0), ("a cat", -2.0)]))
        put_in_place(journal)
    assert caplog.text.count("the others need a .jsonl file") == times
    assert ("a cat" in (tmp_path / f"c{suffix}").read_text()) == (not times)


def test_a_picture_that_is_forgotten_or_added_twice_is_our_bug(tmp_path):
    with pytest.raises(AssertionError, match="picture 1 is not the next"), opened(tmp_path / "c.jsonl") as journal:
        journal.add(picture(1))
    with pytest.raises(AssertionError, match="picture 0 is not the next"), opened(tmp_path / "d.jsonl") as journal:
        write(journal, "a dog")
        journal.add(picture(0))


# --------------------------------------------------------------------------------------------------- stopped, resumed


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_keeps_what_existed_and_says_where_its_lines_are(tmp_path, caplog, stop, suffix):
    output = tmp_path / f"c{suffix}"
    output.write_text("precious")
    partial = journal_path(output)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(stop),
        opened(output, overwrite=True) as journal,
    ):
        write(journal, "a dog", None)
        raise stop
    assert output.read_text() == "precious"
    assert [row["path"] for row in rows(partial)] == ["a.jpg", "b.jpg"]
    assert f"the 2 lines so far are in {partial}" in caplog.text
    assert listing(tmp_path) == {output.name, partial.name, f"c{suffix}.settings.partial.json"}


def test_a_run_stopped_before_its_first_line_leaves_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        stopped(tmp_path / "c.jsonl")
    assert not listing(tmp_path)
    assert "nothing was written" in caplog.text


def test_the_lines_of_an_earlier_interrupted_run_are_not_lost(tmp_path):
    output = tmp_path / "c.jsonl"
    stopped(output, "a dog")
    for refused in (lambda: check_output(output, overwrite=False), opened(output).__enter__):
        with pytest.raises(
            UserError, match=r"c\.partial\.jsonl holds the captions of a run .* resume=true, or begin anew with"
        ):
            refused()
    assert len(rows(tmp_path / "c.partial.jsonl")) == 1
    complete(output, "a cat", overwrite=True)
    assert [row["caption"] for row in rows(output)] == ["a cat"]
    assert listing(tmp_path) == {"c.jsonl", "c.settings.json"}


CAPTIONS = ("a dog", None, "two\nlines; =1", None, "a bird", "a cat", None)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("torn", [0, 3, 17])
def test_a_resumed_run_ends_with_the_same_bytes_and_counts(tmp_path, suffix, torn):
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"c{suffix}"
    expected = complete(whole, *CAPTIONS)
    stopped(output, *CAPTIONS[:5])
    partial = journal_path(output)
    before = partial.read_bytes()[: -torn or None]
    partial.write_bytes(before)
    with opened(output, resume=True) as journal:
        assert journal.done == (5 if torn == 0 else 4)
        assert [record.caption for record in journal] == list(CAPTIONS[: journal.done])
        assert before.startswith(partial.read_bytes())
        write(journal, *CAPTIONS)
        assert partial.read_bytes().startswith(before[: -50 if torn else None])
        put_in_place(journal)
    assert output.read_bytes() == whole.read_bytes()
    assert (journal.captioned, journal.failed) == (expected.captioned, expected.failed)
    assert settings_path(output).read_bytes() == settings_path(whole).read_bytes()
    assert len(listing(tmp_path)) == 4


def test_a_resumed_run_without_lines_begins(tmp_path):
    journal = complete(tmp_path / "c.jsonl", "a dog", resume=True)
    assert journal.done == 0 and len(rows(tmp_path / "c.jsonl")) == 1


def test_a_run_does_not_go_on_from_lines_that_were_made_otherwise(tmp_path):
    output = tmp_path / "c.jsonl"
    stopped(output, "a dog")
    other = {**SETTINGS, "decoding": {"num_beams": 5}}
    with pytest.raises(UserError, match=r"made otherwise: decoding\.num_beams was 3 and is 5; say the same, or"):
        opened(output, other, resume=True).__enter__()
    (tmp_path / "c.jsonl.settings.partial.json").unlink()
    with pytest.raises(
        UserError, match=r"c\.partial\.jsonl lacks c\.jsonl\.settings\.partial\.json, how its captions were made"
    ):
        opened(output, resume=True).__enter__()
    (tmp_path / "c.jsonl.settings.partial.json").write_text("{")
    with pytest.raises(UserError, match=r"c\.jsonl\.settings\.partial\.json is damaged"):
        opened(output, resume=True).__enter__()
    assert len(rows(tmp_path / "c.partial.jsonl")) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_complete_output_has_nothing_to_resume(tmp_path, suffix):
    output = tmp_path / f"c{suffix}"
    assert not counts_if_complete(output, SETTINGS)
    stopped(output, "a dog")
    assert not counts_if_complete(output, SETTINGS)
    complete(output, "a dog", None, resume=True)
    assert counts_if_complete(output, SETTINGS) == (1, 1)
    with pytest.raises(
        UserError, match=r"complete and was made otherwise: checkpoint was läufe/best\.ckpt and is None"
    ):
        counts_if_complete(output, {"decoding": {"num_beams": 3}})


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("owner", ["of the same run", "of another program"])
def test_with_resume_an_output_that_is_there_stays_if_it_holds_the_same(tmp_path, suffix, owner, monkeypatch):
    """The process may have died between putting it in place and deleting the journal."""
    output = tmp_path / f"c{suffix}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), opened(output) as journal:
        write(journal, "a dog")
        patch.setattr(Journal, "complete", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        put_in_place(journal)
    if owner == "of another program":
        output.write_text("precious")
    if suffix == ".jsonl":
        assert output.exists() == (owner == "of another program")
    if owner == "of the same run":
        check_output(output, overwrite=False, resume=True)
        complete(output, "a dog", resume=True)
        assert listing(tmp_path) == {output.name, settings_path(output).name}
        return
    with pytest.raises(UserError, match="exists already"):
        complete(output, "a dog", resume=True)
    assert output.read_text() == "precious" and has_lines(output)


# ---------------------------------------------------------------------------------------------------------- one owner


def test_two_runs_on_one_output_exclude_each_other(tmp_path):
    output = tmp_path / "c.jsonl"
    with opened(output) as journal:
        for may in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(
                UserError, match=r"another predict\.py is writing .*c\.partial\.jsonl; wait until it ends"
            ):
                opened(output, **may).__enter__()
        with pytest.raises(UserError, match="another predict"):
            check_output(output, overwrite=True)
        write(journal, "a dog")
        put_in_place(journal)
    assert len(rows(output)) == 1
    check_output(output, overwrite=True)


def hold(output: Path) -> None:
    with opened(output) as journal:
        write(journal, "a dog")
        time.sleep(60)


def test_a_process_that_is_killed_leaves_no_lock_that_holds(tmp_path):
    output = tmp_path / "c.csv"
    owner = multiprocessing.get_context("spawn").Process(target=hold, args=(output,))
    owner.start()
    until = time.monotonic() + 30
    while not has_lines(output):
        assert time.monotonic() < until
        time.sleep(0.05)
    with pytest.raises(UserError, match="another predict"):
        check_output(output, overwrite=True)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    assert lock_path(output).exists()
    complete(output, "a dog", "a cat", resume=True)
    assert listing(tmp_path) == {"c.csv", "c.csv.settings.json"}


def take_turns(output: Path, times: int) -> None:
    """Own the output again and again; ends badly where another process owns it too."""
    inside = output.with_name("inside")
    while times:
        try:
            lock = _locked(output, output)
        except UserError:
            continue
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        inside.unlink()
        unlocked(lock)
        times -= 1


def test_a_lock_file_that_is_deleted_lets_no_two_processes_in(tmp_path):
    context = multiprocessing.get_context("fork")
    turns = [context.Process(target=take_turns, args=(tmp_path / "c.jsonl", 300)) for _ in range(3)]
    for process in turns:
        process.start()
    for process in turns:
        process.join(60)
    assert [process.exitcode for process in turns] == [0, 0, 0]
    assert not listing(tmp_path)


def test_outputs_of_two_suffixes_of_one_name_are_made_and_resumed_at_the_same_time(tmp_path):
    names = [tmp_path / f"c{suffix}" for suffix in SUFFIXES]
    others = [{"decoding": name.suffix} for name in names]
    for name, settings in zip(names, others, strict=True):
        with opened(names[0]) as journal:  # while another is being written
            write(journal, "a dog")
            if name != names[0]:
                stopped(name, "a dog", settings=settings)
            put_in_place(journal)
        for done in (names[0], settings_path(names[0])):
            done.unlink()
    for name, settings in zip(names, others, strict=True):
        if name != names[0]:
            with pytest.raises(UserError, match="made otherwise"):
                opened(name, resume=True).__enter__()
        complete(name, "a dog", "a cat", settings=settings, resume=True)
    for name, settings in zip(names, others, strict=True):
        assert counts_if_complete(name, settings)
    assert len(listing(tmp_path)) == 6


# ------------------------------------------------------------------------------------------- what may be written where


@pytest.mark.parametrize("existing", ["c.jsonl", "c.settings.json"])
def test_files_that_exist_are_refused_unless_overwrite(tmp_path, existing):
    (tmp_path / existing).write_text("precious")
    with pytest.raises(UserError, match=f"{existing} exists already; replace it with overwrite=true, or name another"):
        check_output(tmp_path / "c.jsonl", overwrite=False)
    assert listing(tmp_path) == {existing}
    check_output(tmp_path / "c.jsonl", overwrite=True)
    assert (tmp_path / existing).read_text() == "precious"
    complete(tmp_path / "c.jsonl", overwrite=True)
    assert (tmp_path / existing).read_text() != "precious"


def test_a_suffix_that_names_no_format_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match=r"c\.txt ends in \.txt; name a \.jsonl, a \.csv or a \.json file"):
        check_output(tmp_path / "new" / "c.txt", overwrite=False)
    assert not listing(tmp_path)


def test_a_folder_in_the_place_of_the_journal_is_refused(tmp_path):
    (tmp_path / "c.partial.jsonl").mkdir()
    with pytest.raises(UserError, match=r"c\.partial\.jsonl is no file, and the captions so far would lie there"):
        check_output(tmp_path / "c.jsonl", overwrite=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, suffix):
    output = tmp_path / f"c{suffix}"
    with pytest.raises(UserError, match="exists already"), opened(output) as journal:
        write(journal, "a dog")
        output.write_text("another run's")
        put_in_place(journal)
    assert output.read_text() == "another run's"
    assert has_lines(output)


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


@pytest.mark.parametrize("length", [249, 225])
def test_a_name_just_too_long_for_the_files_beside_it_is_refused_at_once(tmp_path, length):
    with pytest.raises(UserError, match="can't be written: File name too long"):
        check_output(tmp_path / ("x" * length + ".jsonl"), overwrite=False)


def test_a_folder_without_write_permission_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(
        UserError, match=r"can't be written: Permission denied; make room or choose another place with output="
    ):
        check_output(tmp_path / "c.jsonl", overwrite=False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path, suffix):
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / f"real{suffix}"
    target.write_text("old")
    link = tmp_path / f"c{suffix}"
    link.symlink_to(target)
    complete(link, overwrite=True)
    assert link.is_symlink()
    assert target.read_text() != "old"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fills_up_is_one_sentence(tmp_path, full_disk, suffix):
    output = tmp_path / f"c{suffix}"
    with pytest.raises(UserError, match="can't be written: File too large"), opened(output) as journal:
        write(journal, "a dog")
        full_disk(400)
        journal.add(picture(1, "a dog" * 100))
    assert not output.exists()
    assert len(list(lines_of(journal_path(output)))) == 1, "and no half line"


def test_a_disk_without_any_room_is_left_as_it_was(tmp_path, full_disk):
    full_disk(0)
    with pytest.raises(UserError, match="can't be written: File too large"), opened(tmp_path / "c.csv"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_at_the_very_end_loses_no_line(tmp_path, full_disk):
    output = tmp_path / "c.json"
    with pytest.raises(UserError, match="can't be written: File too large"), opened(output) as journal:
        write(journal, *["a dog"] * 7)
        full_disk(50)
        put_in_place(journal)
    assert not output.exists() and len(list(lines_of(journal_path(output)))) == 7
