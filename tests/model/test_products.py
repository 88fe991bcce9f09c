"""oneDNN's products are torch's, in every place that a training step multiplies."""

import copy

import pytest
import torch
from support import CAPTIONS, encoded_rows, small_captioner, trained_tokenizer
from torch import nn
from transformers.pytorch_utils import Conv1D

from captioning.data.batch import pack
from captioning.model import cpu as products
from captioning.model.captioner import GROUPS
from captioning.model.cpu import product, use_products

needs_mkl = pytest.mark.skipif(not products.MKL_MULTIPLIES, reason="this torch does not multiply by MKL")


@pytest.fixture
def every_size(monkeypatch):
    monkeypatch.setattr(products, "LEAST_WEIGHTS", 1)


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


@needs_mkl
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(12, 7), lambda: nn.Linear(12, 7, bias=False), lambda: Conv1D(7, 12)]
)
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)], ids=str)
def test_a_layers_output_and_gradients_stay(every_size, counted, make, trained):
    results = []
    stock = make()
    ours = copy.deepcopy(stock)
    use_products(nn.ModuleList([ours]))
    for layer in (stock, ours):
        x = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0)).requires_grad_(trained[0])
        layer.requires_grad_(trained[1])
        y = layer(x)
        (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(counted) == 1 + sum(trained), "one for the output, one for each gradient"


@needs_mkl
def test_a_captioners_loss_and_gradients_stay(every_size, counted, monkeypatch):
    tokenizer = trained_tokenizer()
    batch = pack(encoded_rows(tokenizer, [CAPTIONS[:3], CAPTIONS[3:5]]))
    captioner = small_captioner(tokenizer.vocab_size, max_positions=96, encoder_width=48)
    captioner.set_trainable(GROUPS)
    found = []
    for least in (1, 2**60):
        monkeypatch.setattr(products, "LEAST_WEIGHTS", least)
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


def test_small_and_half_precision_matrices_and_autocast_are_left_to_torch(monkeypatch, counted):
    product(torch.randn(4, 12), torch.randn(7, 12))
    monkeypatch.setattr(products, "LEAST_WEIGHTS", 1)
    product(torch.randn(4, 12).bfloat16(), torch.randn(7, 12).bfloat16())
    layer = nn.ModuleList([nn.Linear(12, 7)])
    use_products(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer[0](torch.randn(4, 12)).dtype == torch.bfloat16
    assert not counted


def test_a_swapped_layer_keeps_its_weights_and_names():
    layers = nn.Sequential(nn.Linear(3, 4), Conv1D(5, 4))
    before = {name: id(weight) for name, weight in layers.named_parameters()}
    use_products(layers)
    assert {name: id(weight) for name, weight in layers.named_parameters()} == before
    assert isinstance(layers[0], nn.Linear) and isinstance(layers[1], Conv1D)
