"""oneDNN's linear layers: fp32 is exact, int8 is near, and the captioner that they were copied from stays as it was."""

import pytest
import torch
from support import random_pictures, small_captioner
from torch import nn
from transformers.pytorch_utils import Conv1D

from captioning.model.captioner import ImageCaptioner
from captioning.model.cpu import Int8Linear, PackedLinear, with_int8_weights, with_packed_weights
from captioning.model.generation import Beam, Greedy, generate

BEAM = Beam(12, 3, 1.0, False, 0, 0, 1)
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(scope="module")
def captioner() -> ImageCaptioner:
    return small_captioner(40, spread=0.5, end_of_text=39, encoder_width=48)


@needs_onednn
@pytest.mark.parametrize("decoding", [Greedy(12), BEAM], ids=["greedy", "beam"])
def test_packed_weights_change_no_caption(captioner, decoding):
    pictures = random_pictures(64)
    packed = generate(with_packed_weights(captioner), pictures, decoding)
    for one, other in zip(packed, generate(captioner, pictures, decoding), strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


@needs_onednn
@pytest.mark.parametrize("relaid", [with_packed_weights, with_int8_weights])
def test_no_stock_linear_layer_is_left_and_the_original_keeps_its_own(captioner, relaid):
    before = dict(captioner.state_dict())
    copied = relaid(captioner)
    assert not [name for name, module in copied.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    after = captioner.state_dict()
    assert before.keys() == after.keys() and all(after[name] is not None for name in before)
    assert [module for module in captioner.modules() if isinstance(module, nn.Linear | Conv1D)]
    assert copied.network.decoder.transformer.wte.weight is captioner.network.decoder.transformer.wte.weight


def test_without_onednn_the_captioner_itself_is_used(captioner, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert with_packed_weights(captioner) is captioner


@needs_onednn
@pytest.mark.parametrize("bias", [None, torch.arange(24.0)], ids=["no bias", "bias"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("layer", "tolerance"), [(PackedLinear, 1e-5), (Int8Linear, 0.02)])
def test_a_layer_computes_what_a_stock_one_does(layer, tolerance, transposed, bias):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 64, generator=generator), torch.randn(3, 5, 64, generator=generator)
    weight = weight.T.contiguous().T if transposed else weight  # as GPT-2's own weights come
    expected = nn.functional.linear(x, weight, bias)
    error = (layer(weight, bias)(x) - expected).abs()
    assert error.mean() < tolerance * (x @ weight.T).abs().mean()


@needs_onednn
def test_int8_does_not_depend_on_batch_mates_and_takes_zeros():
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    layer, x = Int8Linear(weight, None), torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    x[1] *= 1000
    x[2] = 0
    together = layer(x)
    assert all(torch.equal(layer(row[None])[0], one) for row, one in zip(x, together, strict=True))
    assert together[2].tolist() == [0.0] * 24


@needs_onednn
def test_int8_captions_begin_as_the_exact_ones_do_for_most_pictures(captioner):
    pictures = random_pictures(64)
    exact, rounded = (
        generate(captioner, pictures, Greedy(2)),
        generate(with_int8_weights(captioner), pictures, Greedy(2)),
    )
    alike = sum(a.token_ids == b.token_ids for a, b in zip(exact, rounded, strict=True))
    assert alike >= 40, "of 64"
    assert [one.log_probability for one in exact] != [one.log_probability for one in rounded]
