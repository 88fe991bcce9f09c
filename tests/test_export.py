"""Whole exports: what transformers makes of the folder is what we make of the run."""

import json
import math
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from PIL import Image
from small_runs import configured
from support import noise_pictures, prediction, transformers_captions
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

from captioning.cli import built
from captioning.config import ExportConfig, TrainConfig
from captioning.errors import UserError
from captioning.export import onnx
from captioning.export.__main__ import main
from captioning.export.card import RunRecord
from captioning.export.folder import export, export_adapter
from captioning.export.int8 import WAYS, Found, Likelihood, Truth, judge_of, with_int8, write_int8
from captioning.export.onnx import OnnxCaptioner
from captioning.model.attention import cross_attention
from captioning.model.build import load_captioner
from captioning.prediction.run import predict
from captioning.runs import keep_composition
from captioning.shapes.__main__ import draw_folder
from captioning.training.run import train
from captioning.weights import find_weights

SMALL = [
    "experiment=demo",
    "logger=csv",
    "sample_pictures=0",
    "data.train_pictures=64",
    "data.val_pictures=8",
    "data.test_pictures=4",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "model.encoder_width=32",
    "model.decoder_width=48",
    "trainer.max_epochs=1",
    "decoding.max_new_tokens=15",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run, with the configuration beside it that Hydra writes for the command."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    config = configured(TrainConfig, *SMALL, f"run_dir='{folder}'")
    train(config)
    keep_composition(folder, config, SMALL)
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    return export(str(run), str(tmp_path_factory.mktemp("exports") / "model"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return noise_pictures(tmp_path_factory.mktemp("pictures"))


def our_captions(checkpoint: Path, pictures: list[Path], output: Path, *overrides: str) -> list[str]:
    predict(prediction(checkpoint, pictures[0].parent, output, "decoding.max_new_tokens=15", *overrides))
    return [json.loads(line)["caption"] for line in output.read_text().splitlines()]


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_of_the_run_the_folder_and_transformers_are_the_same(run, exported, pictures, tmp_path, beams):
    decoding = [] if beams == 1 else ["decoding=beam", f"decoding.num_beams={beams}"]
    ours = our_captions(run, pictures, tmp_path / "run.jsonl", *decoding)
    assert our_captions(exported, pictures, tmp_path / "folder.jsonl", *decoding) == ours
    theirs = transformers_captions(exported, pictures, **({} if beams == 1 else {"num_beams": beams}))
    assert theirs == ours and any(ours)


def test_logits_are_the_same(run, exported):
    captioner, _ = load_captioner(find_weights(run))
    pixels, tokens = torch.randn(2, 3, 48, 48), torch.tensor([[0, 5, 9]] * 2)
    theirs, info = VisionEncoderDecoderModel.from_pretrained(exported, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        expected = captioner.network(pixel_values=pixels, decoder_input_ids=tokens).logits
        logits = theirs.eval()(pixel_values=pixels, decoder_input_ids=tokens).logits
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)


def test_the_tokenizer_is_a_fast_one_with_the_same_words(run, exported):
    _, tokenizer = load_captioner(find_weights(run))
    theirs = AutoTokenizer.from_pretrained(exported)
    assert theirs.is_fast and theirs.vocab_size == tokenizer.vocab_size
    caption = "a red circle is left of a café"
    assert theirs(caption)["input_ids"] == tokenizer.encode([caption])[0][1:-1]
    assert theirs.bos_token_id == theirs.eos_token_id == theirs.pad_token_id == tokenizer.eos_token_id


def test_a_model_of_transformers_is_exported_as_it_is(exported, pictures, tmp_path):
    kept = json.loads((exported / "generation_config.json").read_text()) | {
        "bad_words_ids": [[7], [8, 9]],
        "num_beams": 3,
    }
    assert kept.pop("do_sample") is False, "the default"
    own = shutil.copytree(exported, tmp_path / "own")
    (own / "generation_config.json").write_text(json.dumps(kept))
    again = export(str(own), str(tmp_path / "again"))
    assert json.loads((again / "generation_config.json").read_text()) == kept
    theirs = transformers_captions(own, pictures, max_new_tokens=15)
    assert transformers_captions(again, pictures, max_new_tokens=15) == theirs
    assert "## Data and recipe" not in (again / "README.md").read_text(), "of which nothing is known"


def test_the_folder_holds_all_of_it_and_nothing_else(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert list(exported.parent.iterdir()) == [exported], "nothing is left beside it"
    settings = json.loads((exported / "generation_config.json").read_text())
    assert settings["max_new_tokens"] == 15
    card = (exported / "README.md").read_text()
    assert "| data | shapes, train pictures 64 |" in card and "## Training" in card and "datasets:\n- shapes" in card


def test_a_folder_that_exists_is_replaced_only_when_asked(run, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    (folder / "README.md").write_text("old")
    with pytest.raises(UserError, match=rf"FOLDER={folder} exists already; replace it with --overwrite"):
        export(str(run), str(folder))
    export(str(run), str(folder), overwrite=True)
    assert "a ViT encodes" in (folder / "README.md").read_text()
    assert list(tmp_path.iterdir()) == [folder]


def test_overwriting_spares_what_is_no_model(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=rf"FOLDER={tmp_path} holds no exported model, so --overwrite does not replace"):
        export(str(run), str(tmp_path), overwrite=True)
    with pytest.raises(UserError, match=r"thesis\.txt is a file; name a folder to make"):
        export(str(run), str(tmp_path / "thesis.txt"))
    with pytest.raises(UserError, match=r"can't be written: .*; name another"):
        export(str(run), str(tmp_path / "thesis.txt" / "model"))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failure_leaves_the_old_folder_and_nothing_else(run, exported, tmp_path, monkeypatch):
    folder = shutil.copytree(exported, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("captioning.export.folder.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(str(run), str(folder), overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_mistake_of_the_command_is_one_sentence(capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "no-run"), str(tmp_path / "model")])
    assert f"error: RUN_DIR={tmp_path / 'no-run'} is not there; give a run folder" in str(end.value)
    assert not list(tmp_path.iterdir())


def test_a_push_without_a_network_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(SystemExit, match=r"error: --push me/mine: the Hugging Face hub can't be reached"):
        main([str(run), str(tmp_path / "model"), "--push", "me/mine"])
    assert not list(tmp_path.iterdir())


def test_a_push_uploads_the_finished_folder(run, tmp_path, monkeypatch):
    uploaded = []
    monkeypatch.setattr("captioning.export.folder.require_push", lambda name: None)
    monkeypatch.setattr(
        "captioning.export.folder.pushed", lambda folder, name: uploaded.append((sorted(folder.iterdir()), name))
    )
    export(str(run), str(tmp_path / "model"), push="me/mine")
    ((files, name),) = uploaded
    assert name == "me/mine" and tmp_path / "model" / "model.safetensors" in files
    assert "# me/mine" in (tmp_path / "model" / "README.md").read_text()


@pytest.fixture(scope="module")
def with_onnx(run, tmp_path_factory) -> Path:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} of captioning[onnx] is not installed")
    return export(str(run), str(tmp_path_factory.mktemp("onnx") / "model"), "onnx=true")


def processed(folder: Path, pictures: list[Path]) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor([Image.open(path).convert("RGB") for path in pictures], return_tensors="pt").pixel_values


def test_captions_under_onnx_runtime_are_those_of_the_run(run, with_onnx, pictures, tmp_path):
    captioner, tokenizer = load_captioner(find_weights(run))
    pixels = processed(with_onnx, pictures).numpy()
    graphs = OnnxCaptioner(with_onnx / "onnx")
    ids = graphs.greedy(pixels, *captioner.end_of_text, 15)
    assert [tokenizer.decode(row) for row in ids] == our_captions(run, pictures, tmp_path / "run.jsonl")
    card = (with_onnx / "README.md").read_text()
    assert "its captions\nare greedy" in card and 'pipeline("image-to-text", "model"' in card


def test_the_graph_says_where_the_decoder_looks(run, with_onnx, pictures):
    captioner, _ = load_captioner(find_weights(run))
    pixels = processed(with_onnx, pictures[:1])
    graphs, config = OnnxCaptioner(with_onnx / "onnx"), captioner.network.decoder.config
    none = [torch.zeros(1, config.n_head, 0, config.n_embd // config.n_head).numpy()] * 2 * config.n_layer
    fed = torch.tensor([[config.bos_token_id, 5, 9]])
    *_, looks = graphs.step(fed.numpy(), graphs.encode(pixels.numpy()), none)
    mean, std = captioner.pixel_mean, captioner.pixel_std
    levels = ((pixels * std + mean) * 255).round().byte()
    expected = cross_attention(captioner, levels, [5, 9, 7]).flatten(1)
    torch.testing.assert_close(torch.tensor(looks[0, :, captioner.prefix_tokens :]), expected, atol=1e-5, rtol=0)


def test_graphs_that_compute_something_else_are_not_kept(run, with_onnx, tmp_path, monkeypatch):
    network = VisionEncoderDecoderModel.from_pretrained(with_onnx, attn_implementation="eager").eval()
    halves = onnx.EncoderHalf(network), onnx.DecoderHalf(network.decoder)
    assert onnx.largest_difference(*halves, with_onnx / "onnx", (48, 48)) < 1e-5
    network.decoder.transformer.ln_f.bias.data += 0.01
    with pytest.raises(UserError, match=r"ONNX Runtime's logits differ by .*e-02 from torch's, .*; leave onnx=true"):
        onnx.largest_difference(*halves, with_onnx / "onnx", (48, 48))
    monkeypatch.setattr(onnx, "write_onnx", lambda *_: onnx.largest_difference(*halves, with_onnx / "onnx", (48, 48)))
    with pytest.raises(UserError, match="logits differ"):
        export(str(run), str(tmp_path / "model"), "onnx=true")
    assert not list(tmp_path.iterdir())


BOTH = {"encoder_model.onnx", "decoder_model_merged.onnx"}
IN_INT8 = {name.replace(".onnx", "_quantized.onnx") for name in BOTH}


class Ruling(Truth):
    """A judge whose findings are given: of float32, and of each of `WAYS`."""

    def __init__(self, *values: float):
        self._values, self._scenes = iter(values), []

    def find(self, graphs: OnnxCaptioner) -> Found:
        return Found(next(self._values), [])


def test_int8_is_taken_with_the_first_settings_that_cost_at_most_a_point(with_onnx, tmp_path, caplog):
    caplog.set_level("INFO")
    assert {path.name for path in (with_onnx / "onnx").iterdir()} == BOTH | IN_INT8
    assert "held-out drawn pictures are true" in (with_onnx / "README.md").read_text().partition("In int8")[2]
    graphs = shutil.copytree(with_onnx / "onnx", tmp_path / "kept")
    assert "7 bits), 97.5% of" in with_int8(graphs, Ruling(0.985, 0.974, 0.975))
    assert {path.name for path in graphs.iterdir()} == BOTH | IN_INT8
    assert "with a scale for each channel, 97.4% of" in caplog.text and "too much is lost" in caplog.text
    assert with_int8(graphs, Ruling(0.985, 0.97, 0.97, 0.97, 0.97)) == ""
    assert {
        path.name for path in graphs.iterdir()
    } == BOTH and "since with all settings too much is lost" in caplog.text
    assert "nobody has judged" in with_int8(graphs, None)
    assert {path.name for path in graphs.iterdir()} == BOTH | IN_INT8


def test_a_head_that_stays_in_float32_gives_other_logits_than_one_in_int8(with_onnx, tmp_path):
    graphs = shutil.copytree(with_onnx / "onnx", tmp_path / "graphs")
    attended, ids = np.ones((1, 10, 48), np.float32), np.array([[1, 2, 3]])

    def logits(suffix: str) -> np.ndarray:
        captioner = OnnxCaptioner(graphs, suffix)
        return captioner.step(ids, attended, captioner.no_past(1))[0]

    found = []
    for way in WAYS.values():
        write_int8(graphs, way)
        found.append(np.abs(logits("_quantized") - logits("")).max())
    assert len(set(found)) == len(WAYS) and min(found) > 0 and max(found) < 0.1, found


def test_people_s_captions_are_as_likely_under_the_graphs_as_under_torch(run, with_onnx, monkeypatch):
    monkeypatch.setattr("captioning.export.int8.CAPTIONS", 99)
    captioner, tokenizer = load_captioner(find_weights(run))
    data = configured(ExportConfig, "onnx=true", "data=shapes", "data.val_pictures=7").data
    module = built(data, "data", batch_size=7, num_workers=0)
    judge = Likelihood(captioner, tokenizer, module, "shapes")
    found = judge.find(OnnxCaptioner(with_onnx / "onnx"))
    with torch.no_grad():
        batches = [captioner.eval().loss(batch) for batch in module.val_dataloader()]
    nats, tokens = (sum(map(float, sums)) for sums in zip(*batches, strict=True))
    assert found.value == pytest.approx(math.exp(nats / tokens), rel=1e-4) and len(found.captions) == 7
    other = Found(found.value * 1.011, found.captions)
    assert judge.holds(found, Found(found.value * 1.009, found.captions)) and not judge.holds(found, other)
    assert not judge.holds(found, Found(found.value, [[]] * 4 + found.captions[4:]))
    assert "and 43% of 7 greedy captions stay" in judge.says(found, Found(1, [[]] * 4 + found.captions[4:]))


def test_where_nothing_can_judge_int8_the_log_says_what_can(run, tmp_path, caplog):
    captioner, tokenizer = load_captioner(find_weights(run))
    judge = partial(judge_of, captioner=captioner, tokenizer=tokenizer)
    assert judge(configured(ExportConfig), RunRecord(None)) is None
    assert "since nothing is known of these weights' data; name a data set" in caplog.text
    with pytest.raises(UserError, match=r"page_dtype=q8 needs .* weights' data; name .* or take them unjudged by onnx"):
        judge(configured(ExportConfig, "page=true", "page_dtype=q8"), RunRecord(None))
    (tmp_path / ".hydra").mkdir()
    gone = configured(TrainConfig, "data=flickr8k", "data.root=/nowhere").plain()
    OmegaConf.save(gone, tmp_path / ".hydra" / "config.yaml")
    assert judge(configured(ExportConfig), RunRecord(tmp_path)) is None
    assert "since the run's data cannot be read: data.root=/nowhere" in caplog.text


def test_settings_of_an_export_are_checked_before_anything_is_done(run, tmp_path, monkeypatch):
    for setting, sentence in {
        "onx=true": "there is no key onx; .*did you mean onnx",
        "onnx=maybe": "onnx=maybe must be true or false",
        "onnx_opset=7": "onnx_opset=7 must be a whole number from 18 to 26",
        "onnx_int8=unjudged": "onnx_int8=unjudged is of ONNX graphs; set onnx=true too",
        "page_runtime=cdn onnx=true": "page_runtime=cdn is of a page; set page=true too, or leave it out",
        "data=shapes page=true": "data=shapes judges graphs in int8; leave it out, or set onnx=true",
        "page_dtype=q8 page=true onnx_int8=none": "page_dtype=q8 needs graphs in int8, and onnx_int8=none writes",
        "data=shapes": "data=shapes judges graphs in int8; leave it out, or set onnx=true",
    }.items():
        with pytest.raises(UserError, match=sentence):
            export(str(run), str(tmp_path / "model"), *setting.split())
    monkeypatch.setattr("captioning.export.folder.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx=true needs onnx and onnxscript and onnxruntime; .*captioning\[onnx\]"):
        export(str(run), str(tmp_path / "model"), "onnx=true")


def test_a_model_that_torch_cannot_export_is_one_sentence_and_leaves_nothing(run, tmp_path, monkeypatch):
    def without_an_onnx_form(self, pixel_values):
        return torch.linalg.eigvals(pixel_values).real

    pytest.importorskip("onnxscript", reason="onnxscript of captioning[onnx] is not installed")
    monkeypatch.setattr(onnx.EncoderHalf, "forward", without_an_onnx_form)
    with pytest.raises(UserError, match=r"^onnx=true: torch \S+ can't export the vit: No ONNX function .*eig"):
        export(str(run), str(tmp_path / "model"), "onnx=true")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_transformers_js_gives_500_held_out_pictures_the_captions_of_predict(tmp_path):
    node = ROOT / "tests" / "node"
    if shutil.which("node") is None or not (node / "node_modules").is_dir():
        pytest.skip("Node, or what `npm ci --ignore-scripts` puts into tests/node, is not here")
    trained = tmp_path / "run"
    train(configured(TrainConfig, *SMALL[:3], "data.train_pictures=1500", f"run_dir='{trained}'"))
    draw_folder(
        tmp_path / "pictures", "test", 500, 42, 48
    )  # of the model's size: what is larger it resizes another way
    pictures = sorted((tmp_path / "pictures").iterdir())
    folder = export(str(trained), str(tmp_path / "model"), "onnx=true", "onnx_int8=none")
    command = ["node", "caption.mjs", str(folder), "fp32", *map(str, pictures)]
    lines = subprocess.run(command, cwd=node, check=True, capture_output=True, text=True).stdout.splitlines()
    expected = our_captions(trained, pictures, tmp_path / "captions.jsonl")
    assert [json.loads(line) for line in lines] == expected and len(set(expected)) > 100


@pytest.fixture(scope="module")
def adapted(run, tmp_path_factory) -> Path:
    """A run of adapters that begins with the other one."""
    folder = tmp_path_factory.mktemp("adapters") / "run"
    given = [*SMALL, "stage=full", f"model.init_from='{run}'", "model.lora.rank=2", "trainer.limit_train_batches=1"]
    given += ["stage.phases=[{from_epoch: 0, train: [cross_attention, decoder, encoder]}]", "scores=0"]
    config = configured(TrainConfig, *given, f"run_dir='{folder}'")
    train(config)
    keep_composition(folder, config, given)
    return folder


def test_a_run_with_adapters_exports_them_and_a_merged_model(run, exported, adapted, pictures, tmp_path):
    peft = pytest.importorskip("peft")
    whole = export(str(adapted), str(tmp_path / "whole"))
    folder = export_adapter(str(adapted), str(tmp_path / "adapter"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert our_captions(whole, pictures, tmp_path / "a.jsonl") == our_captions(adapted, pictures, tmp_path / "b.jsonl")
    base = VisionEncoderDecoderModel.from_pretrained(exported)
    joined = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    merged = VisionEncoderDecoderModel.from_pretrained(whole).eval()
    pixels, tokens = torch.randn(2, 3, 48, 48), torch.tensor([[0, 5, 9]] * 2)
    with torch.no_grad():
        expected = merged(pixel_values=pixels, decoder_input_ids=tokens).logits
        logits = joined(pixel_values=pixels, decoder_input_ids=tokens).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert "PeftModel" in (folder / "README.md").read_text()
    assert "adapters | rank 2, targets" in (whole / "README.md").read_text()


def test_an_adapter_that_would_not_be_the_whole_truth_is_refused(run, adapted, tmp_path):
    with pytest.raises(UserError, match="has no adapters"):
        export_adapter(str(run), str(tmp_path / "none"))
    half = shutil.copytree(adapted, tmp_path / "run")
    contents = torch.load(half / "checkpoints" / "best.ckpt", weights_only=True)
    contents["captioner"]["description"]["lora"]["targets"] = ["decoder"]
    names = [name for name in contents["state_dict"] if ".encoder." in name and ".lora_" in name]
    contents["state_dict"] = {
        name.replace(".base_layer", "") if ".encoder." in name else name: weight
        for name, weight in contents["state_dict"].items()
        if name not in names
    }
    torch.save(contents, half / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="has trained the whole encoder beside its adapters"):
        export_adapter(str(half), str(tmp_path / "half"))
    assert not (tmp_path / "half").exists()
