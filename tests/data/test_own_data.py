"""A data set of one's own, by one class and one file of configuration: trained, resumed, captioned, exported."""

import csv
import json

import pytest
from data_sets import draw, write
from worked_examples import EXAMPLES

from captioning.data import datasets, readers
from captioning.errors import UserError
from captioning.export.folder import export

SMALL = (
    *("model=tiny", "stage=full", "trainer=cpu", "logger=csv", "scores.pictures=0", "sample_pictures=0"),
    *("model.image_size=16", "model.encoder_layers=1", "model.decoder_layers=1"),
)
QUICK = ("java=false", "logger=csv")
COLOURS = {"train": ("red", "blue", "green", "white"), "val": ("grey", "pink"), "test": ("brown",)}


@pytest.fixture
def own(command, tmp_path, monkeypatch):
    """Runs a script with the package and its configuration in reach."""
    (tmp_path / "conf/data").mkdir(parents=True)
    for name in ("conf/data/birds.yaml", "my_birds.py"):
        (tmp_path / name).write_text(EXAMPLES[name])
    monkeypatch.syspath_prepend(tmp_path)
    for split, colours in COLOURS.items():
        for colour in colours:
            draw(tmp_path / "photos" / split / f"a {colour} bird.jpg", colour)

    def run(script, *arguments):
        status, output = command(script, f"--config-dir={tmp_path / 'conf'}", *arguments)
        assert status == 0, output
        return output

    return run


def test_a_data_set_of_ones_own_trains_resumes_predicts_and_is_exported(own, tmp_path):
    run, photos = tmp_path / "run", f"data.root={tmp_path / 'photos'}"
    own("train.py", *SMALL, "data=birds", photos, f"run_dir={run}", "trainer.max_epochs=1")
    own("train.py", f"resume={run}", "trainer.max_epochs=2")
    with (run / "metrics.csv").open(newline="") as file:
        assert sum(bool(row["val/perplexity"]) for row in csv.DictReader(file)) == 2
    own("predict.py", f"checkpoint={run}", "data=birds", photos, f"output={tmp_path / 'captions.jsonl'}", *QUICK)
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in rows] == ["a grey bird.jpg", "a pink bird.jpg"]
    assert "perplexity" in json.loads((tmp_path / "scores.json").read_text())
    export(str(run), str(tmp_path / "exported"))
    assert "my_birds" in (tmp_path / "exported" / "README.md").read_text()


def test_photographs_with_captions_in_a_format_of_ones_own_are_one_entry(tmp_path, monkeypatch):
    reader = write(tmp_path / "mine.py", EXAMPLES["captioning/data/readers/mine.py"])
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(reader.parent)])
    monkeypatch.setattr(datasets, "SOURCES", dict(datasets.SOURCES))
    exec(EXAMPLES["captioning/data/datasets.py"], vars(datasets))
    splits = {"a.jpg": "train", "b.jpg": "train", "c.jpg": "val"}
    rows = [{"file": name, "captions": [f"caption of {name}"], "split": split} for name, split in splits.items()]
    write(tmp_path / "set/captions.jsonl", *map(json.dumps, rows))
    for name in splits:
        draw(tmp_path / "set/pictures" / name)
    photographs = datasets.find_photographs("mine", tmp_path / "set")
    assert {photograph.image_id: photograph.split for photograph in photographs} == splits
    assert photographs[0].path.is_file() and photographs[0].captions == ("caption of a.jpg",)
    with pytest.raises(UserError, match="did you mean data=mine"):
        datasets.find_photographs("coco", tmp_path / "set")
