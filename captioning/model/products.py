"""Matrix products of a CPU's float32 training step, by oneDNN.

torch hands float32 products to MKL, which on processors that are not Intel's reaches half the speed of oneDNN (AMD
EPYC with AVX-512, one core: 105 against 220 GFLOP/s at GPT-2's shapes, both exact to rounding). A training step is
nine tenths such products: it takes 0.6 of its time at full size, 0.67 for model=tiny. Elsewhere, and for very small
matrices, for which oneDNN's kernels are not worth their making, everything is as torch does it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

LEAST_WEIGHTS = 2**14  # elements of a matrix
MKL_MULTIPLIES = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b.T + bias, (..., N), for a (..., K) and b (N, K); without autograd."""
    if _worth_it(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def use_products(network: nn.Module) -> None:
    """Let the network's linear layers compute by `product`; their parameters, names and results stay."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
        elif type(module) is Conv1D:
            module.__class__ = _Conv1D


def _worth_it(a: Tensor, b: Tensor) -> bool:
    return (
        MKL_MULTIPLIES
        and b.numel() >= LEAST_WEIGHTS
        and a.numel() > 0
        and a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if _worth_it(x, self.weight):
            return _Product.apply(x, self.weight, self.bias, False)
        return super().forward(x)


class _Conv1D(Conv1D):
    """GPT-2's linear layer, whose weight is (in, out)."""

    def forward(self, x: Tensor) -> Tensor:
        if _worth_it(x, self.weight):
            return _Product.apply(x, self.weight, self.bias, True)
        return super().forward(x)


class _Product(torch.autograd.Function):
    """x @ weight.T + bias, or x @ weight + bias; each gradient is a product too, and made only where one is wanted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, weight_is_in_out: bool) -> Tensor:
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.weight_is_in_out = weight_is_in_out
        return product(x, weight.T if weight_is_in_out else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat = of_y.flatten(0, -2)  # (tokens, out)
        of_x = of_weight = None
        if weight is not None:
            of_x = product(of_y, weight if ctx.weight_is_in_out else weight.T)
        if x is not None:
            inputs = x.flatten(0, -2)  # (tokens, in)
            of_weight = product(inputs.T, flat.T) if ctx.weight_is_in_out else product(flat.T, inputs.T)
        return of_x, of_weight, flat.sum(0) if ctx.needs_input_grad[2] else None, None
