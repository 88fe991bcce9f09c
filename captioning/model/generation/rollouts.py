"""Several captions of a picture drawn from the model's own distribution: what self-critical training learns from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioning.model.generation.captions import Caption
from captioning.model.generation.choosing import choose_tokens
from captioning.model.generation.steps import StepwiseDecoder


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
            # Gumbel noise, as in sampling.py
            drawn = torch.empty_like(logits).exponential_(generator=generator)
            return (logits - drawn.clamp_(min=torch.finfo(drawn.dtype).tiny).log_()).argmax(-1)

        drawn = choose_tokens(decoder, choose, self.max_new_tokens, self.count)
        return [captions[0]._replace(alternatives=tuple(captions)) for captions in drawn]
