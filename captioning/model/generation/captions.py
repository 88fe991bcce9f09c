"""What generation returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Caption(NamedTuple):
    """Generated token ids, EOS excluded, and their mean log-probability in nats per token, EOS included.

    The log-probability is the model's own, whatever temperature, filter or penalty chose the tokens.
    """

    token_ids: list[int]
    log_probability: float
    alternatives: tuple[Caption, ...] = ()  # the n best of a beam search, best first and this one among them


def caption_of(tokens: Sequence[int], log_probability_sum: float, eos_token_id: int) -> Caption:
    """A row of tokens cut at its first EOS, with the sum of its log-probabilities up to there.

    >>> caption_of([5, 7, 2, 2], -6.0, eos_token_id=2)
    Caption(token_ids=[5, 7], log_probability=-2.0, alternatives=())
    """
    row = list(tokens)
    length = row.index(eos_token_id) if eos_token_id in row else len(row)
    return Caption(row[:length], log_probability_sum / min(length + 1, len(row)))
