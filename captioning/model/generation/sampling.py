"""Captions of which each token is chosen from the decoder's distribution alone: greedy, sampling, and rollouts.

`Greedy` takes the most probable token. `Sampling` draws one, by temperature, top-k and nucleus, and its draws belong to
the picture. `Rollouts` draws several captions of each picture, from which self-critical training learns.

Drawn is by numbers that, subtracted from scores, make the largest difference a draw from their softmax: logarithms of
exponentially distributed ones (Gumbel 1954). Scores that differ by rounding, as those of another batch size do, hardly
ever have another largest difference; a walk along cumulative probabilities has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from captioning.model.generation.rules import Ruler, Rules
from captioning.model.generation.steps import Caption, Search, StepwiseDecoder, caption_of

# Fills (R, J, V) float32 with exponentially distributed numbers, for the pictures at these places among all.
Draw = Callable[[Tensor, Sequence[int]], object]


class Choice(Search):
    """Captions to which the token is added that the decoding chooses, and that end at EOS."""

    tokens: Tensor  # (R, K, T); EOS after a caption's end, and where there is no token yet
    sums: Tensor  # (R, K) float32, of their log-probabilities
    unfinished: Tensor  # (R, K)

    def __init__(self, decoding: _TokenByToken, decoder: StepwiseDecoder):
        captions, device = (decoder.pictures, decoding.beams), decoder.device
        self._choose, self._bos, self._eos = decoding.choose, decoder.bos_token_id, decoder.eos_token_id
        self._ruler = Ruler(decoding, self._bos, self._eos, device)
        self._draw: Draw | None = None
        self._noise = torch.ones(decoder.pictures, decoding.draws, decoder.vocab_size, device=device)
        whole = {
            "last": torch.empty(captions, dtype=torch.long, device=device),
            "tokens": torch.empty(*captions, decoding.longest, dtype=torch.long, device=device),
            "sums": torch.empty(captions, device=device),
            "unfinished": torch.empty(captions, dtype=torch.bool, device=device),
        }
        super().__init__(whole)

    def begin(self, decoding: _TokenByToken, pictures: int, addresses: Sequence[int]) -> None:
        """BOS alone; the draws are this decoding's."""
        self.narrow(pictures)
        self.last.fill_(self._bos)
        self.tokens.fill_(self._eos)
        self.sums.zero_()
        self.unfinished.zero_()
        self.unfinished[: len(addresses)] = True
        self._draw = decoding.source(addresses, self.last.device)

    def draw(self, places: Sequence[int]) -> None:
        """Fill the noise of the pictures at these places."""
        if self._draw is not None:
            self._draw(self._noise[: len(places)], places)

    def advance(self, logits: Tensor, decoder: StepwiseDecoder) -> None:
        """Choose a token for each caption; EOS for those that have ended."""
        logits, ruler = logits.float().expand(-1, self.last.shape[1], -1), self._ruler
        ruled = ruler.apply(logits.clone(), self.tokens, decoder.step) if ruler.change else logits
        token = self._choose(ruled, self._noise[: len(logits)])
        counts = self.unfinished
        if ruler.prefix:
            forced = ruler.forced(decoder.step)
            token, counts = token.where(forced < 0, forced), counts & (forced < 0)
        log_probability = logits.gather(-1, token[..., None])[..., 0] - logits.logsumexp(-1)
        self.sums.add_(log_probability.masked_fill(~counts, 0.0))
        self.unfinished.logical_and_(~ruler.ended(token))
        token = token.masked_fill(~self.unfinished, self._eos)
        self.tokens.index_copy_(-1, decoder.step, token[..., None])
        self.last.copy_(token)

    def ended(self) -> Tensor:
        """(R,) whether all captions of a picture have."""
        return ~self.unfinished.any(-1)

    def captions(self, pictures: Sequence[int]) -> list[Caption]:
        """The first of each of these pictures, with all of them as its alternatives where there are several."""
        tokens, sums, made = self.tokens.tolist(), self.sums.tolist(), []
        for picture in pictures:
            pairs = zip(tokens[picture], sums[picture], strict=True)
            captions = tuple(caption_of(ids, total, self._eos, self._ruler.prefix) for ids, total in pairs)
            made.append(captions[0]._replace(alternatives=captions if len(captions) > 1 else ()))
        return made


class _TokenByToken:
    """What the decodings below have in common: one caption of a picture, and nothing drawn, unless they say more."""

    max_new_tokens: int

    @property
    def longest(self) -> int:
        """T, tokens of the longest caption."""
        return self.max_new_tokens

    @property
    def beams(self) -> int:
        """K, the captions of a picture."""
        return 1

    @property
    def draws(self) -> int:
        """How many sets of numbers are drawn for a picture at each step: none, its own, or one for each caption."""
        return 0

    def source(self, addresses: Sequence[int], device: torch.device) -> Draw | None:
        """Where a batch's numbers come from."""
        return None

    def choose(self, logits: Tensor, noise: Tensor) -> Tensor:
        """(R, K) token ids, given logits (R, K, V) and exponential noise (R, draws, V), which may be written in."""
        raise NotImplementedError

    def search(self, decoder: StepwiseDecoder) -> Choice:
        """The captions of the decoder's pictures."""
        return Choice(self, decoder)


