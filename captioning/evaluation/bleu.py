"""BLEU-1 to BLEU-4 as the official tool computes them: clipped precisions, the penalty of the closest reference.

Papineni et al. 2002 (https://aclanthology.org/P02-1040), with the two tiny constants of coco-caption's scorer, which
keep a precision of nothing from being 0 or undefined, and so give it the value that the official figure has.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

ORDERS = 4  # n-grams of 1, 2, 3 and 4 tokens
_TINY, _SMALL = 1e-15, 1e-9  # the official scorer's


class NgramCounts:
    """The counts of a caption's n-grams, by order, and its number of tokens.

    An n-gram of one token is the token itself, a longer one a tuple.

    >>> counts = NgramCounts(["a", "dog", "a"])
    >>> counts.tokens, counts.orders[0], counts.orders[2]
    (3, {'a': 2, 'dog': 1}, {('a', 'dog', 'a'): 1})
    """

    __slots__ = ("orders", "tokens")

    def __init__(self, tokens: Sequence[Hashable]):
        self.tokens = len(tokens)
        later = [tokens[start:] for start in range(1, ORDERS)]
        self.orders = (
            _counts(tokens),
            *(_counts(zip(tokens, *later[:more], strict=False)) for more in range(1, ORDERS)),
        )


def _counts(ngrams: Iterable[Hashable]) -> dict[Hashable, int]:
    counts: dict[Hashable, int] = {}
    for ngram in ngrams:
        counts[ngram] = counts.get(ngram, 0) + 1
    return counts


class Bleu(NamedTuple):
    """BLEU-1 to BLEU-4 of the corpus and of each picture, and the lengths (tokens) behind the brevity penalty."""

    corpus: list[float]
    per_picture: list[list[float]]
    candidate_tokens: int
    reference_tokens: int
    summed: np.ndarray  # (N, 10) what `bleu_of_sums` takes the sum of: of each picture its matches, n-grams, lengths


def bleu(candidates: Sequence[NgramCounts], references: Sequence[Sequence[NgramCounts]]) -> Bleu:
    """BLEU of candidates, one a picture, against each picture's references, in the same order.

    The corpus figure sums matches, n-grams and lengths over all pictures before it divides; it is no mean of pictures.
    """
    found = [_matches(candidate, of_picture) for candidate, of_picture in zip(candidates, references, strict=True)]
    summed = np.array([[*one.correct, *_possible(one.tokens), one.tokens, one.reference_tokens] for one in found])
    summed = summed.reshape(-1, 2 * ORDERS + 2)
    tokens, of_references = summed[:, -2:].sum(0).tolist()
    per_picture = [_score(one, _possible(one.tokens)) for one in found]
    return Bleu(bleu_of_sums(summed.sum(0)).tolist(), per_picture, tokens, of_references, summed)


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """(..., 10) sums over pictures of `Bleu.summed` -> (..., 4) BLEU-1 to BLEU-4."""
    correct, possible, lengths = np.split(sums, [ORDERS, 2 * ORDERS], axis=-1)
    products = np.cumprod((correct + _TINY) / (possible + _SMALL), axis=-1)
    ratio = (lengths[..., :1] + _TINY) / (lengths[..., 1:] + _SMALL)
    return products ** (1 / np.arange(1, ORDERS + 1)) * np.exp(np.minimum(0, 1 - 1 / ratio))


class _Matches(NamedTuple):
    correct: list[int]  # n-grams of each order that a reference has, each counted as often as in one reference at most
    tokens: int
    reference_tokens: int  # of the reference whose length is closest, the shorter of two


def _matches(candidate: NgramCounts, references: Sequence[NgramCounts]) -> _Matches:
    correct = [0] * ORDERS
    for order, counts in enumerate(candidate.orders):
        others = [reference.orders[order] for reference in references]
        for ngram, count in counts.items():
            most = max([other.get(ngram, 0) for other in others])
            correct[order] += min(count, most)
    closest = min((abs(reference.tokens - candidate.tokens), reference.tokens) for reference in references)[1]
    return _Matches(correct, candidate.tokens, closest)


def _possible(tokens: int) -> list[int]:
    return [max(0, tokens - order) for order in range(ORDERS)]


def _score(matches: _Matches, possible: Sequence[int]) -> list[float]:
    scores = []
    product = 1.0
    for order in range(ORDERS):
        product *= (matches.correct[order] + _TINY) / (possible[order] + _SMALL)
        scores.append(product ** (1 / (order + 1)))
    ratio = (matches.tokens + _TINY) / (matches.reference_tokens + _SMALL)
    if ratio >= 1:
        return scores
    penalty = math.exp(1 - 1 / ratio)
    return [score * penalty for score in scores]
