"""Linear layers for captioning on a CPU: oneDNN's own weight layout, in fp32 or in int8.

A captioner spends nearly all its time in linear layers. Stock ones hand their weights to the CPU's BLAS as they lie;
oneDNN wants them in blocks, and reorders them once here instead of at every call.
"""

import copy
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from captioning.model.captioner import ImageCaptioner


def with_packed_weights(captioner: ImageCaptioner) -> ImageCaptioner:
    """A copy for inference in fp32 on a CPU, exact to rounding; the captioner itself where there is no oneDNN.

    The copy shares all other tensors with the captioner. It can't be trained, and its state dict lacks what is packed.
    """
    return _with_linear_layers(captioner, PackedLinear) if torch.backends.mkldnn.is_available() else captioner


def with_int8_weights(captioner: ImageCaptioner) -> ImageCaptioner:
    """A copy for inference on a CPU with int8 weights and dynamically quantised activations.

    Needs oneDNN, `torch.backends.mkldnn.is_available()`. The copy shares all other tensors with the captioner. It can't
    be trained, and its state dict lacks what is quantised.
    """
    return _with_linear_layers(captioner, Int8Linear)


class PackedLinear(nn.Module):
    """x @ weight.T + bias in fp32, for a weight (out, in) that oneDNN holds in its own layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        # No buffer: an opaque layout has no place in a state dict.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")


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
        self._weight = torch.ops.onednn.qlinear_prepack(quantised.contiguous(), None)  # it heeds no strides
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
def _with_linear_layers(
    captioner: ImageCaptioner, make: Callable[[Tensor, Tensor | None], nn.Module]
) -> ImageCaptioner:
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
