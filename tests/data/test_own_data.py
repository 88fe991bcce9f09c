"""A data set of one's own, by one class and one file of configuration: trained, resumed, captioned, exported."""

import csv
import json

import pytest
from data_sets import draw
from worked_examples import EXAMPLES

SMALL = (
    *("model=tiny", "stage=full", "trainer=cpu", "logger=csv", "scores.pictures=0"),
    *("model.image_size=16", "model.encoder_layers=1", "model.decoder_layers=1"),
)
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
    from captioning.export import main as export

    run, photos = tmp_path / "run", f"data.root={tmp_path / 'photos'}"
    own("train.py", *SMALL, "data=birds", photos, f"run_dir={run}", "trainer.max_epochs=1")
    own("train.py", f"resume={run}", "trainer.max_epochs=2")
    with (run / "metrics.csv").open(newline="") as file:
        assert sum(bool(row["val/perplexity"]) for row in csv.DictReader(file)) == 2
    own("predict.py", f"checkpoint={run}", "data=birds", photos, f"output={tmp_path / 'captions.jsonl'}", "java=false")
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in rows] == ["a grey bird.jpg", "a pink bird.jpg"]
    assert "perplexity" in json.loads((tmp_path / "scores.json").read_text())
    export([str(run), str(tmp_path / "exported")])
    assert "my_birds" in (tmp_path / "exported" / "README.md").read_text()
