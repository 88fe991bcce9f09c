"""Captioners from scratch and from their own description, and the switches that change no number."""

import json

import pytest
import torch
from support import CAPTIONS, encoded_rows, random_pictures, small_captioner, trained_tokenizer

from captioning.data.batch import pack
from captioning.errors import UserError
from captioning.model.build import from_description
from captioning.model.captioner import GROUPS
from captioning.model.encoders import resized
from captioning.model.generation import Greedy, generate


@pytest.fixture(scope="module")
def batch():
    return pack(encoded_rows(trained_tokenizer(), [CAPTIONS[:2], CAPTIONS[2:3]]))


def gradients(captioner, batch):
    captioner.loss(batch).nats.backward()
    return {name: p.grad for name, p in captioner.named_parameters()}


@pytest.mark.parametrize(
    ("wrong", "way_out"),
    [
        ({"encoder_heads": 5}, r"model\.encoder_width=32 must be a multiple of model\.encoder_heads=5"),
        ({"decoder_heads": 3}, r"model\.decoder_width=32 must be a multiple of model\.decoder_heads=3"),
        ({"patch_size": 7}, r"model\.image_size=16 must be a multiple of model\.patch_size=7"),
        ({"decoder_heads": 0}, r"model\.decoder_heads=0 must be a whole number of at least 1"),
        ({"encoder_layers": -1}, r"model\.encoder_layers=-1 must be a whole number of at least 1"),
        ({"encoder_width": 32.5}, r"model\.encoder_width=32\.5 must be a whole number"),
        ({"max_positions": None}, r"model\.max_positions=None must be a whole number"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(wrong, way_out):
    with pytest.raises(UserError, match=way_out):
        small_captioner(50, **wrong)


def test_the_architecture_is_as_named():
    captioner = small_captioner(
        50,
        image_size=24,
        patch_size=4,
        encoder_width=40,
        encoder_layers=3,
        encoder_heads=5,
        decoder_width=24,
        decoder_layers=1,
        decoder_heads=2,
        max_positions=9,
        dropout=0.25,
        attention_dropout=0.5,
    )
    encoder, decoder = captioner.network.encoder, captioner.network.decoder
    assert (captioner.vocab_size, captioner.max_positions) == (50, 9)
    assert captioner.picture_format.size == (24, 24)
    assert captioner.encode(random_pictures(2, 24)).shape == (2, 1 + 6 * 6, 24)
    assert encoder.embeddings.position_embeddings.shape == (1, 37, 40)
    assert (len(encoder.layers), encoder.config.num_attention_heads, encoder.config.intermediate_size) == (3, 5, 160)
    assert (len(decoder.transformer.h), decoder.config.n_head) == (1, 2)
    block = decoder.transformer.h[0]
    assert (block.mlp.dropout.p, block.attn.attn_dropout.p, block.crossattention.attn_dropout.p) == (0.25, 0.5, 0.5)


@pytest.mark.parametrize("widths", [{}, {"encoder_width": 48}], ids=["same widths", "projected"])
def test_a_captioner_is_made_again_from_its_description(batch, widths):
    original = small_captioner(300, max_positions=96, dropout=0.1, **widths)
    again = from_description(json.loads(json.dumps(original.description())))  # tuples become lists, as in other files
    assert list(again.state_dict()) == list(original.state_dict())
    again.load_state_dict(original.state_dict())
    again.eval()
    assert again.picture_format == original.picture_format
    assert again.loss(batch).nats == original.loss(batch).nats
    assert again.description() == original.description()
    pictures = random_pictures(4)
    assert generate(again, pictures, Greedy(6)) == generate(original, pictures, Greedy(6))


def test_a_description_survives_a_checkpoint(tmp_path):
    description = small_captioner(300).description()
    torch.save(description, tmp_path / "description.pt")
    assert torch.load(tmp_path / "description.pt", weights_only=True) == description


def test_the_whole_model_computes_the_same_with_gradient_checkpointing(batch):
    exact = small_captioner(300, max_positions=96)
    frugal = small_captioner(300, max_positions=96, gradient_checkpointing=True)
    recomputed = [0, 0]
    for i, layer in enumerate((frugal.network.encoder.layers[0], frugal.network.decoder.transformer.h[0])):
        first = next(iter(layer.children()))
        first.register_forward_hook(lambda *_, i=i: recomputed.__setitem__(i, recomputed[i] + 1))
    for captioner in (exact, frugal):
        captioner.set_trainable(GROUPS)
    expected, found = gradients(exact, batch), gradients(frugal, batch)
    assert recomputed == [2, 2], "both halves run forward twice"
    assert list(found) == list(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_compiling_keeps_the_names_of_weights_and_compiles_both_halves():
    plain, compiled = small_captioner(50), small_captioner(50, compile=True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    halves = (compiled.network.encoder, compiled.network.decoder.transformer)
    assert all(half._compiled_call_impl is not None for half in halves)


def test_compiling_without_a_compiler_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    expected = r"model\.compile=true needs a C\+\+ compiler and no-such-compiler is not .*model\.compile=false"
    with pytest.raises(UserError, match=expected):
        small_captioner(50, compile=True)
    small_captioner(50)


@pytest.mark.slow
def test_a_compiled_model_computes_the_same(batch):
    """A minute or more of C++ on a CPU."""
    plain, compiled = small_captioner(300, max_positions=96), small_captioner(300, max_positions=96, compile=True)
    expected, found = gradients(plain, batch), gradients(compiled, batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)
    pictures = random_pictures(4)
    said = [[c.token_ids for c in generate(captioner, pictures, Greedy(4))] for captioner in (plain, compiled)]
    assert said[0] == said[1]


def test_a_cut_out_picture_keeps_its_part_at_another_size():
    picture_format = small_captioner(50).picture_format
    assert resized(picture_format, (24, 24)).resize_shortest is None
    cut_out = resized(type(picture_format)(size=(16, 16), resize_shortest=20), (32, 48))
    assert (cut_out.size, cut_out.resize_shortest) == ((32, 48), 40)
