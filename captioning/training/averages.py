"""Loss over many batches, exact to the token."""

import math

import torch
from torch import Tensor


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


def perplexity(loss: float) -> float:
    """e^loss; infinite where that overflows."""
    return math.exp(loss) if loss < 700 or math.isnan(loss) else math.inf
