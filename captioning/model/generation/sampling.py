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
        noise = GumbelNoise(self.seed, addresses)

        def choose(logits: Tensor, places: Tensor) -> Tensor:
            drawn = noise.of(places.tolist(), logits.shape[-1]).to(logits.device)
            return (self.scores(logits) + drawn[:, None]).argmax(-1)

        return [caption for (caption,) in choose_tokens(decoder, choose, self.max_new_tokens)]

    def scores(self, logits: Tensor) -> Tensor:
        """(..., V) of which the softmax is what is drawn from: logits by temperature, -inf for what is filtered out."""
        logits = logits.float()
        scaled = (logits - logits.amax(-1, keepdim=True)) / self.temperature  # at most 0, however low the temperature
        if self.top_k is None and self.top_p == 1:
            return scaled
        ordered, token_ids = scaled.sort(descending=True, stable=True)
        dropped = torch.zeros_like(ordered, dtype=torch.bool)
        if self.top_k is not None:
            dropped[..., self.top_k :] = True
        if self.top_p < 1:
            probabilities = ordered.masked_fill(dropped, -torch.inf).softmax(-1)
            dropped |= probabilities.cumsum(-1) - probabilities >= self.top_p  # the first is never dropped
        return scaled.masked_fill(torch.zeros_like(dropped).scatter(-1, token_ids, dropped), -torch.inf)


class GumbelNoise:
    """Numbers that, added to scores, make the largest of them a draw from their softmax (Gumbel 1954).

    A picture's numbers are a function of (seed, its address, step). Scores that differ by rounding, as those of
    another batch size do, hardly ever have another largest sum; a walk along cumulative probabilities has.
    """

    def __init__(self, seed: int, addresses: Sequence[int]):
        # NumPy's generators hash the whole of both numbers; torch's CPU generator heeds only 32 bits of its seed.
        self._generators = [np.random.default_rng([seed, address]) for address in addresses]

    def of(self, places: Sequence[int], vocab_size: int) -> Tensor:
        """(R, V) float32, the next of the pictures at these places."""
        exponential = [self._generators[i].standard_exponential(vocab_size, np.float32) for i in places]
        return -torch.from_numpy(np.stack(exponential)).clamp(min=torch.finfo(torch.float32).tiny).log()
