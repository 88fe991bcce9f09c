"""A data set of one's own, by one class and one file of configuration: trained, resumed, captioned, exported."""

import csv
import json

import pytest
from data_sets import draw

# docs/extending.md shows these two files.
BIRDS = '''
"""Photographs that are named by their captions."""

from pathlib import Path

from captioning.data.datamodule import CaptionDataModule, PhotographFiles
from captioning.data.records import Split


class Birds(CaptionDataModule):
    """`root/train/a red bird.jpg`, and so for `val` and `test`."""

    def __init__(self, *, root: str, **common):
        super().__init__(**common)
        self._root = Path(root)

    def read(self) -> dict[str, Split]:
        return {name: self._split(name) for name in ("train", "val", "test")}

    def _split(self, name: str) -> Split:
        paths = sorted((self._root / name).glob("*.jpg"))
        return Split([path.name for path in paths], [[path.stem] for path in paths], PhotographFiles(paths, "error"))
'''
CONF = """
defaults: [_common]
_target_: my_birds.Birds
root: ???
tokenizer: null
num_workers: 0
"""
SMALL = (
    *("model=tiny", "stage=full", "trainer=cpu", "logger=csv", "scores.pictures=0"),
    *("model.image_size=16", "model.encoder_layers=1", "model.decoder_layers=1"),
)
COLOURS = {"train": ("red", "blue", "green", "white"), "val": ("grey", "pink"), "test": ("brown",)}


@pytest.fixture
def own(command, tmp_path, monkeypatch):
    """Runs a script with the package and its configuration in reach."""
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/birds.yaml").write_text(CONF)
    (tmp_path / "my_birds.py").write_text(BIRDS)
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
