"""A prediction that is killed ends as the one that was not, and one by several processes as one by one."""
# ruff: noqa: F811  # fixtures of another file

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from interrupted import CHANGES, RENAMES, killed_before_change
from PIL import Image
from support import prediction
from test_predict import error_line, listing, predicted, rows, run_dir, typed, usual  # noqa: F401

from captioning.cli import quoted
from captioning.prediction import caption
from captioning.prediction.journal import COUNTS, Journal, journal_path, lock_path, settings_path
from captioning.prediction.run import predict

COUNT, BATCH = 11, 2
SUFFIXES = (".jsonl", ".csv", ".json")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Eleven pictures of noise; a batch of them, the third, is of bad ones alone, and so is the last picture."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for number in range(COUNT):
        path = folder / f"{number}.png"
        Image.fromarray(noise.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
        if number in (4, 5, COUNT - 1):
            path.write_bytes(b"")
    return folder


def composed(checkpoint, photos, output, *overrides):
    return prediction(checkpoint, photos, output, f"batch_size={BATCH}", *overrides)


def killed(config, monkeypatch, at_line: int, torn: int = 0) -> None:
    """Predict in a process that is killed with SIGKILL at the n-th line, of which `torn` bytes are written."""
    original = Journal.add

    def add(journal, record):
        if record.place == at_line - 1:
            with journal.path.open("ab") as file:
                file.write(record.line().encode()[:torn])
            os.kill(os.getpid(), signal.SIGKILL)
        original(journal, record)

    if (child := os.fork()) == 0:
        try:
            signal.alarm(60)
            torch.set_num_threads(1)  # the threads of torch's pool stayed behind in the parent
            monkeypatch.setattr(Journal, "add", add)
            predict(config)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


CASES = {
    "greedy, before the first line": (".jsonl", (), 1, 0),
    "sampling, in the middle of a batch": (".jsonl", ("decoding=sampling",), 4, 20),
    "a table, behind a batch that is all bad": (".csv", (), 7, 0),
    "COCO results, in the last line": (".json", (), 11, 9),
    "with text files": (".jsonl", ("text_files=true",), 8, 1),
    "with a gallery and heat maps": (".jsonl", ("gallery=true", "heat_maps=2"), 5, 3),
}


@pytest.mark.parametrize(("suffix", "overrides", "at_line", "torn"), CASES.values(), ids=CASES)
def test_a_killed_prediction_ends_with_the_same_bytes(
    run_dir,
    photos,
    tmp_path,
    monkeypatch,
    suffix,
    overrides,
    at_line,
    torn,
):
    pictures = shutil.copytree(photos, tmp_path / "photos")
    torch.set_num_threads(1)
    whole = tmp_path / "whole"
    expected = predict(composed(run_dir, pictures, whole / f"c{suffix}", *overrides))
    made = {path.name: path.read_bytes() for path in pictures.glob("*.txt")}
    for name in made:
        (pictures / name).unlink()
    output = tmp_path / f"c{suffix}"
    with monkeypatch.context() as patch:
        killed(composed(run_dir, pictures, output, *overrides), patch, at_line, torn)
    assert not output.exists()
    before = journal_path(output).read_bytes()
    done = predict(composed(run_dir, pictures, output, *overrides, "resume=true"))
    assert output.read_bytes() == (whole / output.name).read_bytes()
    if suffix == ".jsonl":
        assert output.read_bytes().startswith(before[: len(before) - torn]), "lines stay as they were written"
    assert (done.captioned, done.failed) == (expected.captioned, expected.failed) == (8, 3)
    assert settings_path(output).read_bytes() == settings_path(whole / output.name).read_bytes()
    assert {path.name: path.read_bytes() for path in pictures.glob("*.txt")} == made
    if "gallery=true" in overrides:
        assert (tmp_path / "c.html").read_bytes() == (whole / "c.html").read_bytes()
        assert listing(tmp_path / "c.heat_maps") == {"0.png", "1.png"}
    assert not list(tmp_path.glob("*.partial*"))


VIEWS = ("gallery=true", "heat_maps=2", "text_files=true")


@pytest.mark.parametrize(
    ("suffix", "overrides", "kinds", "least"),
    [
        pytest.param(".jsonl", ("heat_maps=1",), RENAMES, 5, id="a rename, with heat maps"),
        pytest.param(".csv", (), (*RENAMES, "os.remove"), 4, id="a rename or removal, with a table"),
        pytest.param(".jsonl", (), CHANGES, 10, marks=pytest.mark.slow, id="any change"),
        pytest.param(".json", (), CHANGES, 10, marks=pytest.mark.slow, id="any change, with COCO results"),
        pytest.param(".csv", VIEWS, CHANGES, 50, marks=pytest.mark.slow, id="any change, with all that goes beside it"),
    ],
)
def test_before_whichever_change_on_the_disk_it_is_killed_it_goes_on(
    run_dir, photos, tmp_path, suffix, overrides, kinds, least
):
    torch.set_num_threads(1)
    found: list[dict[str, bytes]] = []
    for n in range(200):
        folder = tmp_path / str(n)
        pictures = shutil.copytree(photos, folder / "photos")
        output = pictures / f"c{suffix}"  # what it makes is not what it captions
        config = composed(run_dir, pictures, output, *overrides)
        if n and not killed_before_change(lambda config=config: predict(config), folder, n, kinds):
            break  # it makes fewer changes
        predict(composed(run_dir, pictures, output, *overrides, f"resume={str(n > 0).lower()}"))
        found.append(contents(folder))
        assert found[-1] == found[0], f"killed before change {n}"
    print(len(found) - 1, "changes")
    assert len(found) > least


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below it, but for the settings, which name the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and "settings" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes().replace(bytes(folder), b"") for path in files}


