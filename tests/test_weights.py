"""What a name given as weights means, and a sentence for what it can't."""

import json
from pathlib import Path
from zipfile import ZipFile

import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf

from captioning import weights
from captioning.errors import UserError
from captioning.weights import HuggingFaceModel, find_weights, refuse_overruled

VIT_GPT2 = {"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}}


def folder_with(path: Path, config: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def test_a_run_and_a_file_are_checkpoints_and_a_folder_with_a_config_is_transformers(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    ZipFile(best, "w").close()
    assert find_weights(tmp_path / "run") == find_weights(str(best)) == best
    folder = folder_with(tmp_path / "model", VIT_GPT2)
    assert find_weights(str(folder), "model.init_from") == HuggingFaceModel(str(folder), "model.init_from")


def test_a_name_of_the_hub_is_looked_for_there(monkeypatch, tmp_path):
    asked = []

    def fetched(name: str, file: str) -> Path:
        asked.append((name, file))
        return folder_with(tmp_path, VIT_GPT2) / file

    monkeypatch.setattr(weights, "fetched_file", fetched)
    assert find_weights("someone/vit-gpt2") == HuggingFaceModel("someone/vit-gpt2", "checkpoint")
    assert asked == [("someone/vit-gpt2", "config.json")]


def test_a_name_in_the_local_cache_is_found_without_a_network(monkeypatch, tmp_path):
    repository = tmp_path / "models--someone--vit-gpt2"
    folder_with(repository / "snapshots" / "abc", VIT_GPT2)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_weights("someone/vit-gpt2") == HuggingFaceModel("someone/vit-gpt2", "checkpoint")


def test_a_name_that_the_hub_does_not_have_is_refused_with_a_way_out():
    with pytest.raises(
        UserError, match=r"checkpoint=nobody/no-model is not there, could not be fetched .* model\.safe"
    ):
        find_weights("nobody/no-model")


@pytest.mark.parametrize("name", ["none", "there/no-run", "nobody/a.ckpt", "a/b/c", "no body/model"])
def test_what_can_be_no_name_of_the_hub_is_a_missing_path(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(
        UserError, match=rf"checkpoint={name} is not there; give a run folder of train\.py, a \.ckpt file"
    ):
        find_weights(name)


def test_a_folder_of_neither_kind_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"model\.init_from=.* holds no checkpoints/best.* and no config\.json of transf"
    ):
        find_weights(tmp_path, "model.init_from")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"model_type": "bert"},
            r"is a bert model, by its config\.json; give a VisionEncoderDecoderModel of a ViT, .* or Swin and",
        ),
        ({"model_type": "vit"}, r"is a vit model alone, half a captioner; give .*-captioning$"),
        ({"model_type": "gpt2"}, r"is a gpt2 model alone, half a captioner; give .*-captioning$"),
        (VIT_GPT2 | {"decoder": {"model_type": "bert"}}, r"has a bert as its decoder, and a gpt2 is needed; give"),
        (
            VIT_GPT2 | {"encoder": {"model_type": "bit"}},
            r"has a bit as its encoder, and a vit, .* or swin is needed; give",
        ),
        ({"model_type": "clip"}, r"is a clip model alone, half a captioner; give .*-captioning$"),
        (VIT_GPT2 | {"encoder": None}, r"has a None as its encoder"),
        ([1], r"is a None model, by its config\.json"),
        ('{"model_type": ', r"has a config\.json that can't be read; give an undamaged model"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path, config, said):
    with pytest.raises(UserError, match=rf"^checkpoint={tmp_path} {said}"):
        find_weights(folder_with(tmp_path, config))


def test_half_a_captioner_can_be_trained_with(tmp_path):
    with pytest.raises(UserError, match=rf", or train with model\.encoder={tmp_path}$"):
        find_weights(folder_with(tmp_path, {"model_type": "vit"}), "model.init_from")


PRETRAINED = {"model": {"init_from": "X", "encoder": "E", "image_size": None, "dropout": 0.1}}
SIZES = {"model": {"init_from": "X", "image_size": 64, "decoder_width": 32}}


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (PRETRAINED, "model.encoder"),
        (PRETRAINED, "data.tokenizer"),
        (SIZES, "model.decoder_width"),
        (SIZES, "model.image_size"),
    ],
)
def test_what_comes_with_the_weights_cannot_be_chosen_as_well(config, key):
    with pytest.raises(UserError, match=rf"^{key} comes from model\.init_from=X; leave one of the two out"):
        refuse_overruled(OmegaConf.create(config), ["seed", key])
    refuse_overruled(OmegaConf.create({"model": config["model"] | {"init_from": None}}), [key])


def test_the_rest_can_be_chosen():
    refuse_overruled(
        OmegaConf.create(PRETRAINED), ["model.dropout", "model.image_size", "model.init_from", "data.root"]
    )
