"""How often each run of one to four tokens comes in a caption: what BLEU and CIDEr both count."""

from collections.abc import Hashable, Iterable, Sequence

ORDERS = 4  # n-grams of 1, 2, 3 and 4 tokens


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
