"""Sampling: multinomial, with temperature, top-k and nucleus filters, and draws that belong to the picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captioning.errors import UserError
from captioning.model.generation.captions import Caption
from captioning.model.generation.checks import require_finite, require_whole
from captioning.model.generation.choosing import choose_tokens
from captioning.model.generation.steps import StepwiseDecoder


@dataclass(frozen=True)
class Sampling:
    """Multinomial sampling with temperature, among the `top_k` tokens and the nucleus of probability `top_p`.

    A picture's draws are a function of (seed, its address), not of the batch that it falls into: the same seed gives
    the same captions with any batch size. `top_k`: null keeps all; `top_p`: 1 keeps all (Holtzman et al. 2020).
    """

    max_new_tokens: int  # tokens, EOS included
    temperature: float
    top_k: int | None
    top_p: float
    seed: int

    def __post_init__(self) -> None:
        require_whole("max_new_tokens", self.max_new_tokens)
        require_finite("temperature", self.temperature)
        require_finite("top_p", self.top_p)
        if not self.temperature > 0:
            raise UserError(
                f"decoding.temperature={self.temperature} must be above 0; for the most probable word each time, "
                "use decoding=greedy"
            )
        if self.top_k is not None:
            require_whole("top_k", self.top_k)
        require_whole("seed", self.seed, least=0)
        if not 0 < self.top_p <= 1:
            raise UserError(f"decoding.top_p={self.top_p} must be above 0 and at most 1; 1 keeps every token")

    @property
    def room(self) -> int:
        """Tokens that a picture is fed."""
        return self.max_new_tokens

    def captions(self, decoder: StepwiseDecoder, addresses: Sequence[int]) -> list[Caption]:
        """One for each of the decoder's pictures."""
        return choose_tokens(decoder, self.choose, self.draws(addresses), self.max_new_tokens)

    def draws(self, addresses: Sequence[int]) -> Tensor:
        """(B, T) uniform numbers, row b a function of (seed, addresses[b])."""
        # NumPy's generators hash the whole of both numbers; torch's CPU generator heeds only 32 bits of its seed.
        generators = (np.random.default_rng([self.seed, address]) for address in addresses)
        return torch.from_numpy(np.stack([g.random(self.max_new_tokens, dtype=np.float32) for g in generators]))

    def choose(self, logits: Tensor, draw: Tensor | None) -> Tensor:
        """(R,) token ids from logits (R, V) and draws (R,).

        The token in whose share of the cumulative probability, likeliest first, the draw falls.
        """
        assert draw is not None
        ordered, token_ids = (logits.float() / self.temperature).sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        if self.top_k is not None:
            probabilities[:, self.top_k :] = 0
        before = probabilities.cumsum(-1) - probabilities
        total = probabilities.sum(-1, keepdim=True)
        probabilities = probabilities.masked_fill(before >= self.top_p * total, 0)  # the nucleus; never empty
        cumulative = probabilities.cumsum(-1)
        target = draw.to(logits.device)[:, None] * cumulative[:, -1:]
        place = (cumulative <= target).sum(-1, keepdim=True)  # the first whose share ends beyond the target
        last = (probabilities > 0).sum(-1, keepdim=True) - 1  # against rounding at the very end
        return token_ids.gather(-1, place.minimum(last))[:, 0]
