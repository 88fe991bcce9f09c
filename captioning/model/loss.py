"""Cross-entropy over the whole vocabulary without ever holding the logits of all tokens.

Letters: N labels, C labels of a chunk, D width, V vocabulary, padded on a GPU.

For GPT-2's 50,257 tokens the logits of 2,000 labels take 400 MB, and their softmax and gradient as much again. Here
a chunk's logits live only until its loss and gradients are known: both come in the forward pass, as in Liger Kernel's
fused linear cross-entropy (Hsu et al. 2024), so nothing is computed twice and peak memory does not grow with N x V.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from captioning.model.cpu import add_product, product

CHUNK_LABELS = {"cpu": 512, "cuda": 4096}  # for GPT-2's tokens 100 and 800 MB of float32 logits: a GPU wants more
# A GPU's products are fast where rows begin at multiples of 16 bytes, and 50,257 is odd: it becomes 50,304.
VOCABULARY_MULTIPLES = {"cuda": 128}


def summed_nats(hidden: Tensor, projection: nn.Module, labels: Tensor) -> Tensor:
    """What `summed_cross_entropy` gives, without gradients, of a projection of any kind: one in int8 has no matrix."""
    nats = torch.zeros((), device=hidden.device)
    for here in _chunks(hidden):
        log_p = F.log_softmax(projection(hidden[here]), -1, dtype=torch.float32)  # (C, V)
        nats -= log_p.gather(-1, labels[here, None]).sum()
    return nats


def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, label_weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """The sum of -log softmax(hidden @ weight.T)[label], () float32, in nats; differentiable once.

    Args:
        hidden: (N, D).
        weight: (V, D), the vocabulary projection; its gradient is made only if it requires one.
        labels: (N,) int64.
        label_weights: (N,) float32, by which each label's nats are multiplied; 1 if not given.
        smoothing: this share of each label is spread over all V tokens alike (Szegedy et al. 2016).

    Under autocast matrices are multiplied in its type; softmax, sums and the gradient of `weight` stay in float32.
    """
    kind = hidden.device.type
    multiplied_in = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    settings = smoothing, multiplied_in, torch.is_grad_enabled()
    return _SummedCrossEntropy.apply(hidden, weight, labels, label_weights, *settings)


def _chunks(hidden: Tensor) -> Iterator[slice]:
    size = CHUNK_LABELS.get(hidden.device.type, CHUNK_LABELS["cpu"])
    return (slice(start, start + size) for start in range(0, len(hidden), size))


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (V, D) as it is multiplied: in this type, and with rows of zeros at its end where V is padded."""
    more = -len(weight) % VOCABULARY_MULTIPLES.get(weight.device.type, 1)
    return F.pad(weight.to(dtype), (0, 0, 0, more)) if more else weight.to(dtype)


def _smoothed(logits: Tensor, targets: Tensor, smoothing: float, size: int) -> tuple[Tensor, Tensor]:
    """As `_log_p_and_gradient`, where of each label a share is spread over the first `size` tokens, which are all."""
    of_label = logits.gather(-1, targets)
    mean = logits[:, :size].mean(-1, keepdim=True, dtype=torch.float32)
    log_p, gradient = _log_p_and_gradient(logits, targets)
    mean_log_p = mean - of_label + log_p  # what is taken off all logits is the same
    gradient[:, :size] -= smoothing / size
    gradient.scatter_add_(-1, targets, torch.full_like(targets, 1, dtype=gradient.dtype) * smoothing)
    return log_p + smoothing * (mean_log_p - log_p), gradient


def _log_p_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The labels' log-probabilities (C, 1) float32, and minus their sum's gradient, written over the logits (C, V)."""
    if logits.dtype == torch.float32:
        of_labels = logits.gather(-1, targets) - logits.amax(-1, keepdim=True)
        softmax = torch.softmax(logits, -1, out=logits)
        of_labels += softmax.amax(-1, keepdim=True).log()  # the largest logit's is 1 / sum(exp(logits - largest))
    else:
        log_p = F.log_softmax(logits, -1, dtype=torch.float32)
        of_labels = log_p.gather(-1, targets)
        softmax = torch.exp(log_p, out=logits)
    return of_labels, softmax.scatter_(-1, targets, (of_labels.exp() - 1).to(logits.dtype))


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        label_weights: Tensor | None,
        smoothing: float,
        dtype: torch.dtype,
        with_gradients: bool,
    ) -> Tensor:
        wants_hidden, wants_weight = (with_gradients and needed for needed in ctx.needs_input_grad[:2])
        nats = torch.zeros((), device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None  # (N, D)
        of_weight: Tensor | None = None  # (V, D) float32
        matrix = _matrix(weight, dtype)
        for here in _chunks(hidden):
            inputs, targets = hidden[here].to(dtype), labels[here, None]  # (C, D), (C, 1)
            weights = None if label_weights is None else label_weights[here, None]  # (C, 1)
            logits = product(inputs, matrix)  # (C, V)
            logits[:, len(weight) :] = -torch.inf
            if smoothing:
                of_labels, of_logits = _smoothed(logits, targets, smoothing, len(weight))
            else:
                of_labels, of_logits = _log_p_and_gradient(logits, targets)
            nats -= (of_labels if weights is None else of_labels * weights).sum()
            if not (wants_hidden or wants_weight):
                continue
            if of_hidden is not None:
                part = product(of_logits, matrix.T)
                of_hidden[here] = part if weights is None else part * weights
            if wants_weight:
                if weights is not None:
                    inputs = (inputs * weights).to(dtype)
                of_weight = add_product(of_weight, of_logits.T, inputs.T)
            del logits, of_logits  # before the next chunk's are made
        if of_weight is not None and len(of_weight) > len(weight):
            of_weight = of_weight[: len(weight)]  # not where it is whole: into a view autograd adds nothing in place
        ctx.gradients = of_hidden, of_weight, weight.dtype
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_nats: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight, weight_dtype = ctx.gradients
        ctx.gradients = None  # scaled in place: there is no second backward
        return (
            None if of_hidden is None else of_hidden.mul_(of_nats),
            None if of_weight is None else of_weight.mul_(of_nats).to(weight_dtype),
            *(None, None, None, None, None),
        )
