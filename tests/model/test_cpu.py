"""oneDNN's products are torch's wherever a training step multiplies; its own layers are exact in fp32, near in int8."""

import copy
import platform

import pytest
import torch
from support import CAPTIONS, encoded_rows, random_pictures, small_captioner, trained_tokenizer
from torch import nn
from transformers.pytorch_utils import Conv1D

from captioning.config import GROUPS
from captioning.data.batch import pack
from captioning.model import cpu
from captioning.model.captioner import ImageCaptioner
from captioning.model.cpu import (
    Int8Linear,
    PackedLinear,
    product,
    use_fast_layers,
    with_int8_weights,
    with_packed_weights,
)
from captioning.model.generation import Beam, Greedy, generate

BEAM = Beam(12, 3, 1.0, False, 0, 0, 1)
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def every_size(monkeypatch):
    """As on a processor that is not Intel's, for matrices of any size."""
    monkeypatch.setattr(cpu, "ONEDNN_IS_FASTER", torch.backends.mkldnn.is_available())
    monkeypatch.setattr(cpu, "LEAST_WEIGHTS", 1)


@pytest.fixture
def counted(monkeypatch):
    """How many products oneDNN was asked for."""
    calls = []

    def counting(*arguments):
        calls.append(arguments[0].shape)
        return original(*arguments)

    original = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counting)
    return calls


@needs_onednn
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(12, 7), lambda: nn.Linear(12, 7, bias=False), lambda: Conv1D(7, 12)]
)
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)], ids=str)
def test_a_layers_output_and_gradients_stay(every_size, counted, make, trained):
    results = []
    stock = make()
    ours = copy.deepcopy(stock)
    use_fast_layers(nn.ModuleList([ours]))
    for layer in (stock, ours):
        x = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0)).requires_grad_(trained[0])
        layer.requires_grad_(trained[1])
        y = layer(x)
        (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(counted) == 1 + sum(trained), "one for the output, one for each gradient"


@needs_onednn
def test_a_captioners_loss_and_gradients_stay(every_size, counted, monkeypatch):
    tokenizer = trained_tokenizer()
    batch = pack(encoded_rows(tokenizer, [CAPTIONS[:3], CAPTIONS[3:5]]))
    captioner = small_captioner(tokenizer.vocab_size, max_positions=96, encoder_width=48)
    captioner.set_trainable(GROUPS)
    found = []
    for least in (1, 2**60):
        monkeypatch.setattr(cpu, "LEAST_WEIGHTS", least)
        captioner.zero_grad()
        nats = captioner.loss(batch).nats
        nats.backward()
        found.append([nats.detach(), *(p.grad.clone() for p in captioner.parameters())])
        asked = len(counted)
    assert asked == len(counted) > 50
    for ours, stock in zip(*found, strict=True):
        assert (ours - stock).norm() <= 1e-5 * stock.norm() + 1e-4


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_any_number_of_rows_can_be_multiplied(every_size, rows):
    a, b = torch.randn(rows, 12), torch.randn(7, 12)
    torch.testing.assert_close(product(a, b), a @ b.T)
    torch.testing.assert_close(product(a.T.contiguous().T, b.T.contiguous().T), a @ b.T)


@needs_onednn
def test_small_and_half_precision_matrices_and_autocast_are_left_to_torch(every_size, monkeypatch, counted):
    monkeypatch.setattr(cpu, "LEAST_WEIGHTS", 7 * 12 + 1)
    product(torch.randn(4, 12), torch.randn(7, 12))
    monkeypatch.setattr(cpu, "LEAST_WEIGHTS", 1)
    product(torch.randn(4, 12).bfloat16(), torch.randn(7, 12).bfloat16())
    layer = nn.ModuleList([nn.Linear(12, 7)])
    use_fast_layers(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer[0](torch.randn(4, 12)).dtype == torch.bfloat16
    assert not counted


def test_a_swapped_layer_keeps_its_weights_and_names():
    layers = nn.Sequential(nn.Linear(3, 4), Conv1D(5, 4))
    before = {name: id(weight) for name, weight in layers.named_parameters()}
    use_fast_layers(layers)
    assert {name: id(weight) for name, weight in layers.named_parameters()} == before
    assert isinstance(layers[0], nn.Linear) and isinstance(layers[1], Conv1D)


@pytest.mark.parametrize("p", [0.1, 0.75])
def test_dropout_keeps_the_mean_and_its_gradient_falls_where_its_values_stay(p):
    layers = nn.Sequential(nn.Dropout(p))
    use_fast_layers(layers)
    torch.manual_seed(0)
    x = torch.ones(333, 1001, requires_grad=True)
    y = layers(x)
    y.sum().backward()
    assert torch.equal(x.grad, y) and len(y.unique()) == 2
    assert (y == 0).float().mean() == pytest.approx(p, abs=3 * (p * (1 - p) / x.numel()) ** 0.5)
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    torch.manual_seed(0)
    assert torch.equal(layers(x), y), "seeded"
    assert layers.eval()(x) is x


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_or_all_is_torchs(p):
    layers = nn.Sequential(nn.Dropout(p))
    use_fast_layers(layers)
    assert torch.equal(layers(torch.ones(5)), torch.full((5,), 1 - p))


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
@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 5, 600])
def test_a_packed_layer_computes_any_number_of_rows_packed_where_that_pays(every_size, monkeypatch, always, rows):
    monkeypatch.setattr(cpu, "ALWAYS_PACKED", always)
    weight, bias, x = torch.randn(24, 64), torch.randn(24), torch.randn(rows, 64)
    layer = PackedLinear(nn.Parameter(weight), bias)
    assert not list(layer.parameters())
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("has_vnni", [True, False])
def test_int8_says_where_the_processor_gains_little_from_it(monkeypatch, caplog, has_vnni):
    monkeypatch.setattr(cpu, "HAS_VNNI", has_vnni)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with_int8_weights(nn.ModuleList([nn.Linear(16, 16)]))
    assert ("no VNNI" in caplog.text) == (not has_vnni)


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
