"""The loss in chunks is cross-entropy, and so are its gradients."""

import pytest
import torch
import torch.nn.functional as F

from captioning.model import cpu, loss
from captioning.model.loss import summed_cross_entropy, summed_nats

TOKENS, WIDTH, VOCABULARY = 23, 16, 61


@pytest.fixture(params=[1, 8, 23, 512])
def chunks(request, monkeypatch):
    monkeypatch.setitem(loss.CHUNK_LABELS, "cpu", request.param)


def as_on_a_gpu(monkeypatch):
    """Larger chunks of a padded vocabulary, as torch multiplies by itself."""
    monkeypatch.setitem(loss.CHUNK_LABELS, "cpu", 16)
    monkeypatch.setitem(loss.VOCABULARY_MULTIPLES, "cpu", 64)
    monkeypatch.setattr(cpu, "ONEDNN_IS_FASTER", False)


def by_onednn(monkeypatch):
    """As on a processor that is not Intel's; the first chunk has more labels than the width, the last one fewer."""
    monkeypatch.setitem(loss.CHUNK_LABELS, "cpu", 18)
    monkeypatch.setattr(cpu, "ONEDNN_IS_FASTER", torch.backends.mkldnn.is_available())
    monkeypatch.setattr(cpu, "LEAST_WEIGHTS", 1)


def drawn(weight_trains=True, tokens=TOKENS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator, dtype=dtype)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype)
    labels = torch.randint(VOCABULARY, (tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(weight_trains), labels


def whole(hidden, weight, labels):
    return F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")


@pytest.mark.parametrize("weight_trains", [True, False])
def test_loss_and_gradients_are_those_of_cross_entropy(chunks, weight_trains):
    results = []
    for compute in (whole, summed_cross_entropy):
        hidden, weight, labels = drawn(weight_trains)
        nats = compute(hidden, weight, labels)
        (nats * 0.37).backward()
        results.append((nats.detach(), hidden.grad, weight.grad))
    assert (results[1][2] is not None) == weight_trains
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", [as_on_a_gpu, by_onednn])
@pytest.mark.parametrize("label_weights", [None, torch.linspace(-1, 2, TOKENS)], ids=["alike", "weighted"])
def test_every_way_to_multiply_gives_the_same_to_a_millionth(monkeypatch, way, label_weights):
    results = []
    for change in (lambda _: None, way):
        change(monkeypatch)
        hidden, weight, labels = drawn()
        nats = summed_cross_entropy(hidden, weight, labels, label_weights)
        nats.backward()
        results.append((nats.detach(), hidden.grad, weight.grad))
    for expected, found in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_a_weight_that_is_also_the_embedding_gets_both_gradients(chunks):
    results = []
    for compute in (whole, summed_cross_entropy):
        _, weight, labels = drawn()
        compute(F.embedding(labels.roll(1), weight) * 2, weight, labels).backward()
        results.append(weight.grad)
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_a_frozen_hidden_state_gets_no_gradient_and_the_weight_its_own():
    hidden, weight, labels = drawn()
    summed_cross_entropy(hidden.detach(), weight, labels).backward()
    found = weight.grad.clone()
    weight.grad = None
    whole(hidden.detach(), weight, labels).backward()
    torch.testing.assert_close(found, weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_loss_is_nearly_the_exact_one(dtype):
    exact, mixed = drawn(), drawn()
    with torch.autocast("cpu", dtype):
        nats = summed_cross_entropy(*mixed)
    assert nats.dtype == torch.float32
    expected = whole(*exact)
    assert nats.item() == pytest.approx(expected.item(), rel=0.01)
    expected.backward()
    nats.backward()
    for found, wanted in zip(mixed[:2], exact[:2], strict=True):
        assert found.grad.dtype == torch.float32
        assert (found.grad - wanted.grad).norm() < 0.01 * wanted.grad.norm()


def test_half_precision_weights_get_gradients_of_their_own_type():
    hidden, weight, labels = drawn(dtype=torch.bfloat16)
    summed_cross_entropy(hidden, weight, labels).backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_no_labels_cost_nothing():
    hidden, weight, labels = drawn(tokens=0)
    nats = summed_cross_entropy(hidden, weight, labels)
    assert nats == 0 and hidden.grad is None


def test_no_gradient_is_made_where_none_is_wanted(monkeypatch):
    multiplied = []
    monkeypatch.setattr(loss, "product", lambda a, b: multiplied.append(a.shape) or a @ b.T)
    with torch.no_grad():
        summed_cross_entropy(*drawn())
    assert multiplied == [(TOKENS, WIDTH)]


def test_the_logits_of_all_tokens_are_never_held_at_once(monkeypatch):
    monkeypatch.setitem(loss.CHUNK_LABELS, "cpu", 4)
    largest, softmax = [], torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, *a, **k: largest.append(len(x)) or softmax(x, *a, **k))
    hidden, weight, labels = drawn()
    nats = summed_cross_entropy(hidden, weight, labels)
    assert max(largest) == 4 and sum(largest) == TOKENS
    kept = sum(t.numel() for t in nats.grad_fn.gradients if isinstance(t, torch.Tensor))
    assert kept == hidden.numel() + weight.numel()


def test_a_label_that_is_next_to_impossible_has_a_loss_nevertheless():
    hidden, weight = torch.tensor([[300.0, 0.0]], requires_grad=True), torch.eye(2).requires_grad_()
    assert summed_cross_entropy(hidden, weight, torch.tensor([1])) == 300


def test_each_labels_nats_are_multiplied_by_its_weight(chunks):
    weights, results = torch.randn(TOKENS, generator=torch.Generator().manual_seed(1)), []
    for weighted in (
        lambda h, w, labels: (F.cross_entropy(h @ w.T, labels, reduction="none") * weights).sum(),
        lambda h, w, labels: summed_cross_entropy(h, w, labels, weights),
    ):
        hidden, weight, labels = drawn()
        nats = weighted(hidden, weight, labels)
        (nats * 0.37).backward()
        results.append((nats.detach(), hidden.grad, weight.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_without_gradients_any_projection_will_do(chunks):
    hidden, weight, labels = drawn()
    with torch.no_grad():
        nats = summed_nats(hidden, lambda x: x @ weight.T, labels)
    torch.testing.assert_close(nats, whole(hidden, weight, labels).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", [lambda monkeypatch: None, as_on_a_gpu, by_onednn])
@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_smoothed_labels_are_those_of_cross_entropy_and_of_training_alone(monkeypatch, way, smoothing):
    way(monkeypatch)
    results = []
    for compute in (
        lambda h, w, y: F.cross_entropy(h @ w.T, y, reduction="sum", label_smoothing=smoothing),
        lambda h, w, y: summed_cross_entropy(h, w, y, smoothing=smoothing),
    ):
        hidden, weight, labels = drawn()
        nats = compute(hidden, weight, labels)
        nats.backward()
        results.append((nats.detach(), hidden.grad, weight.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
