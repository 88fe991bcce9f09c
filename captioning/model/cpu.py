"""What makes a CPU fast: freed memory kept, linear layers by the faster library, cheap dropout, int8 for captioning.

A captioner spends most of its time in linear layers. torch hands their float32 products to MKL, which on an Intel
processor is the fastest there is (Xeon with AVX-512, two cores, at full size's shapes: 310 GFLOP/s, where oneDNN
has 280 forward and 220 for the gradient of a weight, for which it copies what is transposed). On other processors MKL
reaches half the speed of oneDNN (AMD EPYC with AVX-512, one core: 105 against 220 GFLOP/s; with AVX2 alone oneDNN gains
1.1 to 1.6): there products go to oneDNN. Both are exact to rounding. It is a rule and no measurement at the start, so
that a run gives the same numbers whenever it is started.

For captioning, where weights stay as they are, they are laid out once in the blocks that oneDNN wants, not at every
call; and in int8, a quarter of the bytes. Where there is no MKL, and for small matrices, for which oneDNN's kernels are
not worth their making, training is as torch does it.
"""

import copy
import ctypes
import functools
import logging
import platform
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

_CPUINFO = Path("/proc/cpuinfo")
PROCESSOR = _CPUINFO.read_text() if _CPUINFO.is_file() else platform.processor()  # its maker, and what it can do
IS_INTEL = "GenuineIntel" in PROCESSOR
ONEDNN_IS_FASTER = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and not IS_INTEL
LEAST_WEIGHTS = 2**14  # elements of a matrix that is worth a kernel of oneDNN's
# On AMD's EPYC with AVX-512 packed weights are the faster ones however many rows are multiplied. On an Intel Xeon they
# are for some rows (16: 75 against 93 us at 768 x 768), but for one row MKL takes 17 us where packed weights take 29,
# and for 3,152 (16 encoded pictures) 39 against 43 ms at 768 x 3072. With AVX2 alone they are slower for many rows, too
# (960 on AMD: 102 against 122 GFLOP/s).
ALWAYS_PACKED = not IS_INTEL and torch.backends.cpu.get_cpu_capability() == "AVX512"
PACKED_ROWS = range(2, 512)  # elsewhere
HAS_VNNI = torch.cpu._is_vnni_supported() or "avx_vnni" in PROCESSOR  # instructions for products of int8


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next tensor of that size: to be called once, as a run starts.

    glibc gives memory of 32 MB and more back to the system at once, and the next step's tensors are fresh pages, each
    cleared in a page fault of its own: a tenth of a training step at full size, and a quarter with `model=tiny` and
    GPT-2's vocabulary. The process then holds its peak to its end, which the next step would reach again anyway.
    Elsewhere (musl, macOS, Windows) memory stays in the hands of the C library.

    `captioning/__init__.py` asks for large pages.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)  # M_MMAP_MAX: no allocation gets pages of its own, see mallopt(3)
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing goes back


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b.T + bias, (..., N), for a (..., K) and b (N, K); without autograd."""
    if _worth_it(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b.T in float32, (M, N), for a (M, K) and b (N, K), written over `total`; without autograd.

    No sum of its own over (M, N) is taken, save where oneDNN or a half-precision CPU multiplies.
    """
    if a.device.type == "cuda" and a.dtype != torch.float32 and _cuda_adds_in_float32():
        if total is None:
            return torch.mm(a, b.T, out_dtype=torch.float32)
        return torch.addmm(total, a, b.T, out_dtype=torch.float32, out=total)
    if a.dtype == torch.float32 and not _worth_it(a, b):
        return torch.mm(a, b.T) if total is None else total.addmm_(a, b.T)
    # oneDNN copies its first matrix where that is transposed, and (N, M) is transposed after: the smaller of the two.
    part = product(b, a).T if a.shape[1] > len(b) else product(a, b).float()
    return part.contiguous() if total is None else total.add_(part)


