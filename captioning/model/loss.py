"""Cross-entropy over the whole vocabulary without ever holding the logits of all tokens.

Letters: N tokens, C tokens of a chunk, D width, V vocabulary.

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

from captioning.model.cpu import product

CHUNK_TOKENS = 512  # 100 MB of float32 logits


def summed_nats(hidden: Tensor, projection: nn.Module, labels: Tensor) -> Tensor:
    """What `summed_cross_entropy` gives, without gradients, of a projection of any kind: one in int8 has no matrix."""
    nats = torch.zeros((), device=hidden.device)
    for here in _chunks(len(hidden)):
        log_p = F.log_softmax(projection(hidden[here]).float(), -1)  # (C, V)
        nats -= log_p.gather(-1, labels[here, None]).sum()
    return nats


def summed_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, label_weights: Tensor | None = None) -> Tensor:
    """The sum of -log softmax(hidden @ weight.T)[label], () float32, in nats; differentiable once.

    Args:
        hidden: (N, D).
        weight: (V, D), the vocabulary projection; its gradient is made only if it requires one.
        labels: (N,) int64.
        label_weights: (N,) float32, by which each label's nats are multiplied; 1 if not given.

    Under autocast matrices are multiplied in its type; softmax, sums and the gradient of `weight` stay in float32.
    """
    kind = hidden.device.type
    multiplied_in = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    if label_weights is None:
        label_weights = torch.ones(len(labels), device=hidden.device)
    return _SummedCrossEntropy.apply(hidden, weight, labels, label_weights, multiplied_in, torch.is_grad_enabled())


def _chunks(tokens: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK_TOKENS) for start in range(0, tokens, CHUNK_TOKENS))


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        dtype: torch.dtype,
        with_gradients: bool,
    ) -> Tensor:
        wants_hidden, wants_weight = (with_gradients and needed for needed in ctx.needs_input_grad[:2])
        nats = torch.zeros((), device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None  # (N, D)
        of_weight: Tensor | None = None  # (V, D)
        matrix = weight.to(dtype)
        for here in _chunks(len(hidden)):
            inputs, targets = hidden[here].to(dtype), labels[here, None]  # (C, D), (C, 1)
            weights = label_weights[here, None]  # (C, 1)
            log_p = F.log_softmax(product(inputs, matrix).float(), -1)  # (C, V)
            nats -= (log_p.gather(-1, targets) * weights).sum()
            if not (wants_hidden or wants_weight):
                continue
            of_logits = log_p.exp_().scatter_add_(-1, targets, -torch.ones_like(targets, dtype=log_p.dtype))
            of_logits = of_logits.mul_(weights).to(dtype)
            if of_hidden is not None:
                of_hidden[here] = product(of_logits, matrix.T)
            if wants_weight:
                part = product(of_logits.T, inputs.T).float()
                of_weight = part if of_weight is None else of_weight.add_(part)
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
            *(None, None, None, None),
        )
