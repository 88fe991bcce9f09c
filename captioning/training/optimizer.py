"""AdamW with one parameter group for each (stage group, decayed or not), all of them there from the first step."""

from typing import Any

import torch
from torch import Tensor, nn

from captioning.errors import UserError
from captioning.model.captioner import GROUPS, ImageCaptioner


def build_optimizer(
    captioner: ImageCaptioner, *, weight_decay: float, betas: tuple[float, float], fused: bool
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over all of the captioner, whatever trains at the moment.

    A frozen parameter has no gradient, so AdamW neither touches it nor keeps state for it; that the groups are
    always the same ones lets a checkpoint of any stage load. Each param group's `name` is its stage group, by which
    the schedule sets its rate.
    """
    groups = []
    for name in GROUPS:
        parameters = list(captioner.parameters_of(name))
        decayed = [p for n, p in parameters if is_decayed(n, p)]
        kept = [p for n, p in parameters if not is_decayed(n, p)]
        groups.append({"name": name, "params": decayed, "weight_decay": weight_decay})
        groups.append({"name": name, "params": kept, "weight_decay": 0.0})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=fused)


def options_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Of each param group what the configuration decides; rates are set before every step."""
    return [{name: group[name] for name in ("weight_decay", "betas", "fused")} for group in optimizer.param_groups]


def check_settings(weight_decay: object, betas: object) -> None:
    """Raise UserError for values that AdamW cannot use."""
    if not isinstance(weight_decay, int | float) or not 0 <= weight_decay < 1:
        raise UserError(f"optimizer.weight_decay={weight_decay} must be a number from 0 to below 1")
    pair = betas if isinstance(betas, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in pair):
        raise UserError(f"optimizer.betas={betas} must be two numbers from 0 to below 1, such as [0.9,0.999]")


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Matrices are decayed; biases, norms, the CLS token and position embeddings are not (as in timm and nanoGPT)."""
    position_like = any(part in name for part in ("cls_token", "position_embeddings", "wpe"))
    return parameter.ndim >= 2 and not position_like


@torch.no_grad()
def scale_and_clip(parameters: list[nn.Parameter], scale: float | Tensor, max_norm: float | None) -> Tensor:
    """Multiply the gradients by `scale`, then shorten them to `max_norm` if they are longer; in one pass over memory.

    Returns:
        The norm of the scaled gradients before clipping, a () tensor; non-finite gradients stay non-finite.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) * scale
    factor = torch.as_tensor(scale, device=norm.device, dtype=norm.dtype)
    if max_norm is not None and max_norm > 0:  # as in Lightning, 0 switches clipping off
        factor = factor * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, factor)
    return norm
