"""A family of encoders is one entry: with the one of docs/extending.md a SigLIP tower goes the whole way."""

from pathlib import Path

import pytest
import torch
from support import CAPTIONS, encoded_rows, model_config, random_pictures, randomise, trained_tokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    VisionEncoderDecoderModel,
)
from worked_examples import EXAMPLES

from captioning.config import GROUPS
from captioning.data.batch import pack
from captioning.errors import UserError
from captioning.model.attention import cross_attention
from captioning.model.build import Vocabulary, fine_tuned, from_description, new_captioner
from captioning.model.captioner import ImageCaptioner
from captioning.model.encoders import ENCODERS, EncoderFamily
from captioning.model.generation import Greedy, generate
from captioning.model.huggingface import load_model, save_model
from captioning.training.optimizers import adamw
from captioning.weights import HuggingFaceModel

exec(EXAMPLES["captioning/model/encoders.py"], example := {"EncoderFamily": EncoderFamily, "ENCODERS": {}})
SIGLIP: EncoderFamily = example["SIGLIP"]
POSITIONS = f"encoder.{SIGLIP.positions}"
TOKENIZER = trained_tokenizer()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A folder with a small `siglip` and a small `gpt2`, as the library saves them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    encoder = SiglipVisionModel(SiglipVisionConfig(hidden_size=32, image_size=32, patch_size=8, **sizes))
    decoder = GPT2LMHeadModel(
        GPT2Config(vocab_size=TOKENIZER.vocab_size, n_embd=48, n_layer=2, n_head=4, n_positions=48)
    )
    for name, model in (("siglip", encoder), ("gpt2", decoder)):
        randomise(model, 0.3)
        model.save_pretrained(folder / name)
    SiglipImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3).save_pretrained(folder / "siglip")
    return folder


def build(checkpoints: Path, image_size: int | None = None) -> ImageCaptioner:
    halves = {"encoder": str(checkpoints / "siglip"), "decoder": str(checkpoints / "gpt2")}
    return new_captioner(
        model_config("vit_gpt2", **halves, image_size=image_size, dropout=0.0), Vocabulary.of(TOKENIZER)
    )


@pytest.fixture
def captioner(checkpoints, monkeypatch) -> ImageCaptioner:
    monkeypatch.setitem(ENCODERS, SIGLIP.model_type, SIGLIP)
    captioner = build(checkpoints)
    for part in (captioner.network.decoder, captioner.network.enc_to_dec_proj):
        randomise(part, 0.4, seed=1)
    return captioner.eval()


def test_without_an_entry_a_family_is_refused(checkpoints):
    with pytest.raises(UserError, match=r"model\.encoder=\S+ is a siglip_vision_model model; a vit model is needed"):
        build(checkpoints)


def test_its_weights_and_its_processor_are_loaded(captioner, checkpoints):
    theirs = dict(SiglipVisionModel.from_pretrained(checkpoints / "siglip").named_parameters())
    ours = dict(captioner.network.encoder.named_parameters())
    assert theirs.keys() - ours.keys() == {name for name in theirs if name.startswith("head.")}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert captioner.picture_format.mean == pytest.approx((0.4, 0.4, 0.4))
    pictures = random_pictures(2, 32)
    states = captioner.encoder_states(pictures)
    assert states.shape[1:] == captioner.encoder_shape() == (16, 32)
    expected = SiglipVisionModel.from_pretrained(checkpoints / "siglip").eval()
    pixels = (pictures.float() / 255 - 0.4) / 0.5
    torch.testing.assert_close(states, expected(pixels).last_hidden_state)


def test_a_step_trains_it_and_its_positions_are_not_decayed(captioner):
    captioner.set_trainable(GROUPS)
    optimizer = adamw(captioner, weight_decay=0.1, betas=(0.9, 0.999), fused=False)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    batch = pack(encoded_rows(TOKENIZER, [CAPTIONS[:2], CAPTIONS[5:6]], size=32))
    before = captioner.loss(batch).nats
    before.backward()
    optimizer.step()
    assert captioner.loss(batch).nats < before
    weights = dict(captioner.network.named_parameters())
    assert not captioner.is_decayed(POSITIONS, weights[POSITIONS]) and weights[POSITIONS].grad.norm() > 0


def test_the_maps_of_its_attention_have_a_place_for_every_patch(captioner):
    maps = cross_attention(captioner, random_pictures(1, 32), [7, 3, 0])
    assert maps.shape == (3, 4, 4)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3))  # there is no prefix token to look at


@pytest.mark.parametrize("way", ["pretrained", "fine-tuned"])
def test_its_positions_are_interpolated_as_the_library_does(captioner, checkpoints, way):
    larger = (
        build(checkpoints, 48)
        if way == "pretrained"
        else fine_tuned(captioner, model_config("vit_gpt2", image_size=48))
    )
    assert larger.encoder_shape() == (36, 32) and larger.patch_grid(larger.picture_format.size) == (6, 6)
    pictures = random_pictures(2, 48)
    expected = SiglipVisionModel.from_pretrained(checkpoints / "siglip").eval()
    pixels = (pictures.float() / 255 - 0.4) / 0.5
    states = larger.eval().encoder_states(pictures)
    torch.testing.assert_close(states, expected(pixels, interpolate_pos_encoding=True).last_hidden_state)


def test_it_comes_back_from_a_description_and_from_transformers_with_its_captions(captioner, tmp_path):
    pictures = random_pictures(6, 32)
    captions = generate(captioner, pictures, Greedy(8))
    assert len({tuple(caption.token_ids) for caption in captions}) > 1
    again = from_description(captioner.description())
    again.load_state_dict(captioner.state_dict())
    assert generate(again.eval(), pictures, Greedy(8)) == captions
    save_model(captioner, tmp_path, {})
    _, info = VisionEncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    again = load_model(HuggingFaceModel(str(tmp_path), "checkpoint"))
    assert again.picture_format == captioner.picture_format
    assert [c.token_ids for c in generate(again, pictures, Greedy(8))] == [c.token_ids for c in captions]