EVERY_MOMENT = [(suffix, line, torn) for suffix in SUFFIXES for line in range(1, COUNT + 1) for torn in (0, 15)]


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "at_line", "torn"), EVERY_MOMENT)
def test_wherever_it_is_killed_it_ends_with_the_same_bytes(
    run_dir, photos, tmp_path, monkeypatch, suffix, at_line, torn
):
    torch.set_num_threads(1)
    predict(composed(run_dir, photos, tmp_path / "whole" / f"c{suffix}", "decoding=sampling"))
    output = tmp_path / f"c{suffix}"
    with monkeypatch.context() as patch:
        killed(composed(run_dir, photos, output, "decoding=sampling"), patch, at_line, torn)
    predict(composed(run_dir, photos, output, "decoding=sampling", "resume=true"))
    assert output.read_bytes() == (tmp_path / "whole" / output.name).read_bytes()


def test_what_is_done_is_not_captioned_again_and_of_a_complete_output_nothing_is(
    typed,
    photos,
    tmp_path,
    monkeypatch,
):
    generated, original = [], caption.generate_from

    def generate(*arguments):
        generated.append(arguments)
        if len(generated) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(caption, "generate_from", generate)
    given = (f"input={photos}", f"batch_size={BATCH}")
    status, output = typed(*given)
    assert status == 1 and "interrupted" in output and "resume=true goes on" in output
    assert len(rows(tmp_path / "out.partial.jsonl")) == 8
    status, output = typed(*given)
    assert "go on from them with resume=true, or begin anew with overwrite=true" in error_line(output)
    generated.clear()
    status, output = typed(*given, "resume=true")
    assert status == 2 and len(generated) == 1, output + "8 and 9 are made, and 10 is bad"
    generated.clear()
    status, output = typed(*given, "resume=true")
    assert status == 2 and "out.jsonl is complete: 8 captions" in output and not generated
    status, output = typed(*given, "resume=runs/mine")
    assert status == 1 and "resume=runs/mine must be true or false" in error_line(output)
    status, output = typed(*given, "resume=true", "decoding=beam")
    assert status == 1 and "is complete and was made otherwise: decoding was Greedy and is B" in error_line(output)


def test_heat_maps_in_the_folder_that_is_captioned_are_not_captioned(run_dir, photos, tmp_path, monkeypatch):
    pictures = shutil.copytree(photos, tmp_path / "photos")
    views = ("heat_maps=8", "gallery=true")
    with monkeypatch.context() as patch:
        killed(composed(run_dir, pictures, pictures / "c.jsonl", *views), patch, 6)
    predict(composed(run_dir, pictures, pictures / "c.jsonl", *views, "resume=true"))
    assert len(rows(pictures / "c.jsonl")) == COUNT and len(listing(pictures / "c.heat_maps")) == 6
    again = predict(composed(run_dir, pictures, pictures / "c.jsonl", *views, "resume=true"))
    assert (again.captioned, again.failed) == (8, 3), "nothing is left to do"
    predict(composed(run_dir, pictures, pictures / "d.csv", *views))
    assert predict(composed(run_dir, pictures / "**" / "*.png", pictures / "e.jsonl")).captioned == 8
    assert len((pictures / "d.csv").read_text().splitlines()) == COUNT + 1


