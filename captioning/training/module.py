"""The LightningModule: one step of training or validation, its optimizer, and what a checkpoint holds besides weights.

Losses are sums of nats and tokens, so that a step, an epoch or a split is exact to the token however it is cut into
batches and ranks.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor

from captioning.data.batch import CaptionBatch
from captioning.metrics import perplexity
from captioning.model.captioner import ImageCaptioner
from captioning.training.optimizers import by_depth


class TokenAverage:
    """Sums of nats and tokens; perplexity is that of the whole, never a mean of the batches' perplexities.

    Values stay on their device until they are asked for, so that adding a batch never waits for a GPU.
    """

    def __init__(self) -> None:
        self._pending: list[Tensor] = []
        self._nats, self._tokens = 0.0, 0

    def add(self, nats: Tensor, tokens: Tensor) -> None:
        """One batch's sums, each a () tensor."""
        self._pending.append(torch.stack([nats.detach().float(), tokens.float()]))
        if len(self._pending) >= 1000:
            self._collect()

    def totals(self) -> tuple[float, int]:
        """All nats and all tokens so far; in double precision, since an epoch of COCO has 7 million tokens."""
        self._collect()
        return self._nats, self._tokens

    def loss(self) -> float:
        """Nats per token; NaN before the first batch."""
        nats, tokens = self.totals()
        return nats / tokens if tokens else math.nan

    def reset(self, nats: float = 0.0, tokens: int = 0) -> None:
        """Begin again at nothing, or at these sums."""
        self._pending.clear()
        self._nats, self._tokens = nats, tokens

    def _collect(self) -> None:
        if self._pending:
            # One after the other, so that the sum is the same to the bit however often it was asked for in between.
            for nats, tokens in torch.stack(self._pending).cpu().tolist():
                self._nats, self._tokens = self._nats + nats, self._tokens + int(tokens)
            self._pending.clear()


def options_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Of each param group what the configuration decides; rates are set before every step."""
    return [{key: group[key] for key in group if key not in ("params", "lr")} for group in optimizer.param_groups]


@torch.no_grad()
def scale_and_clip(optimizer: torch.optim.Optimizer, scale: float | Tensor, max_norm: float | None) -> Tensor:
    """Multiply the gradients by `scale`, then shorten them to `max_norm` if they are longer.

    A fused optimizer multiplies as it steps, as for torch's own `GradScaler`: one pass over memory less.

    Returns:
        The norm of the scaled gradients before clipping, a () tensor; non-finite gradients stay non-finite.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = _norm(gradients) * scale
    factor = torch.as_tensor(scale, device=norm.device, dtype=norm.dtype)
    if max_norm is not None and max_norm > 0:  # as in Lightning, 0 switches clipping off
        factor = factor * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if getattr(optimizer, "_step_supports_amp_scaling", False) and norm.device.type in ("cpu", "cuda"):
        optimizer.grad_scale = 1 / factor  # type: ignore[attr-defined]
    else:
        torch._foreach_mul_(gradients, factor)
    return norm


def _norm(gradients: list[Tensor]) -> Tensor:
    """Of all gradients as one vector, ().

    On a CPU row by row: torch sums a whole matrix by one thread in float32, and of 39 million numbers comes out 0.27%
    short.
    """
    if gradients and gradients[0].device.type == "cpu":
        gradients = [torch.linalg.vector_norm(g, dim=-1) if g.ndim > 1 else g for g in gradients]
    return torch.nn.utils.get_total_norm(gradients)


# The loss that goes into backward() is in units of this many tokens, which keeps fp16 gradients in range; it cancels
# when the true number of tokens is known, exactly, being a power of two.
NOMINAL_TOKENS = 1024