@functools.cache
def _cuda_adds_in_float32() -> bool:
    """Whether this torch adds a product of half-precision matrices to a float32 one: some before 2.11 do not."""
    half = torch.ones(16, 16, device="cuda", dtype=torch.float16)
    try:
        total = torch.mm(half, half, out_dtype=torch.float32)
        torch.addmm(total, half, half, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return True


def use_fast_layers(network: nn.Module) -> None:
    """Let the network's linear layers compute by `product`, and its dropout draw 16 bits a value, from now on.

    Parameters, names and results stay, and so do the layers, since parameters may be shared between them (GPT-2's
    head), hooked or in an optimizer: only their class changes, to one with another `forward`.
    """
    for module in network.modules():
        if fast := _FAST.get(type(module)):
            module.__class__ = fast


def _worth_it(a: Tensor, b: Tensor) -> bool:
    return (
        ONEDNN_IS_FASTER
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


class _Dropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * 2**16)
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
        if self.training and not self.inplace and plain and 0 < dropped < 2**16:
            return x * _noise(x.shape, dropped)
        return super().forward(x)


def _noise(shape: torch.Size, dropped: int) -> Tensor:
    """0 for `dropped` of 65,536 values, for the others what keeps the mean at 1; float32.

    torch draws 64 bits for each value, by one thread: a full-size step spent 0.05 s of 3.3 so, and 0.015 by 16 bits.
    """
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: shape.numel()].view(shape)
    return (bits >= dropped - 2**15).float().mul_(2**16 / (2**16 - dropped))


_FAST: dict[type, type] = {nn.Linear: _Linear, Conv1D: _Conv1D, nn.Dropout: _Dropout}


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


def with_packed_weights(captioner: Model) -> Model:
    """A copy for inference in fp32 on a CPU, exact to rounding; the captioner itself where there is no oneDNN.

    The copy shares all other tensors with the captioner. It can't be trained, and its state dict lacks what is packed.
    """
    return _with_linear_layers(captioner, PackedLinear) if torch.backends.mkldnn.is_available() else captioner


def with_int8_weights(captioner: Model) -> Model:
    """A copy for inference on a CPU with int8 weights and dynamically quantised activations.

    Needs oneDNN, `torch.backends.mkldnn.is_available()`. The copy shares all other tensors with the captioner. It can't
    be trained, and its state dict lacks what is quantised. A warning says so where there is little to gain.
    """
    if not HAS_VNNI and platform.machine() in ("x86_64", "AMD64"):
        log.warning(
            "precision=int8 gains little on this processor, which has no VNNI (4 to 13% were measured, where others "
            "caption 1.7 times as fast), and is not exact: precision=32 is nearly as fast"
        )
    return _with_linear_layers(captioner, Int8Linear)


class PackedLinear(nn.Module):
    """x @ weight.T + bias in fp32, for a weight (out, in) that oneDNN holds in its own layout, where that pays."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        # No buffers: an opaque layout has no place in a state dict.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._weight = None if ALWAYS_PACKED else weight.detach()
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        rows = x.numel() // x.shape[-1]
        if self._weight is None or rows in PACKED_ROWS:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return (F.linear if rows < PACKED_ROWS.start else product)(x, self._weight, self._bias)


class Int8Linear(nn.Module):
    """x @ weight.T + bias in int8: a weight's scale for each output channel, an activation's for each token.

    A scale for each token, not for the whole batch as `torch.ao.quantization.quantize_dynamic` has it: what a picture
    gets does not depend on its batch mates. A CPU without VNNI adds two products in 16 bits, which cuts what is larger:
    there weights have 7 bits, of which no two can be (255 * 63 * 2 < 2 ** 15).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self._scales = _scales(weight, 127 if torch.cpu._is_vnni_supported() else 63)  # (out, 1)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        quantised = (weight / self._scales).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(quantised.contiguous(), None)  # strides are ignored
        self._bias = torch.zeros(len(weight)) if bias is None else bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        scales = _scales(x)  # (..., 1)
        quantised = (x / scales).round_().add_(128).to(torch.uint8)  # unsigned, zero at 128: oneDNN's fastest
        products = torch.ops.onednn.qlinear_pointwise(
            quantised, 1.0, 128, self._weight, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return torch.addcmul(self._bias, products, scales)


def _scales(rows: Tensor, largest: int = 127) -> Tensor:
    """(..., 1) so that each row of (..., in) divided by its scale lies in -largest..largest."""
    return rows.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / largest


@torch.no_grad()
def _with_linear_layers(captioner: Model, make: Callable[[Tensor, Tensor | None], nn.Module]) -> Model:
    shared = {id(tensor): tensor for tensor in chain(captioner.parameters(), captioner.buffers())}
    copied = copy.deepcopy(captioner, memo=dict(shared))
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, make(child.weight, child.bias))
            elif isinstance(child, Conv1D):  # GPT-2's: the same, its weight (in, out)
                setattr(parent, name, make(child.weight.T, child.bias))
            elif isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))  # the same function in one kernel, not eight
    return copied
