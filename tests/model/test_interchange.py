"""Whole captioners in and out of transformers' format, whose own captions are the reference."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import Touches, noise_pictures, random_pictures, saved_model, small_captioner, transformers_captions
from transformers import CLIPImageProcessor, VisionEncoderDecoderModel

from captioning.data.images import read_picture
from captioning.data.transforms import EvaluationTransform
from captioning.errors import UserError
from captioning.model.build import load_captioner
from captioning.model.generation import Beam, Greedy, generate
from captioning.model.huggingface import load_model, save_model
from captioning.weights import HuggingFaceModel

LENGTH = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    saved_model(folder / "gpt2 tokens")
    saved_model(folder / "own tokens", own_tokens=True, encoder_width=48)
    return folder


@pytest.fixture
def copied(models, tmp_path) -> Path:
    """One of them, to be spoiled."""
    return shutil.copytree(models / "gpt2 tokens", tmp_path / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return noise_pictures(tmp_path_factory.mktemp("pictures"))


def change(folder: Path, file: str, **settings: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def our_captions(model: Path, pictures: list[Path], decoding) -> list[str]:
    captioner, tokenizer = load_captioner(HuggingFaceModel(str(model), "checkpoint"))
    transform = EvaluationTransform(captioner.picture_format)
    pixels = torch.stack([transform(read_picture(path)) for path in pictures])
    return [tokenizer.decode(caption.token_ids) for caption in generate(captioner, pixels, decoding)]


def beam(num_beams: int) -> Beam:
    return Beam(LENGTH, num_beams, 1.0, False, no_repeat_ngram_size=0, min_new_tokens=0, n_best=1)


@pytest.mark.parametrize("name", ["gpt2 tokens", "own tokens"])
def test_captions_are_those_of_transformers(models, pictures, name):
    model = models / name
    greedy = transformers_captions(model, pictures, max_new_tokens=LENGTH, do_sample=False)
    assert our_captions(model, pictures, Greedy(LENGTH)) == greedy
    assert len(set(greedy)) > 1
    searched = transformers_captions(model, pictures, max_new_tokens=LENGTH, num_beams=3, do_sample=False)
    assert our_captions(model, pictures, beam(3)) == searched != greedy


def test_some_captions_end_at_the_models_own_end(models, pictures):
    captioner, tokenizer = load_captioner(HuggingFaceModel(str(models / "own tokens"), "checkpoint"))
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, captioner.network.config.pad_token_id}) == 3
    assert captioner.vocab_size == tokenizer.vocab_size + 6
    lengths = {len(c.token_ids) for c in generate(captioner, random_pictures(24), Greedy(LENGTH))}
    assert min(lengths) < LENGTH


def test_a_model_of_the_hub_before_generation_settings_existed_is_understood(models, pictures, copied):
    expected = transformers_captions(copied, pictures, max_new_tokens=LENGTH, do_sample=False)
    (copied / "generation_config.json").unlink()
    config = json.loads((copied / "config.json").read_text())
    assert config["decoder"].pop("eos_token_id") == config["eos_token_id"]
    config["decoder"] |= {"activation_function": "gelu_new", "_name_or_path": "gpt2", "torch_dtype": None}
    (copied / "config.json").write_text(json.dumps(config | {"transformers_version": "4.15.0"}))
    old = {"feature_extractor_type": "ViTFeatureExtractor", "do_resize": True, "do_normalize": True, "size": 16}
    kept = json.loads((copied / "preprocessor_config.json").read_text())
    old |= {key: kept[key] for key in ("image_mean", "image_std", "resample")}
    (copied / "preprocessor_config.json").write_text(json.dumps(old))
    weights = load_file(copied / "model.safetensors")
    assert "encoder.encoder.layer.0.attention.attention.query.weight" in weights, "as the hub's files name them"
    mask = torch.ones(48, 48).tril().view(1, 1, 48, 48)
    masks = {
        f"decoder.transformer.h.{n}.{part}.bias": mask.clone() for n in (0, 1) for part in ("attn", "crossattention")
    }
    head = {"decoder.lm_head.weight": weights["decoder.transformer.wte.weight"].clone()}
    save_file(weights | masks | head, copied / "model.safetensors", {"format": "pt"})
    assert our_captions(copied, pictures, Greedy(LENGTH)) == expected


def test_its_other_generation_settings_are_named_and_not_used(copied, pictures, caplog):
    expected = our_captions(copied, pictures, Greedy(LENGTH))
    change(copied, "generation_config.json", num_beams=4, max_length=5, _from_model_config=False)
    caplog.set_level(logging.INFO, "captioning")
    assert our_captions(copied, pictures, Greedy(LENGTH)) == expected
    assert "checkpoint: decoding=... decides, not its own max_length=5, num_beams=4" in caplog.text


def test_weights_in_several_files_are_understood(copied, pictures):
    expected = our_captions(copied, pictures, Greedy(LENGTH))
    network = VisionEncoderDecoderModel.from_pretrained(copied)
    (copied / "model.safetensors").unlink()
    network.save_pretrained(copied, max_shard_size="40KB")
    assert len(list(copied.glob("model-*.safetensors"))) > 1
    assert our_captions(copied, pictures, Greedy(LENGTH)) == expected


def test_every_weight_but_an_unused_pooler_must_be_there(copied):
    weights = load_file(copied / "model.safetensors")
    without_pooler = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(without_pooler, copied / "model.safetensors", {"format": "pt"})
    load_model(str(copied), "checkpoint")
    del without_pooler["decoder.transformer.h.1.crossattention.q_attn.weight"]
    save_file(without_pooler, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"does not hold the weights .*h\.1\.crossattention\.q_attn\.weight is missing"):
        load_model(str(copied), "checkpoint")


def test_weights_in_a_pickle_are_read_only_where_that_is_allowed_and_as_data_even_then(copied, tmp_path):
    weights, proof = load_file(copied / "model.safetensors"), tmp_path / "proof"
    torch.save(weights, copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"={copied} has no model\.safetensors.* with allow_pickle=true"):
        load_model(str(copied), "checkpoint")
    assert load_model(str(copied), "checkpoint", allow_pickle=True).vocab_size
    torch.save({**weights, "more": Touches(proof)}, copied / "pytorch_model.bin")
    for allow_pickle in (False, True):
        with pytest.raises(UserError, match=f"checkpoint={copied} h.*pickle"):
            load_model(str(copied), "checkpoint", allow_pickle)
    assert not proof.exists()


def test_code_that_comes_with_a_model_is_not_run(copied, tmp_path):
    proof = tmp_path / "proof"
    code = f"from pathlib import Path\nPath({str(proof)!r}).touch()\n"
    (copied / "code.py").write_text(f"{code}from transformers import VisionEncoderDecoderModel as Model\n")
    config = json.loads((copied / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Model", "AutoModel": "code.Model", "AutoImageProcessor": "code.Model"}
    (copied / "config.json").write_text(json.dumps(config))
    assert load_model(str(copied), "checkpoint", allow_pickle=True).vocab_size
    assert not proof.exists()


def test_half_a_file_of_weights_is_refused(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=rf"checkpoint={copied} is a folder without a readable model\.safetensors"):
        load_model(str(copied), "checkpoint")


def test_without_a_processor_it_is_refused(copied):
    (copied / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=rf"{copied} is a folder without a readable preprocessor_config\.json"):
        load_model(str(copied), "checkpoint")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eos_token_id": [0, 3]}, r"has eos_token_id=\[0, 3\]; captions have one beginning and one end"),
        ({"eos_token_id": None}, r"names no eos_token_id in its generation_config\.json or config\.json"),
        ({"decoder_start_token_id": None, "bos_token_id": None}, r"names no decoder_start_token_id in its"),
    ],
)
def test_a_model_without_one_beginning_and_one_end_is_refused(copied, settings, said):
    change(copied, "generation_config.json", _from_model_config=False, **settings)
    with pytest.raises(UserError, match=said):
        load_model(str(copied), "checkpoint")


def test_one_end_in_a_list_is_understood(copied):
    change(copied, "generation_config.json", _from_model_config=False, eos_token_id=[0, 0])
    assert load_model(str(copied), "checkpoint").network.decoder.config.eos_token_id == 0


def test_a_captioner_comes_back_with_its_logits_and_its_format(tmp_path):
    ours = small_captioner(50, encoder_width=48, pixel_mean=0.3)
    save_model(ours, tmp_path, {"max_new_tokens": 7})
    again = load_model(str(tmp_path), "checkpoint")
    theirs, info = VisionEncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.generation_config.max_new_tokens == 7
    assert again.picture_format == ours.picture_format
    pictures, tokens = random_pictures(3), torch.tensor([[0, 4, 7]] * 3)
    with torch.no_grad():
        expected = ours.network(pixel_values=pictures.float() / 127.5 - 0.6, decoder_input_ids=tokens).logits
        for network in (again.network, theirs.eval()):
            logits = network(pixel_values=pictures.float() / 127.5 - 0.6, decoder_input_ids=tokens).logits
            torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)


def test_a_processor_that_crops_comes_back(tmp_path, copied):
    cropping = CLIPImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})
    cropping.save_pretrained(copied)
    ours = load_model(str(copied), "checkpoint")
    assert (ours.picture_format.size, ours.picture_format.resize_shortest) == ((16, 16), 18)
    save_model(ours, tmp_path / "again", {})
    assert load_model(str(tmp_path / "again"), "checkpoint").picture_format == ours.picture_format


def test_a_processor_with_another_scale_gives_the_same_numbers(copied):
    change(copied, "preprocessor_config.json", rescale_factor=1 / 127.5, image_mean=[1, 0.8, 0.6], image_std=[1, 2, 3])
    found = load_model(str(copied), "checkpoint").picture_format
    assert found.mean == pytest.approx((0.5, 0.4, 0.3)) and found.std == pytest.approx((0.5, 1, 1.5))
    change(copied, "preprocessor_config.json", do_rescale=False, image_mean=[127.5] * 3, image_std=[255] * 3)
    assert load_model(str(copied), "checkpoint").picture_format.mean == pytest.approx((0.5, 0.5, 0.5))