class CaptioningModule(L.LightningModule):
    """Trains an `ImageCaptioner` on the mean loss of all tokens of a step.

    The gradient of n ranks, or of n accumulated batches, equals that of one batch of all their tokens: losses are
    summed, and the gradient is divided once by the number of tokens of the whole step, just before it is clipped.

    Args:
        captioner: the model.
        optimizer: makes one of the captioner, see `optimizers.py`.
        checkpoint_extras: plain containers that prediction needs beside weights; stored in every checkpoint.
        label_smoothing: of the training loss alone.
        encoder_layer_decay: each encoder layer's rate, of the next one's.
    """

    def __init__(
        self,
        captioner: ImageCaptioner,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        checkpoint_extras: dict[str, Any],
        label_smoothing: float = 0.0,
        encoder_layer_decay: float = 1.0,
    ):
        super().__init__()
        self.captioner = captioner
        self._label_smoothing, self._encoder_layer_decay = label_smoothing, encoder_layer_decay
        self._new_optimizer = optimizer
        self._optimizer_options: list[dict[str, Any]] = []  # of each param group
        self.checkpoint_extras = checkpoint_extras
        self._step_sums: Tensor | None = None  # (2,) nats and labels since the last optimizer step
        self.evaluation = TokenAverage()
        self.gradient_norm: Tensor | None = None  # () of the last step, before clipping
        self.skipped_steps: Tensor | int = 0  # of the run: their loss or gradient was not finite
        self.on_train_loss: list[Callable[[Tensor, Tensor], None]] = []  # called with each batch's sums, (nats, tokens)

    def on_train_start(self) -> None:
        """A resumed run's optimizer has its state from the checkpoint; its settings are those of this run.

        Between fp16 and another precision these are of another kernel, which counts steps elsewhere.
        """
        optimizer = self.trainer.optimizers[0]
        for group, options in zip(optimizer.param_groups, self._optimizer_options, strict=True):
            group.update(options)
            for parameter in group["params"]:
                if "step" in (state := optimizer.state.get(parameter, {})):
                    state["step"] = state["step"].to(parameter.device if group["fused"] else "cpu")

    def training_step(self, batch: CaptionBatch, batch_index: int) -> Tensor:
        """The batch's summed loss, in units of `NOMINAL_TOKENS` tokens."""
        nats, tokens = self.captioner.loss(batch, self._label_smoothing)
        finite = nats.isfinite()  # or the batch is left out of the epoch's loss, as its step is skipped
        for add in self.on_train_loss:
            add(nats.where(finite, 0.0), tokens.where(finite, 0))
        return self.step_loss(nats, tokens)

    def step_loss(self, nats: Tensor, tokens: Tensor) -> Tensor:
        """A batch's share of the step's loss, of which the gradient is taken; its sums are () tensors."""
        sums = torch.stack([nats.detach().float(), tokens.float()])
        self._step_sums = sums if self._step_sums is None else self._step_sums + sums
        return nats / NOMINAL_TOKENS

    def training_metrics(self, total: float, count: float) -> dict[str, float]:
        """What loggers get of the sums that `on_train_loss` was called with: nats and tokens."""
        loss = total / count if count else math.nan
        return {"train/loss": loss, "train/perplexity": perplexity(loss)}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Turn the summed gradient into that of the mean over all tokens of the step, and clip its norm.

        Lightning has divided by the accumulated batches and the ranks, both of which are undone here.
        """
        assert self._step_sums is not None
        nats, tokens = self.trainer.strategy.reduce(self._step_sums, reduce_op="sum")
        divided_by = self.trainer.accumulate_grad_batches * self.trainer.world_size
        scale = NOMINAL_TOKENS * divided_by / tokens
        self.gradient_norm = scale_and_clip(optimizer, scale, gradient_clip_val)
        self._skip_unless_finite(optimizer, nats, self.gradient_norm)
        self._step_sums = None

    def _skip_unless_finite(self, optimizer: torch.optim.Optimizer, nats: Tensor, norm: Tensor) -> None:
        """Count a step whose loss or gradient is not finite, and let it change nothing.

        The optimizer learns it as from torch's own `GradScaler`, on the device, so that no step waits to know; one that
        does not look at it is left without gradients.
        An fp16 scaler skips a step by itself where gradients overflow, and halves its scale: that is how it finds one,
        and not counted, unless its scale is below 1, where not the scale is too large but the gradient.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is None:
            skipped = ~(nats.isfinite() & norm.isfinite())
            optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
            if not getattr(optimizer, "_step_supports_amp_scaling", False) and skipped:
                optimizer.zero_grad()
        else:
            skipped = ~nats.isfinite() | (~norm.isfinite() & (scaler.get_scale() < 1))
            if skipped:
                optimizer.zero_grad()  # of an infinite loss the gradient can be finite
        self.skipped_steps = self.skipped_steps + skipped.long()

    def on_train_epoch_start(self) -> None:
        """An epoch starts with no tokens owed, also after an epoch that was cut short."""
        self._step_sums = None

    def on_validation_epoch_start(self) -> None:
        self.evaluation.reset()

    def validation_step(self, batch: CaptionBatch, batch_index: int) -> None:
        """Sum the batch into the epoch's loss."""
        self.evaluation.add(*self.captioner.loss(batch))

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        totals = torch.tensor(self.evaluation.totals(), dtype=torch.float64)
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals.to(self.device), reduce_op="sum")
        # Already summed over the ranks; `MetricRows` sends them to the loggers.
        for name, value in self.evaluation_metrics(*totals.tolist()).items():
            self.log(f"{split}/{name}", value, logger=False, rank_zero_only=True)

    @staticmethod
    def evaluation_metrics(nats: float, tokens: float) -> dict[str, float]:
        """Of a split: its nats per token, and their perplexity."""
        loss = nats / tokens
        return {"loss": loss, "perplexity": perplexity(loss)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Fused, save under an fp16 scaler, whose unscaling must come before our clipping."""
        optimizer = self._new_optimizer(self.captioner, fused=self.trainer.precision != "16-mixed")
        if self._encoder_layer_decay != 1:
            by_depth(optimizer, self.captioner, self._encoder_layer_decay)
        self._optimizer_options = options_of(optimizer)
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what prediction needs to the checkpoint, so that one file is enough for it; and how many were skipped."""
        checkpoint["captioner"] = self.checkpoint_extras
        checkpoint["skipped_steps"] = int(self.skipped_steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A resumed run counts on; checkpoints of before had no count."""
        self.skipped_steps = checkpoint.get("skipped_steps", 0)


@contextmanager
def in_eval_mode(module: torch.nn.Module) -> Iterator[None]:
    """Dropout off; afterwards every part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