def test_outputs_of_two_suffixes_of_one_name_are_resumed_each_as_it_was_begun(run_dir, photos, tmp_path, monkeypatch):
    begun = {".jsonl": "decoding=greedy", ".csv": "decoding=sampling", ".json": "decoding=greedy"}
    for suffix, decoding in begun.items():
        with monkeypatch.context() as patch:
            killed(composed(run_dir, photos, tmp_path / f"c{suffix}", decoding), patch, 5)
    for suffix, decoding in begun.items():
        predict(composed(run_dir, photos, tmp_path / f"c{suffix}", decoding, "resume=true"))
        predict(composed(run_dir, photos, tmp_path / "whole" / f"c{suffix}", decoding))
    for suffix in begun:
        assert (tmp_path / f"c{suffix}").read_bytes() == (tmp_path / "whole" / f"c{suffix}").read_bytes()
    assert len(listing(tmp_path)) == 2 * len(begun) + 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_files_of_a_complete_output_are_made_of_its_lines_if_it_has_them(run_dir, photos, tmp_path, suffix):
    pictures = shutil.copytree(photos, tmp_path / "photos")
    predict(composed(run_dir, pictures, tmp_path / f"c{suffix}", "text_files=true"))
    lock_path(tmp_path / f"c{suffix}").touch()  # killed before its last change on the disk
    again = composed(run_dir, pictures, tmp_path / f"c{suffix}", "text_files=true", "resume=true")
    assert predict(again).captioned == 8 and len(listing(tmp_path)) == 3
    (pictures / "1.txt").unlink()
    if suffix == ".jsonl":
        predict(again)
        assert (pictures / "1.txt").is_file()
    else:
        with pytest.raises(ValueError, match=r"is complete, and text files are made of a \.jsonl file or together"):
            predict(again)


def test_a_complete_output_whose_settings_lack_counts_is_refused(run_dir, photos, tmp_path):
    output = tmp_path / "c.jsonl"
    predict(composed(run_dir, photos, output))
    settings = json.loads(settings_path(output).read_text())
    settings_path(output).write_text(json.dumps({key: settings[key] for key in settings if key not in COUNTS}))
    with pytest.raises(ValueError, match=r"c\.jsonl exists already; replace it with overwrite=true"):
        predict(composed(run_dir, photos, output, "resume=true"))


def test_a_list_of_pictures_that_has_changed_is_not_gone_on_with(run_dir, photos, tmp_path, monkeypatch):
    pictures = shutil.copytree(photos, tmp_path / "photos")
    config = composed(run_dir, pictures, tmp_path / "c.jsonl")
    with monkeypatch.context() as patch:
        killed(config, patch, 4)
    (pictures / "12.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"made otherwise: pictures\.number was 11 and is 12; pictures\.digest was"):
        predict(composed(run_dir, pictures, tmp_path / "c.jsonl", "resume=true"))
    (pictures / "12.png").unlink()
    (pictures / "9.png").unlink()
    (pictures / "9.png").symlink_to("nowhere")  # it vanished: that is a row, and no end
    done = predict(composed(run_dir, pictures, tmp_path / "c.jsonl", "resume=true"))
    assert (done.captioned, done.failed) == (7, 4)
    assert [row["error"] for row in rows(tmp_path / "c.jsonl")[9:]] == ["no such file", "empty file"]


def test_two_processes_make_the_file_of_one(typed, photos, tmp_path):
    given = (f"input={photos}", f"batch_size={BATCH}", "heat_maps=[3.png]", "gallery=true", "decoding=sampling")
    assert typed(*given)[0] == 2
    status, output = typed(*given, "trainer.devices=2", f"output={tmp_path / 'two.jsonl'}")
    assert status == 2, output
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    strips = [(tmp_path / f"{name}.heat_maps" / "3.png").read_bytes() for name in ("out", "two")]
    assert strips[0] == strips[1]
    assert "OMP_WAIT_POLICY" not in os.environ and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


@pytest.mark.slow
@pytest.mark.parametrize("at_line", [3, COUNT - 1])  # much is left, or one batch, which leaves a process without any
def test_two_processes_resume_what_one_began(run_dir, photos, tmp_path, monkeypatch, at_line):
    predict(composed(run_dir, photos, tmp_path / "one.jsonl"))
    with monkeypatch.context() as patch:
        killed(composed(run_dir, photos, tmp_path / "two.jsonl"), patch, at_line)
    predict(composed(run_dir, photos, tmp_path / "two.jsonl", "resume=true", "trainer.devices=2"))
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


@pytest.mark.parametrize("precision", ["32", "int8"])
def test_more_processes_than_batches_make_the_file_of_one(predicted, photos, tmp_path, precision):
    given = (f"input={photos}", f"batch_size={COUNT}", f"precision={precision}")
    predicted(*given)
    predicted(*given, "trainer.devices=2", f"output={tmp_path / 'two.jsonl'}")
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_more_processes_than_devices_of_a_kind_or_none_are_refused(predicted, tmp_path, monkeypatch):
    status, output = predicted("trainer.devices=0")
    assert status == 1 and "trainer.devices=0 must be auto, or a whole number of at least 1" in error_line(output)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["a process", "the parent"])
