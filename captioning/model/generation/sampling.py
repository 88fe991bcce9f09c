"""Captions of which each token is chosen from the decoder's distribution alone: greedy, sampling, and rollouts.

`Greedy` takes the most probable token. `Sampling` draws one, by temperature, top-k and nucleus, and its draws belong to
the picture. `Rollouts` draws several captions of each picture, from which self-critical training learns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captioning.model.generation.steps import (
    Caption,
    StepwiseDecoder,
    caption_of,
    worth_leaving,
)

# logits (R, K, V), the pictures' places among all (R,) -> token ids (R, K)
Choose = Callable[[Tensor, Tensor], Tensor]


def choose_tokens(decoder: StepwiseDecoder, choose: Choose, max_new_tokens: int, count: int = 1) -> list[list[Caption]]:
    """`count` captions of each of the decoder's pictures, K in shapes, each token as `choose` says."""
    device, eos_token_id = decoder.device, decoder.eos_token_id
    tokens = torch.full((decoder.pictures, count, max_new_tokens), eos_token_id, device=device)
    log_probabilities = torch.zeros(decoder.pictures, count, device=device)  # sums
    places = torch.arange(decoder.pictures, device=device)  # the result's row of each picture in the batch
    unfinished = torch.ones_like(log_probabilities, dtype=torch.bool)  # (R, K)
    token = decoder.bos()  # (R, 1), fed once for all captions of a picture
    for step in range(max_new_tokens):
        logits = decoder.logits(token, step, own_tokens(count, step, token)).float()  # (R, K, V), one row at first
        logits = logits.expand(-1, count, -1)
        token = choose(logits, places)
        token = token.where(unfinished, eos_token_id)
        tokens[places, :, step] = token
        log_probability = logits.gather(-1, token[..., None])[..., 0] - logits.logsumexp(-1)
        log_probabilities[places] += log_probability.where(unfinished, 0.0)
        unfinished = unfinished & (token != eos_token_id)
        described = unfinished.any(-1)  # (R,)
        left = int(described.sum())
        if left == 0:
            break
        if worth_leaving(left, len(described)):
            rows = described.nonzero()[:, 0]
            decoder.keep(rows)
            places, token, unfinished = places[rows], token[rows], unfinished[rows]
    return [
        [caption_of(row, total, eos_token_id) for row, total in zip(rows, sums, strict=True)]
        for rows, sums in zip(tokens.tolist(), log_probabilities.tolist(), strict=True)
    ]


def own_tokens(count: int, step: int, token: Tensor) -> Tensor | None:
    """(R, 1, K, 1 + K * step) true where a caption may attend: to BOS and to its own tokens, one of K fed a step.

    None for one caption, which attends to all that was fed.
    """
    if count == 1 or step == 0:
        return None
    own = torch.eye(count, dtype=torch.bool, device=token.device).repeat(1, step)  # (K, K * step)
    return torch.nn.functional.pad(own, (1, 0), value=True).expand(len(token), 1, -1, -1)


@dataclass(frozen=True)
class Greedy:
    """The most probable token at every step."""

    max_new_tokens: int  # tokens, EOS included

    @property
    def room(self) -> int:
        """Tokens that a picture is fed."""
        return self.max_new_tokens

    def captions(self, decoder: StepwiseDecoder, addresses: Sequence[int]) -> list[Caption]:
        """One for each of the decoder's pictures."""
        return [caption for (caption,) in choose_tokens(decoder, self.choose, self.max_new_tokens)]

    def choose(self, logits: Tensor, places: Tensor) -> Tensor:
        """(R, K) token ids: the first of the largest logits (R, K, V), whichever picture's they are."""
        return logits.argmax(-1)


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
        # NumPy's generators hash the whole of both numbers; torch's CPU generator uses only 32 bits of its seed.
        self._generators = [np.random.default_rng([seed, address]) for address in addresses]

    def of(self, places: Sequence[int], vocab_size: int) -> Tensor:
        """(R, V) float32, the next of the pictures at these places."""
        exponential = [self._generators[i].standard_exponential(vocab_size, np.float32) for i in places]
        return -torch.from_numpy(np.stack(exponential)).clamp(min=torch.finfo(torch.float32).tiny).log()


@dataclass(frozen=True)
class Rollouts:
    """`count` captions a picture, all from its one encoding and one set of projected keys.

    Unlike `Sampling`, whose draws belong to a picture, these are drawn on the device, where a vocabulary of 50,257
    tokens for each of B x K captions takes no time, and belong to the batch: the same seed and batch give the same.
    """

    max_new_tokens: int  # tokens, EOS included
    count: int
    seed: int

    @property
    def room(self) -> int:
        """Tokens that a picture is fed: BOS once, then one for each of its captions a step."""
        return 1 + (self.max_new_tokens - 1) * self.count

    def captions(self, decoder: StepwiseDecoder, addresses: Sequence[int]) -> list[Caption]:
        """One for each of the decoder's pictures, the first drawn, with all of them as its alternatives."""
        generator = torch.Generator(decoder.device).manual_seed(self.seed)

        def choose(logits: Tensor, places: Tensor) -> Tensor:
            # Gumbel noise, as in `GumbelNoise`
            drawn = torch.empty_like(logits).exponential_(generator=generator)
            return (logits - drawn.clamp_(min=torch.finfo(drawn.dtype).tiny).log_()).argmax(-1)

        drawn = choose_tokens(decoder, choose, self.max_new_tokens, self.count)
        return [captions[0]._replace(alternatives=tuple(captions)) for captions in drawn]
