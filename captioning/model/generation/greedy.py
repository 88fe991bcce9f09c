"""Greedy decoding."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from captioning.model.generation.captions import Caption
from captioning.model.generation.checks import require_whole
from captioning.model.generation.choosing import choose_tokens
from captioning.model.generation.steps import StepwiseDecoder


@dataclass(frozen=True)
class Greedy:
    """The most probable token at every step."""

    max_new_tokens: int  # tokens, EOS included

    def __post_init__(self) -> None:
        require_whole("max_new_tokens", self.max_new_tokens)

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