@dataclass(frozen=True)
class Greedy(Rules, _TokenByToken):
    """The most probable token at every step."""

    max_new_tokens: int  # tokens, EOS included
    no_repeat_ngram_size: int = field(default=0, kw_only=True)  # no run of so many tokens occurs twice

    def choose(self, logits: Tensor, noise: Tensor) -> Tensor:
        """The first of the largest logits."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class Sampling(Rules, _TokenByToken):
    """Multinomial sampling with temperature, among the `top_k` tokens and the nucleus of probability `top_p`.

    A picture's draws are a function of (seed, its address), not of the batch that it falls into: the same seed gives
    the same captions with any batch size, and `n_best` 5 the same first one as 1. `top_k`: null keeps all; `top_p`: 1
    keeps all (Holtzman et al. 2020); `min_p`: 0 keeps all, else what has this part of the likeliest one's probability.
    """

    max_new_tokens: int  # tokens, EOS included
    temperature: float
    top_k: int | None
    top_p: float
    seed: int
    min_p: float = field(default=0.0, kw_only=True)
    n_best: int = field(default=1, kw_only=True)  # captions of a picture
    no_repeat_ngram_size: int = field(default=0, kw_only=True)  # no run of so many tokens occurs twice

    @property
    def beams(self) -> int:
        """The captions of a picture."""
        return self.n_best

    @property
    def draws(self) -> int:
        """Each caption's own."""
        return self.n_best

    def source(self, addresses: Sequence[int], device: torch.device) -> Draw:
        """A generator for each caption."""
        return PicturesNoise(self.seed, addresses, self.n_best)

    def choose(self, logits: Tensor, noise: Tensor) -> Tensor:
        """A draw from the softmax of the scores."""
        return (self.scores(logits) - _logarithm(noise)).argmax(-1)

    def scores(self, logits: Tensor) -> Tensor:
        """(..., V) of which the softmax is what is drawn from: logits by temperature, -inf for what is filtered out."""
        logits = logits.float()
        scaled = (logits - logits.amax(-1, keepdim=True)) / self.temperature  # at most 0, however low the temperature
        if self.min_p:  # behind the others, as in transformers; the likeliest is in all of them
            unlikely = scaled < math.log(self.min_p)
            return self._among_the_likeliest(scaled).masked_fill(unlikely, -torch.inf)
        return self._among_the_likeliest(scaled)

    def _among_the_likeliest(self, scaled: Tensor) -> Tensor:
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


@dataclass(frozen=True)
class Rollouts(_TokenByToken):
    """`count` captions a picture, all from its one encoding and one set of projected keys.

    Unlike `Sampling`, whose draws belong to a picture, these are drawn on the device, where a vocabulary of 50,257
    tokens for each of B x K captions takes no time, and belong to the batch: the same seed and batch give the same.
    """

    max_new_tokens: int  # tokens, EOS included
    count: int
    seed: int

    @property
    def beams(self) -> int:
        """The captions of a picture."""
        return self.count

    @property
    def draws(self) -> int:
        """Each caption's own."""
        return self.count

    def source(self, addresses: Sequence[int], device: torch.device) -> Draw:
        """A generator of the device."""
        generator = torch.Generator(device).manual_seed(self.seed)
        return lambda noise, places: noise.exponential_(generator=generator)

    def choose(self, logits: Tensor, noise: Tensor) -> Tensor:
        """A draw from the softmax of the logits."""
        return (logits - _logarithm(noise)).argmax(-1)


class PicturesNoise:
    """Exponentially distributed numbers that are a function of (seed, a picture's address, caption of it, step)."""

    def __init__(self, seed: int, addresses: Sequence[int], captions: int = 1):
        # NumPy's generators hash the whole of all numbers; torch's CPU generator uses only 32 bits of its seed.
        self._generators = [
            [np.random.default_rng([seed, address, *[n] * (n > 0)]) for n in range(captions)] for address in addresses
        ]
        self._threads = ThreadPoolExecutor(torch.get_num_threads())  # none yet

    def __call__(self, noise: Tensor, places: Sequence[int]) -> None:
        """Fill (R, J, V) with the next numbers of the pictures at these places; what is at none of them is left.

        A GPU's step takes less than a tenth of what a thread does to draw for it, so there the cores share them.
        """
        drawn = torch.empty(noise.shape, pin_memory=True) if noise.is_cuda else noise
        numbers_of, threads = drawn.numpy(), torch.get_num_threads()

        def fill(first: int) -> None:
            for numbers, place in zip(numbers_of[first::threads], places[first::threads], strict=True):
                if place < len(self._generators):
                    for generator, row in zip(self._generators[place], numbers, strict=True):
                        generator.standard_exponential(dtype=np.float32, out=row)

        for _ in (self._threads.map if noise.is_cuda else map)(fill, range(threads)):
            pass
        if drawn is not noise:
            noise.copy_(drawn, non_blocking=True)


def _logarithm(noise: Tensor) -> Tensor:
    return noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_()
