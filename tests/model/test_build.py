"""Captioners from scratch, from their own description and made ready to be trained on."""

import json

import pytest
import torch
from support import CAPTIONS, encoded_rows, model_config, random_pictures, small_captioner, trained_tokenizer
from torch._dynamo.utils import counters

from captioning.config import GROUPS, OwnModelConfig
from captioning.data.batch import pack
from captioning.errors import UserError
from captioning.model.build import Vocabulary, fine_tuned, from_description, new_captioner, skip_layers
from captioning.model.captioner import ImageCaptioner
from captioning.model.encoders import resized
from captioning.model.generation import Greedy, generate


@pytest.fixture(scope="module")
def batch():
    return pack(encoded_rows(trained_tokenizer(), [CAPTIONS[:2], CAPTIONS[2:3]]))


def gradients(captioner, batch):
    captioner.loss(batch).nats.backward()
    return {name: p.grad for name, p in captioner.named_parameters()}


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


def test_compiling_keeps_the_names_of_weights_and_compiles_every_layer():
    plain, compiled = small_captioner(50), small_captioner(50, compile=True)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    layers = {name for name, module in compiled.network.named_modules() if module._compiled_call_impl is not None}
    assert layers == {f"{half}.{n}" for half in ("encoder.layers", "decoder.transformer.h") for n in (0, 1)}


def test_compiling_without_a_compiler_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    expected = r"model\.compile=true needs a C\+\+ compiler and no-such-compiler is not .*model\.compile=false"
    with pytest.raises(UserError, match=expected):
        small_captioner(50, compile=True)
    small_captioner(50)


@pytest.mark.slow
def test_a_compiled_model_computes_the_same(batch):
    """Seconds of C++ on a CPU."""
    plain, compiled = small_captioner(300, max_positions=96), small_captioner(300, max_positions=96, compile=True)
    compiled.loss(batch)  # layers are compiled for the second step of as many rows
    counters.clear()
    expected, found = gradients(plain, batch), gradients(compiled, batch)
    assert counters["frames"]["ok"] == 2, "a layer of each half"
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


def own_captioner(width: int, **vocabulary: int) -> ImageCaptioner:
    """A user's own function."""
    return small_captioner(vocabulary["vocab_size"], end_of_text=vocabulary["eos_token_id"], decoder_width=width)


def test_a_users_own_function_makes_the_captioner_of_its_keys_and_the_vocabulary():
    keys = {"init_from": None, "_target_": f"{__name__}.own_captioner"}
    captioner = new_captioner(OwnModelConfig(**keys, width=48), Vocabulary(60, 7, 7))
    assert captioner.network.decoder.config.n_embd == 48
    assert (captioner.vocab_size, captioner.end_of_text) == (60, (7, 7))
    with pytest.raises(UserError, match=r"model cannot be set up so: .*missing 1 required .* 'width'"):
        new_captioner(OwnModelConfig(**keys), Vocabulary(60, 7, 7))


BEFORE = small_captioner(40, encoder_width=48)


def tuned(**changed) -> ImageCaptioner:
    keys = {"dropout": 0.2, "attention_dropout": 0.3} | changed
    return fine_tuned(BEFORE, model_config("vit_gpt2", **keys))


def test_fine_tuning_starts_from_the_same_weights_and_shares_none():
    after = tuned()
    saved = dict(BEFORE.network.named_parameters())
    assert saved.keys() == dict(after.network.named_parameters()).keys()
    for name, weight in after.network.named_parameters():
        assert torch.equal(weight, saved[name]) and weight.data_ptr() != saved[name].data_ptr(), name
    assert after.picture_format == BEFORE.picture_format


def test_the_dropout_of_fine_tuning_is_the_one_asked_for():
    blocks = tuned().network.decoder.transformer.h
    assert {(b.attn.attn_dropout.p, b.crossattention.resid_dropout.p, b.mlp.dropout.p) for b in blocks} == {
        (0.3, 0.2, 0.2)
    }


def test_fine_tuning_heeds_the_switches():
    encoder = tuned(gradient_checkpointing=True).network.encoder
    assert any(getattr(m, "gradient_checkpointing", False) for m in encoder.modules())


def test_larger_pictures_interpolate_the_position_embeddings():
    after = tuned(image_size=32).eval()
    assert after.picture_format.size == (32, 32)
    assert after.encode(random_pictures(2, size=32)).shape == (2, 17, 32)
    assert torch.equal(tuned(image_size=16).eval().encode(random_pictures(2)), BEFORE.encode(random_pictures(2)))


def test_an_image_size_that_patches_do_not_tile_is_refused():
    with pytest.raises(UserError, match=r"model\.image_size=20 must be a multiple of the patch size 8"):
        tuned(image_size=20)


def test_the_sizes_of_a_tiny_model_do_not_count():
    after = fine_tuned(BEFORE, model_config("tiny", image_size=64, decoder_layers=7))
    assert after.picture_format == BEFORE.picture_format and len(after.network.decoder.transformer.h) == 2


def test_layers_are_skipped_in_training_with_a_chance_that_grows_with_depth():
    captioner = small_captioner(97, encoder_layers=3)
    states = captioner.encoder_states(random_pictures(2))
    skip_layers(captioner, 0.9)
    torch.testing.assert_close(captioner.encoder_states(random_pictures(2)), states, msg="not in evaluation")
    layers, seen = captioner.network.encoder.layers, []
    for layer in layers:
        layer.register_forward_hook(lambda _, given, output: seen.append((given[0] == output).flatten(1).all(1)))
    captioner.train()
    torch.manual_seed(0)
    for _ in range(100):
        captioner.encoder_states(random_pictures(4))
    skipped = torch.stack(seen).view(100, 3, 4).float().mean((0, 2))
    assert [round(float(share), 1) for share in skipped] == [0.3, 0.6, 0.9], "each picture by itself"
    assert 0 < seen[0].sum() < 4 or 0 < seen[1].sum() < 4
    with torch.no_grad():
        assert not torch.isnan(captioner.encoder_states(random_pictures(2))).any()
