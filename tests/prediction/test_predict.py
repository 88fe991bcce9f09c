"""Whole predictions through `predict.py`, with a model that one tiny run of `train.py` made."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import SMOKE, composed
from support import prediction

from captioning.cli import configured
from captioning.config import PredictConfig
from captioning.data.readers.coco import read_results
from captioning.prediction import caption, run
from captioning.training.run import train


@pytest.fixture(scope="module")
def run_dir(once) -> Path:
    return once("a run", lambda folder: train(composed(folder, run=SMOKE)))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five pictures of noise in natural order, the fourth of them no picture."""
    folder = tmp_path / "my photos, (2024)"
    (folder / "trip").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name in ("1.jpg", "2.png", "10.jpg", "trip/1.jpg"):
        Image.fromarray(noise.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / name)
    (folder / "11.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def usual(run_dir, photos, tmp_path):
    """Arguments of predict.py on the photos, with these in place of their own."""

    def arguments(*given: str) -> list[str]:
        keys = {argument.partition("=")[0] for argument in given}
        usual = {"checkpoint": run_dir, "input": photos, "output": tmp_path / "out.jsonl", "num_workers": 0}
        usual["decoding.max_new_tokens"] = 8
        return [*(f"{k}={v}" for k, v in usual.items() if k not in keys), *given]

    return arguments


@pytest.fixture
def predicted(predict_command, usual):
    """Predicts the photos: (status, terminal output)."""
    return lambda *arguments: predict_command(*usual(*arguments))


@pytest.fixture
def typed(command, usual):
    """The same by the command itself, as it is typed."""
    return lambda *arguments: command("predict.py", *usual(*arguments))


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def captions(path: Path) -> list[str | None]:
    return [row.get("caption") for row in rows(path)]


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def error_line(output: str) -> str:
    """The one sentence that a mistake ends in."""
    assert "Traceback" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    return line


def test_there_is_a_row_for_every_picture_in_input_order(typed, photos, tmp_path):
    status, output = typed("batch_size=2")
    assert status == 2, output
    found = rows(tmp_path / "out.jsonl")
    names = ["1.jpg", "2.png", "10.jpg", "11.jpg", "trip/1.jpg"]
    assert [row["path"] for row in found] == [str(photos / name) for name in names]
    assert found.pop(3) == {"path": str(photos / "11.jpg"), "error": "empty file"}
    assert all(row.keys() == {"path", "caption", "log_probability"} for row in found)
    assert all(row["log_probability"] < 0 for row in found)
    assert "1 of 5 pictures could not be read" in output and "pictures/s" in output
    assert listing(tmp_path) == {photos.name, "out.jsonl", "out.settings.json"}


def test_the_settings_beside_the_rows_say_how_they_were_made(predicted, run_dir, photos, tmp_path):
    predicted("decoding=sampling", "decoding.top_p=0.9", "seed=7", "batch_size=3")
    settings = json.loads((tmp_path / "out.settings.json").read_text())
    assert settings["checkpoint"] == str(run_dir) and settings["input"] == str(photos)
    assert settings["decoding"].items() >= {"top_p": 0.9, "seed": 7, "max_new_tokens": 8}.items()
    assert (settings["precision"], settings["batch_size"]) == (32, 3)


def test_the_status_is_0_where_every_picture_got_a_caption(predicted, photos, tmp_path):
    status, output = predicted(f"input={photos / '*.png'}")
    assert status == 0, output
    assert len(rows(tmp_path / "out.jsonl")) == 1


def test_workers_batches_and_the_checkpoints_own_name_change_no_caption(predicted, run_dir, tmp_path):
    predicted()
    best = run_dir / "checkpoints" / "best.ckpt"
    predicted("num_workers=2", "batch_size=3", f"checkpoint={best}", f"output={tmp_path / 'b.jsonl'}")
    assert captions(tmp_path / "b.jsonl") == captions(tmp_path / "out.jsonl")


def test_rows_carry_the_n_best_of_a_beam_search_and_no_more(predicted, tmp_path):
    status, output = predicted("decoding=beam", "decoding.num_beams=3", "decoding.n_best=2")
    assert status == 2, output
    for row in (row for row in rows(tmp_path / "out.jsonl") if "caption" in row):
        assert row.keys() == {"path", "caption", "log_probability", "alternatives"}
        assert [one.keys() for one in row["alternatives"]] == [{"caption", "log_probability"}] * 2
        assert row["alternatives"][0] == {"caption": row["caption"], "log_probability": row["log_probability"]}
        assert row["alternatives"][0] != row["alternatives"][1]
    predicted(
        "decoding=beam", "decoding.num_beams=3", "decoding.early_stopping=never", f"output={tmp_path / 'best.jsonl'}"
    )
    assert captions(tmp_path / "best.jsonl") == captions(tmp_path / "out.jsonl")
    assert not any("alternatives" in row for row in rows(tmp_path / "best.jsonl"))


@pytest.mark.parametrize("precision", ["bf16", "16", "int8"])
def test_lower_precision_captions_every_picture_too(predicted, tmp_path, precision):
    status, output = predicted(f"precision={precision}")
    assert status == 2, output
    assert sum(caption is not None for caption in captions(tmp_path / "out.jsonl")) == 4


def test_an_input_may_be_a_list_of_names_that_look_like_numbers(typed, photos, tmp_path, monkeypatch):
    shutil.copy(photos / "1.jpg", tmp_path / "7")
    monkeypatch.chdir(tmp_path)
    status, output = typed("input=[7,8]")
    assert status == 2, output
    assert [row["path"] for row in rows(tmp_path / "out.jsonl")] == ["7", "8"]
    assert rows(tmp_path / "out.jsonl")[1]["error"] == "no such file"


def test_a_seed_decides_the_sampled_captions_whatever_the_batch_size(predicted, tmp_path):
    for name, changed in {"a": [], "again": [], "batches": ["batch_size=1"], "other": ["seed=1"]}.items():
        given = ("decoding=sampling", "decoding.max_new_tokens=20", f"output={tmp_path / name}")
        status, output = predicted(*given, *changed)
        assert status == 2, output
    first = captions(tmp_path / "a")
    assert len(set(first)) == 5, "every picture has its own draws"
    assert captions(tmp_path / "again") == first == captions(tmp_path / "batches")
    assert captions(tmp_path / "other") != first


def test_sampling_does_not_depend_on_the_pictures_around_it(predicted, photos, tmp_path):
    predicted("decoding=sampling")
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    shutil.copy(photos / "10.jpg", alone)
    predicted("decoding=sampling", f"input={alone}", f"output={tmp_path / 'b.jsonl'}")
    assert captions(tmp_path / "b.jsonl") == [captions(tmp_path / "out.jsonl")[2]]


def test_what_a_folder_really_holds_is_captioned_or_named(predicted, tmp_path):
    folder = tmp_path / "awkward"
    folder.mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    for name, mode in (("grey.jpg", "L"), ("cmyk.jpg", "CMYK"), ("clear.png", "RGBA"), ("palette.gif", "P")):
        picture.convert(mode).save(folder / name)
    picture.resize((1, 1)).save(folder / "point.png")
    picture.resize((900, 3)).save(folder / "strip.png")
    picture.save(folder / 'sp ace, "ünï".jpg')
    (folder / "cut.jpg").write_bytes((folder / "grey.jpg").read_bytes()[:300])
    (folder / "page.jpg").write_text("<html>Not found</html>")
    status, output = predicted(f"input={folder}", "batch_size=4")
    assert status == 2, output
    failed = {Path(row["path"]).name for row in rows(tmp_path / "out.jsonl") if "error" in row}
    assert failed == {"cut.jpg", "page.jpg"}
    assert len(rows(tmp_path / "out.jsonl")) == 9


def test_every_file_of_the_awkward_folder_comes_out_as_its_manifest_says(predicted, shared_data, tmp_path):
    folder = shared_data / "awkward-images"
    status, output = predicted(f"input={folder}", "num_workers=2")
    assert status == 2, output
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {Path(row["path"]).name: "caption" in row for row in rows(tmp_path / "out.jsonl")}
    assert found == {name: told["readable"] for name, told in manifest.items()}


def test_where_nothing_can_be_read_there_is_still_a_row_for_each(predicted, photos, tmp_path):
    status, _ = predicted(f"input={photos / '11.jpg'}")
    assert status == 2
    assert rows(tmp_path / "out.jsonl") == [{"path": str(photos / "11.jpg"), "error": "empty file"}]


@pytest.fixture
def no_weights(monkeypatch):
    """Loading a model is a failure: a refusal comes before it."""
    monkeypatch.setattr(run, "load_captioner", lambda checkpoint: pytest.fail("the weights were loaded"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["decoding=beem"], "decoding=beem is none of"),
        (["device=nowhere"], "device=nowhere must be auto, cpu, cuda"),
        (["device=hpu"], "device=hpu is not available on this machine; device=auto"),
        (["batch_size=0"], "batch_size=0 must be auto, or a whole number of at least 1"),
        (["input=/nowhere/at/all"], "input=/nowhere/at/all is neither a folder nor a file"),
        (["inptu=photos"], "did you mean input?"),
        (["output=captions.txt"], "output=captions.txt ends in .txt; name a .jsonl, a .csv or a .json file"),
        (["output=captions.json"], "1.jpg would both be image_id 1 of COCO results"),
    ],
)
def test_a_mistake_is_answered_before_any_weight_is_loaded(no_weights, typed, photos, tmp_path, arguments, said):
    status, output = typed(*arguments)
    assert status == 1
    assert said in error_line(output)
    assert listing(tmp_path) == {photos.name}


