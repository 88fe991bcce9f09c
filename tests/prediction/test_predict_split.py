"""predict.py on a split of a data set: captions, scores and perplexity, each picture encoded once."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import SMOKE, composed
from test_predict import error_line, listing, rows

from captioning.data.readers.coco import read_results
from captioning.evaluation.scoring import score
from captioning.training.run import train

WANDB = Path(sys.executable).with_name("wandb")
DATA = ["data=shapes", "data.train_pictures=24", "data.val_pictures=8", "data.test_pictures=4", "java=false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(composed(tmp_path_factory.mktemp("run"), run=SMOKE))


def test_a_data_set_that_is_not_there_is_told_at_once(command, trained, tmp_path):
    given = [f"checkpoint={trained.run_dir}", f"output={tmp_path / 'out.jsonl'}"]
    status, output = command("predict.py", *given, "data=coco", "data.root=/nowhere")
    assert status == 1 and "/nowhere" in error_line(output)
    assert listing(tmp_path) == set()


@pytest.fixture
def predicted(predict_command, trained, tmp_path):
    """Predicts the data set: (status, terminal output)."""

    def run(*arguments: str, output=tmp_path / "out.jsonl") -> tuple[int, str]:
        return predict_command(f"checkpoint={trained.run_dir}", f"output={output}", *DATA, *arguments)

    return run


def test_a_split_is_captioned_scored_and_measured(command, trained, tmp_path):
    given = (f"checkpoint={trained.run_dir}", f"output={tmp_path / 'out.jsonl'}", *DATA)
    status, output = command("predict.py", *given, "split=test")
    assert status == 0, output
    expected = {"out.jsonl", "out.settings.json", "results.json", "scores.json", "pictures.csv", "out.wandb"}
    assert listing(tmp_path) == expected
    told = json.loads((tmp_path / "scores.json").read_text())
    references = trained.datamodule.references("test")
    candidates = read_results(tmp_path / "results.json")
    assert list(candidates) == list(references)
    assert candidates == {row["image_id"]: row["caption"] for row in rows(tmp_path / "out.jsonl")}
    scores = score(candidates, references)
    assert {name: told[name] for name in scores.corpus} == pytest.approx(scores.corpus)
    assert told["signature"] == scores.signature and told["unreadable_pictures"] == 0
    assert told["perplexity"] == pytest.approx(trained.metrics["test/perplexity"], rel=1e-5)
    assert f"CIDEr {scores.corpus['CIDEr']:.4f}" in output and f"test perplexity {told['perplexity']:.4f}" in output


def test_the_table_has_each_pictures_captions_and_scores(predicted, trained, tmp_path):
    predicted("split=val", "logger=csv")
    with (tmp_path / "pictures.csv").open(newline="", encoding="utf-8-sig") as file:
        table = list(csv.DictReader(file))
    references = trained.datamodule.references("val")
    assert [row["image_id"] for row in table] == [str(picture) for picture in references]
    assert [row["references"].split("\n") for row in table] == [list(captions) for captions in references.values()]
    own = json.loads((tmp_path / "scores.json").read_text())["per_picture"]
    assert [float(row["CIDEr"]) for row in table] == pytest.approx([row["CIDEr"] for row in own], abs=1e-6)


def test_each_picture_is_encoded_once_for_both_captions_and_perplexity(predicted, monkeypatch):
    from transformers import ViTModel

    encoded, forward = [], ViTModel.forward

    def counted(self, pixel_values, **arguments):
        encoded.append(len(pixel_values))
        return forward(self, pixel_values, **arguments)

    monkeypatch.setattr(ViTModel, "forward", counted)
    status, output = predicted("split=val", "batch_size=3", "logger=csv")
    assert status == 0, output
    assert encoded == [3, 3, 2]


def test_the_gallery_shows_references_and_scores(predicted, tmp_path):
    status, output = predicted("split=test", "gallery=true", "logger=csv")
    assert status == 0, output
    page = (tmp_path / "out.html").read_text()
    assert "CIDEr" in page and "references" in page.lower()


def test_scores_join_the_run_in_whose_folder_they_lie(predicted, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.run_dir, folder)
    (folder / "wandb-run-id.txt").write_text("abcd1234\n")
    status, output = predicted("split=test", output=folder / "test.jsonl")
    assert status == 0, output
    (logged,) = (folder / "wandb").glob("offline-run-*-abcd1234")
    known = subprocess.run([WANDB, "leet", "inspect", "--json", logged], capture_output=True, text=True, check=True)
    assert "test/cider" in known.stdout and "test/pictures" in known.stdout and "test/perplexity" in known.stdout
    assert not (folder / "test.wandb").exists()


def test_scores_are_not_in_wandb_where_their_run_is_not(command, trained, tmp_path):
    folder = shutil.copytree(trained.run_dir, tmp_path / "run")
    given = [f"checkpoint={folder}", f"output={folder / 'test.jsonl'}", "split=test", "overwrite=true"]
    (folder / "wandb-run-id.txt").unlink(missing_ok=True)
    status, output = command("predict.py", *given, *DATA)
    assert status == 0 and f"not in W&B, as the run in {folder} is not" in output
    assert "scores.json" in listing(folder) and not {"wandb-run-id.txt", "wandb", "test.wandb"} & listing(folder)
    status, output = command("predict.py", *given, *DATA, f"output={folder / 'val.jsonl'}", "overwrite=false")
    assert status == 1 and f"output={folder / 'val.jsonl'}: {folder / 'results.json'} exists already" in output
    assert "name an output in another folder" in output


def test_another_seed_than_the_runs_is_told(command, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.run_dir, folder)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("seed: 7\n")
    for seed, is_told in ((42, True), (7, False)):
        given = [f"checkpoint={folder}", f"output={tmp_path / str(seed)}.jsonl", f"seed={seed}", "overwrite=true"]
        status, output = command("predict.py", *given, *DATA, "split=test", "logger=csv")
        assert status == 0 and ("the run divided its data with seed=7" in output) == is_told, output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["split=train2"], "split=train2 is none of train, val, test, the splits of shapes"),
        (["input=photos"], "input=photos and data=shapes are both given; leave one out"),
        (["text_files=true"], "text_files=true writes beside the pictures of input"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_and_nothing_is_written(predicted, tmp_path, arguments, words):
    status, output = predicted(*arguments)
    assert status == 1 and words in error_line(output)
    assert listing(tmp_path) == set()


def test_scores_that_exist_are_replaced_only_where_that_is_said(predicted, tmp_path):
    (tmp_path / "scores.json").write_text("mine")
    status, output = predicted("split=test")
    assert status == 1 and "scores.json exists already" in error_line(output)
    assert listing(tmp_path) == {"scores.json"} and (tmp_path / "scores.json").read_text() == "mine"
    status, output = predicted("split=test", "overwrite=true", "logger=csv")
    assert status == 0, output
    assert json.loads((tmp_path / "scores.json").read_text())["CIDEr"] >= 0


def test_the_captions_of_a_split_can_be_a_table(predicted, tmp_path):
    status, output = predicted("split=test", "logger=csv", output=tmp_path / "out.csv")
    assert status == 0, output
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8-sig") as file:
        assert all(row["image_id"] for row in csv.DictReader(file))
