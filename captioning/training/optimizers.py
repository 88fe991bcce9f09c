"""The optimizers that `conf/optimizer` names, each over all of a captioner, whatever trains at the moment.

A frozen parameter has no gradient, so an optimizer neither touches it nor keeps state for it; that the param groups are
always the same ones lets a checkpoint of any stage load. Each param group's `name` is its stage group, by which the
schedule sets its rate before every step.

A new optimizer is a function of a captioner, and a file of `conf/optimizer` that names it.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captioning.config import GROUPS
from captioning.model.captioner import ImageCaptioner

# Of quintics a s + b s^3 + c s^5, one after the other: each brings what the last one leaves of singular values s
# between 0.01 and 1 as near to 1 as one can (Polar Express, Amsel et al. 2025, https://arxiv.org/abs/2505.16932).
TOWARDS_ONE = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))


def adamw(
    captioner: ImageCaptioner, *, weight_decay: float, betas: tuple[float, float], fused: bool = False
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(param_groups(captioner, weight_decay), lr=0.0, betas=(betas[0], betas[1]), fused=fused)


def muon(
    captioner: ImageCaptioner,
    *,
    weight_decay: float,
    betas: tuple[float, float],
    momentum: float,
    update_rms: float,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Muon for matrices, AdamW for the rest: embeddings of tokens and positions, the vocabulary, norms and biases.

    Args:
        captioner: what is trained.
        weight_decay: of matrices, also of AdamW's.
        betas: AdamW's.
        momentum: Muon's.
        update_rms: root mean square of a matrix's step, in units of its rate; AdamW's is 0.2 to 0.4.
        fused: whether AdamW's part is.
    """
    groups = param_groups(captioner, weight_decay, captioner.maps_in)
    muons = {"momentum": momentum, "update_rms": update_rms}
    groups = [group | muons if group["maps"] else group for group in groups]
    return Muon(groups, lr=0.0, betas=(betas[0], betas[1]), fused=fused)


def param_groups(
    captioner: ImageCaptioner, weight_decay: float, maps_in: Callable[[str], int] = lambda name: 0
) -> list[dict[str, Any]]:
    """All parameters, by stage group, by whether they are decayed, and by what `maps_in` says of their names."""
    found = defaultdict(list)
    for place, stage_group in enumerate(GROUPS):
        for name, parameter in captioner.parameters_of(stage_group):
            found[place, not captioner.is_decayed(name, parameter), maps_in(name)].append(parameter)
    return [
        {"name": GROUPS[place], "params": parameters, "weight_decay": 0.0 if kept else weight_decay, "maps": maps}
        for (place, kept, maps), parameters in sorted(found.items(), key=lambda one: one[0])
    ]


def by_depth(optimizer: torch.optim.Optimizer, captioner: ImageCaptioner, decay: float) -> None:
    """Divide the encoder's param groups by layer: each has `rate_scale`, `decay` to the power of the layers above it.

    As BEiT fine-tunes (Bao et al. 2021): what is near the pixels, and most general, changes least.
    """
    scales: dict[int, float] = {}
    for name, parameter in captioner.parameters_of("encoder"):
        depth, layers = captioner.encoder_depth(name)
        scales[id(parameter)] = decay ** (layers + 1 - depth)
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        found = defaultdict(list)
        for parameter in group["params"]:
            found[scales.get(id(parameter), 1.0)].append(parameter)
        groups += [group | {"params": some, "rate_scale": scale} for scale, some in sorted(found.items())]
    optimizer.param_groups = groups


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for some param groups, AdamW for others.

    A matrix steps by its orthogonalised momentum: equally far in each direction, also in those that few examples ask
    for. Scaled to a root mean square that is a multiple of the rate (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982), it takes AdamW's rates.

    Its param groups have `maps`: 0 for AdamW's; else each parameter (in, maps * out) is so many matrices side by side,
    each orthogonalised alone, and the group has `momentum` and `update_rms` too.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of all parameters with a gradient; where `found_inf` is not 0 it changes nothing, as fused AdamW's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = self.param_groups
        try:
            self.param_groups = [group for group in every if not group["maps"]]
            super().step()
        finally:
            self.param_groups = every
        for group in every:
            if group["maps"]:
                self._step_matrices(group)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's looks for a count of steps of every parameter

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike = defaultdict(
            list
        )  # by shape: (matrix, gradient, momentum), each a view of a parameter's, at least as wide as high
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            whole = (parameter, parameter.grad, state["momentum_buffer"])
            for parts in zip(*(tensor.flatten(1).chunk(group["maps"], dim=1) for tensor in whole), strict=True):
                wide = parts if parts[0].shape[0] <= parts[0].shape[1] else tuple(part.T for part in parts)
                alike[wide[0].shape].append(wide)
        for shape, views in alike.items():
            self._step_alike(group, shape[1], *map(list, zip(*views, strict=True)))

    def _step_alike(
        self, group: dict[str, Any], width: int, matrices: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]
    ) -> None:
        """N matrices of one shape, all at once: a small one costs more to begin than to multiply."""
        matrix, gradient, momentum = (torch.stack(views) for views in (matrices, gradients, momenta))  # (N, R, C)
        if (grad_scale := getattr(self, "grad_scale", None)) is not None:  # AdamW's part divides by it as it steps
            gradient /= grad_scale
        kept, rate = group["momentum"], group["lr"]
        new_momentum = momentum.lerp(gradient, 1 - kept)
        update = orthogonalised(gradient.lerp(new_momentum, kept))  # Nesterov's
        length = rate * group["update_rms"] * width**0.5
        new_matrix = torch.add(matrix * (1 - rate * group["weight_decay"]), update, alpha=-length)
        for views, old, new in ((momenta, momentum, new_momentum), (matrices, matrix, new_matrix)):
            found_inf = getattr(self, "found_inf", None)
            new = new if found_inf is None else new.where(found_inf == 0, old)
            torch._foreach_copy_(views, list(new.unbind()))


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, R, C), R <= C, with singular values moved to between 0.73 and 1.27 by three steps of Newton-Schulz.

    Those below a hundredth of the matrix's norm become at most 78 times as large. In bf16 on a GPU, which is precise
    enough for that.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for a, b, c in TOWARDS_ONE:
        squares = x @ x.mT  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(squares, squares, squares, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)