def test_a_folder_without_pictures_is_refused_before_any_weight_is_loaded(no_weights, predicted, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.md").touch()
    status, output = predicted(f"input={tmp_path / 'empty'}")
    assert status == 1
    assert "which holds 1 other files; check the path" in error_line(output)


@pytest.mark.parametrize("place", ["out.jsonl", "a folder/../out.jsonl/more.jsonl"])
def test_an_output_that_cannot_be_is_refused_before_any_weight_is_loaded(no_weights, predicted, tmp_path, place):
    (tmp_path / "out.jsonl").write_text("old")
    (tmp_path / "a folder").mkdir()
    status, output = predicted(f"output={tmp_path / place}")
    assert status == 1
    said = {"out.jsonl": "exists already; replace it with overwrite=true"}
    assert said.get(place, "is a file, not a folder") in error_line(output)
    assert (tmp_path / "out.jsonl").read_text() == "old"


@pytest.mark.parametrize("kind", ["missing", "no run", "text", "foreign", "cut"])
def test_a_checkpoint_that_is_none_is_refused_and_nothing_is_written(predicted, run_dir, photos, tmp_path, kind):
    path = tmp_path / "a.ckpt"
    if kind == "no run":
        path.mkdir()
    elif kind == "text":
        path.write_text("no weights")
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind == "cut":
        path.write_bytes((run_dir / "checkpoints" / "best.ckpt").read_bytes()[:50_000])
    before = listing(tmp_path)
    status, output = predicted(f"checkpoint={path}")
    assert status == 1
    said = {
        "missing": "is not there; give a run folder",
        "no run": "holds no checkpoints/best.ckpt or checkpoints/last.ckpt",
        "text": "or is no checkpoint; give one",
        "foreign": "of another program or architecture",
        "cut": "is damaged",
    }
    assert said[kind] in error_line(output)
    assert listing(tmp_path) == before


def test_more_tokens_than_the_model_has_positions_for_are_refused(predicted, photos, tmp_path):
    status, output = predicted("decoding.max_new_tokens=128")
    assert status == 1
    assert "decoding.max_new_tokens=128 is more than this model's limit of 127" in error_line(output)
    assert listing(tmp_path) == {photos.name}


def stopped_at_the_second_batch(monkeypatch, stop) -> None:
    original, calls = caption.generate_from, []

    def generate(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            stop()
        return original(*arguments)

    monkeypatch.setattr(caption, "generate_from", generate)


def test_overwriting_replaces_the_old_rows(predicted, tmp_path):
    (tmp_path / "out.jsonl").write_text("old")
    status, output = predicted("overwrite=true")
    assert status == 2, output
    assert len(rows(tmp_path / "out.jsonl")) == 5


def test_a_failure_while_overwriting_loses_nothing(typed, monkeypatch, tmp_path):
    typed()
    before = {name: (tmp_path / name).read_text() for name in ("out.jsonl", "out.settings.json")}

    def fail():
        raise MemoryError("too large a picture")

    stopped_at_the_second_batch(monkeypatch, fail)
    status, output = typed("overwrite=true", "batch_size=2", "decoding.max_new_tokens=3")
    assert status == 1 and "too large a picture" in output
    assert {name: (tmp_path / name).read_text() for name in before} == before


def test_an_interruption_keeps_the_rows_so_far_and_says_where(typed, monkeypatch, photos, tmp_path):
    stopped_at_the_second_batch(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    status, output = typed("batch_size=2")
    assert status == 1
    assert "interrupted" in output and "Traceback" not in output
    partial = tmp_path / "out.partial.jsonl"
    assert f"the 2 lines so far are in {partial}" in output
    assert [Path(row["path"]).name for row in rows(partial)] == ["1.jpg", "2.png"]
    assert listing(tmp_path) == {photos.name, "out.partial.jsonl", "out.jsonl.settings.partial.json"}


def test_a_process_killed_while_overwriting_leaves_the_old_rows(run_dir, photos, tmp_path, monkeypatch):
    (tmp_path / "out.jsonl").write_text("old")
    config = prediction(run_dir, photos, tmp_path / "out.jsonl", "batch_size=2", "overwrite=true")
    if (child := os.fork()) == 0:
        try:
            signal.alarm(60)
            torch.set_num_threads(1)  # the threads of torch's pool stayed behind in the parent
            stopped_at_the_second_batch(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
            run.predict(config)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert len(rows(tmp_path / "out.partial.jsonl")) == 2, "and what was done is not lost"


def test_a_gallery_and_heat_maps_are_made_on_the_way(predicted, tmp_path):
    status, output = predicted("gallery=true", "heat_maps=[1.jpg]", "heat_maps_layers=0", "precision=int8")
    assert status == 2, output
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count('<li class="card"') == 5 and "No caption: empty file" in page
    assert page.count("Where the model looked") == 2
    assert listing(tmp_path / "out.heat_maps") == {"1.png", "1-2.png"}
    assert f"gallery: {tmp_path / 'out.html'}" in output


@pytest.mark.parametrize("asked", ["heat_maps=[3.jpg]", "heat_maps_layers=7", "gallery=3", "heat_maps=true"])
def test_a_view_that_cannot_be_is_refused_with_nothing_written(predicted, photos, tmp_path, asked):
    status, output = predicted(asked)
    assert status == 1 and asked.partition("=")[0] in error_line(output)
    assert listing(tmp_path) == {photos.name}


def test_a_csv_file_for_a_spreadsheet_and_a_text_file_beside_each_picture(predicted, photos, tmp_path):
    status, output = predicted(f"output={tmp_path / 'out.csv'}", "text_files=true", "batch_size=2")
    assert status == 2, output
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["error"] for row in found] == ["", "", "", "empty file", ""]
    beside = {path: path.with_suffix(".txt") for path in (Path(row["path"]) for row in found)}
    assert [beside[Path(row["path"])].exists() for row in found] == [True, True, True, False, True]
    for row in found[:3]:
        assert beside[Path(row["path"])].read_text(encoding="utf-8").strip() == row["caption"].removeprefix("'")
    status, output = predicted("text_files=true", f"output={tmp_path / 'again.jsonl'}")
    assert status == 1
    assert "4 of 5 text files exist already" in error_line(output)
    assert not (tmp_path / "again.jsonl").exists()


def test_coco_results_are_what_the_evaluation_reads(predicted, photos, tmp_path):
    (photos / "1.jpg").rename(photos / "000000000139.jpg")
    status, output = predicted(f"output={tmp_path / 'out.json'}")
    assert status == 2, output
    assert list(read_results(tmp_path / "out.json")) == ["2", "10", 139, "1"]
    assert "1 of 5 pictures could not be read; the results leave them out" in output


def test_a_model_of_drawn_shapes_says_that_it_knows_no_photographs(run_dir):
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    assert "it knows drawn shapes alone" in run.knows_no_photographs(checkpoint, None)
    assert run.knows_no_photographs(checkpoint, configured(PredictConfig, "checkpoint=-", "data=shapes").data) == ""


def test_prefix_draws_and_trigger_words_stand_in_every_row(predicted, usual, tmp_path):
    words = ["decoding=sampling", "decoding.n_best=3", "decoding.prefix='a red circle'", "caption_suffix=', a photo'"]
    assert predicted(*words, "caption_prefix='xyz man, '", "text_files=true")[0] == 2
    rows = [row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()) if "error" not in row]
    texts = [text for row in rows for text in (row["caption"], *(one["caption"] for one in row["alternatives"]))]
    assert len(texts) == 16 and all(len(row["alternatives"]) == 3 for row in rows)
    assert all(text.startswith("xyz man, a red circle") and text.endswith(", a photo") for text in texts)
    beside = tmp_path / "my photos, (2024)" / "1.txt"
    assert beside.read_text().strip() == rows[0]["caption"]
    settings = json.loads((tmp_path / "out.settings.json").read_text())
    assert settings["caption_prefix"] == "xyz man, " and settings["decoding"]["prefix"] == "a red circle"


def test_a_prefix_longer_than_the_positions_is_refused_before_anything_is_written(predicted, tmp_path):
    status, output = predicted("decoding.prefix='" + "a red circle " * 200 + "b'")
    assert status == 1 and "decoding.prefix has" in output and "shorten one of them" in output
    assert not (tmp_path / "out.jsonl").exists()