def test_a_process_that_is_killed_ends_the_run_and_leaves_no_other(run_dir, tmp_path, victim):
    noise = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(3000):
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    given = {"checkpoint": run_dir, "input": tmp_path / "photos", "output": tmp_path / "c.jsonl", "batch_size": BATCH}
    command = [
        sys.executable,
        str(ROOT / "predict.py"),
        "trainer.devices=2",
        *(quoted(f"{k}={v}") for k, v in given.items()),
    ]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / "c.partial.jsonl"
    while not (partial.is_file() and partial.stat().st_size):
        time.sleep(0.2)
        assert running.poll() is None
    [server] = [
        pid
        for pid in children(running.pid)
        if b"multiprocessing.forkserver" in (Path("/proc") / pid / "cmdline").read_bytes()
    ]
    forked = children(int(server))
    assert len(forked) == 2
    os.kill(int(random.Random(1).choice(forked)) if victim == "a process" else running.pid, signal.SIGKILL)
    _, said = running.communicate(timeout=60)
    if victim == "a process":
        assert running.returncode == 1
        assert "error: captioning process" in said and "ended by SIGKILL, most often because memory ran out" in said
        assert "Traceback" not in said
    until = time.monotonic() + 30
    while any((Path("/proc") / pid).exists() for pid in (server, *forked)):
        assert time.monotonic() < until, "an orphan lives on"
        time.sleep(0.5)
    assert all(json.loads(line) for line in partial.read_text().splitlines())


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_folder_of_all_that_goes_wrong_gives_a_row_for_each_file_and_an_end(predicted, photos, tmp_path):
    folder = tmp_path / "awkward"
    folder.mkdir()
    sound = (photos / "0.png").read_bytes()
    names = [b"two\nlines.png", b"latin\xe9.png", b"-rf.png", b"'; rm.png"]
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(sound)
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "circle").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "half.png").write_bytes(sound[: len(sound) // 2])
    status, output = predicted(f"input={folder}")
    assert status == 2, output
    found = {os.fsencode(Path(row["path"]).name): row for row in rows(tmp_path / "out.jsonl")}
    assert found.keys() == {*names, b"dangling.png", b"itself.png", b"pipe.png", b"half.png"}
    assert all("caption" in found[name] for name in names)
    reasons = {name: row["error"] for name, row in found.items() if "error" in row}
    assert reasons == {
        b"dangling.png": "no such file",
        b"itself.png": "Too many levels of symbolic links",
        b"pipe.png": "not a regular file",
        b"half.png": "truncated PNG",
    }


@pytest.mark.slow
def test_100_000_pictures_take_no_more_memory_than_a_thousand():
    command = [sys.executable, str(ROOT / "benchmarks" / "predict_memory.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_pictures_without_a_text_file_are_captioned_and_a_resumed_run_knows_its_own(run_dir, photos, tmp_path):
    torch.set_num_threads(1)
    pictures = shutil.copytree(photos, tmp_path / "photos")
    (pictures / "0.caption").write_text("mine")
    given = (run_dir, pictures, tmp_path / "c.jsonl", "text_files=missing", "text_files.suffix=.caption")
    config = composed(*given)
    assert killed_before_change(lambda: predict(config), pictures, 5, RENAMES), "in the middle of the text files"
    written = len(list(pictures.glob("*.caption")))
    assert predict(composed(*given, "resume=true")).captioned == 7
    assert written < len(list(pictures.glob("*.caption"))) == 8 and (pictures / "0.caption").read_text() == "mine"
    assert predict(composed(*given, "resume=true")).captioned == 7, "it is complete"
    again = predict(composed(run_dir, pictures, tmp_path / "d.jsonl", *given[3:]))
    assert (again.captioned, again.failed) == (0, 3), "what cannot be read has none"
