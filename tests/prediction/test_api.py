"""From Python: the same captions, checks and sentences as the command line."""

import json
import math
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from small_runs import SMOKE
from test_predict import captions, photos, predicted, rows, run_dir, usual  # noqa: F401  # fixtures

import captioning
from captioning import Captioner
from captioning.data.images import UnreadablePicture
from captioning.errors import UserError
from captioning.prediction.strips import GAP, PANEL

# ruff: noqa: F811  # fixtures of another file


@pytest.fixture(scope="module")
def captioner(run_dir) -> Captioner:
    return Captioner.from_pretrained(run_dir)


def test_a_model_of_drawn_shapes_says_what_it_knows(run_dir, caplog):
    Captioner.from_pretrained(run_dir)
    assert "it knows drawn shapes alone" in caplog.text


@pytest.mark.parametrize(
    ("decoding", "keys"),
    [("greedy", {}), ("beam", {"num_beams": 3, "n_best": 2}), ("sampling", {"temperature": 0.7, "seed": 3})],
)
def test_captions_are_those_of_the_command(captioner, predicted, photos, tmp_path, decoding, keys):
    given = [f"{key}={value}" if key == "seed" else f"decoding.{key}={value}" for key, value in keys.items()]
    predicted(f"decoding={decoding}", *given)
    expected = rows(tmp_path / "out.jsonl")
    made = captioner.caption([Path(row["path"]) for row in expected], decoding, max_new_tokens=8, **keys)
    assert [record.caption for record in made] == captions(tmp_path / "out.jsonl")
    assert [record.error for record in made] == [row.get("error") for row in expected]
    assert [round(one.log_probability, 6) for one in made if one.caption] == [
        row["log_probability"] for row in expected if "caption" in row
    ]
    assert [len(one.alternatives) for one in made if one.caption] == [keys.get("n_best", 0)] * 4


def test_a_picture_is_one_however_it_is_given(captioner, photos):
    path = photos / "2.png"
    expected = captioner.caption(path)
    image = Image.open(path)
    for picture in (str(path), image, np.asarray(image), image.convert("RGBA")):
        assert captioner.caption(picture).caption == expected.caption
    assert captioner.caption(np.asarray(image)[..., 0]).caption, "grey"
    assert captioner.caption([]) == []


def test_a_url_is_fetched_and_a_bad_answer_is_its_reason(captioner, photos):
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            path = photos / self.path.strip("/")
            self.send_response(200 if path.is_file() else 404)
            self.end_headers()
            if path.is_file():
                self.wfile.write(path.read_bytes())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    try:
        found, missing, empty = captioner.caption([f"{root}/2.png", f"{root}/3.png", f"{root}/11.jpg"])
    finally:
        server.shutdown()
        server.server_close()
    assert found.caption == captioner.caption(photos / "2.png").caption and found.path == f"{root}/2.png"
    assert missing.error == "not fetched: 404 Not Found" and empty.error == "not a picture, or damaged at its start"
    with pytest.raises(UnreadablePicture, match=r"not fetched: .*refused"):
        captioner.caption(f"{root}/2.png")


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        ("nowhere.jpg", "nowhere.jpg: no such file"),
        (np.zeros((3, 8, 8), np.uint8), r"picture 0: an array of shape \(3, 8, 8\) and type uint8; give \(H, W, 3\)"),
        (np.zeros((8, 8, 3), np.float32), "type float32"),
    ],
)
def test_one_picture_that_cannot_be_read_is_an_error(captioner, picture, reason):
    with pytest.raises(UnreadablePicture, match=reason):
        captioner.caption(picture)


def test_mistakes_are_the_command_lines_sentences(captioner, run_dir, photos):
    with pytest.raises(UserError, match=r"there is no key decoding\.temperature as things are chosen; it is of"):
        captioner.caption(photos / "2.png", temperature=2)
    with pytest.raises(UserError, match="decoding=beem is none of beam, greedy, sampling; did you mean beam"):
        captioner.caption(photos / "2.png", "beem")
    with pytest.raises(UserError, match="checkpoint=nowhere is not there"):
        Captioner.from_pretrained("nowhere")
    with pytest.raises(UserError, match="precision=8 is none of auto, 32, bf16, 16, int8"):
        Captioner.from_pretrained(run_dir, precision=8)


def test_scores_are_log_probabilities_of_captions(captioner, photos):
    texts = ["a red circle is above a square", "a circle"]
    ours, tokenizer = captioner._model.captioner, captioner._model.tokenizer
    pixels = captioner._transform(Image.open(photos / "2.png"))[None]
    for text, score in zip(texts, captioner.score(photos / "2.png", texts), strict=True):
        ids = torch.tensor(tokenizer.encode([text]))
        network = ours.network(pixel_values=(pixels / 255 - ours.pixel_mean) / ours.pixel_std, decoder_input_ids=ids)
        each = network.logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        assert math.isclose(score, each.mean().item(), abs_tol=1e-4)
    with pytest.raises(ValueError, match=r"has 20\d\d tokens, and this model takes"):
        captioner.score(photos / "2.png", ["circle " * 2000])


def test_a_heat_map_is_that_of_the_command(captioner, predicted, photos, tmp_path):
    predicted("heat_maps=1", "decoding.max_new_tokens=40")
    (file,) = (tmp_path / "out.heat_maps").iterdir()
    strip = captioner.heat_map(photos / "1.jpg")
    assert np.array_equal(np.asarray(strip), np.asarray(Image.open(file)))
    panels = 3  # the picture, the word, the end
    assert captioner.heat_map(photos / "1.jpg", "circle", layers=0).width == panels * (PANEL + GAP) + GAP
    with pytest.raises(UserError, match="heat_maps_layers=7 must name layers"):
        captioner.heat_map(photos / "1.jpg", layers=7)


def test_a_training_and_a_prediction_are_those_of_the_commands(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = {"data.train_pictures": 8, "trainer.max_epochs": 1, "scores.pictures": 0}
    run = captioning.train(*SMOKE, run_dir="a run", **keys)
    assert run.metrics["val/perplexity"] > 1 and run.run_dir == Path("a run")
    with pytest.raises(UserError, match="already holds a run; continue it with"):
        captioning.train(*SMOKE, run_dir="a run", **keys)
    longer = captioning.train(**{"resume": "a run", "trainer.max_epochs": 2})
    assert longer.trainer.current_epoch == 2
    done = captioning.predict(checkpoint="a run", input=photos, output="out.csv", overwrite=True)
    assert (done.captioned, done.failed, done.output) == (4, 1, Path("out.csv"))


def test_the_page_and_the_notebook_run(run_dir, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run_dir)
    shutil.copytree(photos, tmp_path / "photos")
    small = (*SMOKE[1:], "data.train_pictures=8", "data.val_pictures=4", "scores.pictures=0", "trainer.max_epochs=1")
    train = captioning.train

    def small_train(*overrides, **keys):
        return train(*overrides, **keys) if "resume" in keys else train(*overrides, *small, **keys)

    monkeypatch.setattr("captioning.api.train", small_train)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert len(names["best"].alternatives) == 3 and len(names["varied"]) == 3
    assert "photos/missing.jpg None nan no such file" in capsys.readouterr().out
    assert (tmp_path / "where_it_looked.png").is_file() and names["done"].captioned == 4
    notebook = json.loads((ROOT / "examples" / "caption.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "notebooks are committed without outputs"
            exec("".join(cell["source"]), names)
    assert names["run"].metrics["val/perplexity_floor"] > 1
