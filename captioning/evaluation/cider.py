"""CIDEr-D, which is what the official tool calls CIDEr: tf-idf cosines of clipped n-grams, a penalty for other lengths.

Vedantam, Zitnick and Parikh 2015 (https://arxiv.org/abs/1411.5726), section 4 and appendix; coco-caption's constants.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, Self

from captioning.evaluation.bleu import ORDERS, NgramCounts

SIGMA = 6.0  # tokens
SCALE = 10.0


class PreparedReferences(NamedTuple):
    """A picture's references, counted, with the length of each one's tf-idf vector of each order."""

    counts: Sequence[NgramCounts]
    norms: Sequence[Sequence[float]]


class CiderD:
    """CIDEr-D with fixed document frequencies: those of the references it was made from.

    Tokens may be words or token ids. An EOS token that is to count, as self-critical training wants it
    (https://arxiv.org/abs/2305.12254), is appended to candidates and references by the caller, here and in
    `from_references` alike; nothing is appended here.

    >>> one, other = NgramCounts([5, 6, 7, 8]), NgramCounts([1, 2, 3, 4])
    >>> cider = CiderD.from_references([[one], [other, NgramCounts([1, 2, 3])]])
    >>> prepared = cider.prepare([one])  # once for a picture, for any number of candidates
    >>> cider.score(one, prepared), cider.score(other, prepared)
    (10.0, 0.0)

    Args:
        document_frequencies: of each n-gram, the number of pictures with a reference that has it; an n-gram of one
            token is the token itself, a longer one a tuple.
        pictures: how many they were counted over.
    """

    def __init__(self, document_frequencies: Mapping[Hashable, int], pictures: int):
        self.document_frequencies = document_frequencies
        self.pictures = pictures
        # By document frequency; an n-gram that no reference has counts as one of a single picture.
        self._idf = [math.log(pictures / max(1, frequency)) for frequency in range(pictures + 1)]

    @classmethod
    def from_references(cls, references: Iterable[Sequence[NgramCounts]]) -> Self:
        """Counts document frequencies over the references of each picture.

        Idf is log(pictures / frequency): of a single picture every weight and so every score is 0.
        """
        frequencies: dict[Hashable, int] = {}
        pictures = 0
        for of_picture in references:
            pictures += 1
            for order in range(ORDERS):
                for ngram in {ngram for counts in of_picture for ngram in counts.orders[order]}:
                    frequencies[ngram] = frequencies.get(ngram, 0) + 1
        assert pictures, "no references to count"
        return cls(frequencies, pictures)

    def prepare(self, references: Sequence[NgramCounts]) -> PreparedReferences:
        """A picture's references, ready to score many candidates; at least one."""
        return PreparedReferences(references, [self._norms(counts) for counts in references])

    def score(self, candidate: NgramCounts, references: PreparedReferences) -> float:
        """CIDEr-D of a candidate, on the official scale from 0 to 10."""
        norms = self._norms(candidate)
        weights = [self._squared_weights(counts) for counts in candidate.orders]
        total = 0.0
        for reference, reference_norms in zip(*references, strict=True):
            cosines = 0.0
            for order in range(ORDERS):
                if norms[order] and reference_norms[order]:
                    common = _clipped_product(candidate.orders[order], reference.orders[order], weights[order])
                    cosines += common / (norms[order] * reference_norms[order])
            total += cosines * math.exp(-(_length_difference(candidate, reference) ** 2) / (2 * SIGMA**2))
        return SCALE * total / (ORDERS * len(references.counts))

    def _squared_weights(self, ngrams: Iterable[Hashable]) -> list[float]:
        idf, frequencies = self._idf, self.document_frequencies
        return [idf[frequencies.get(ngram, 0)] ** 2 for ngram in ngrams]

    def _norms(self, counts: NgramCounts) -> list[float]:
        """The length of the tf-idf vector of each order."""
        idf, frequencies = self._idf, self.document_frequencies
        return [
            math.sqrt(sum([(count * idf[frequencies.get(ngram, 0)]) ** 2 for ngram, count in ngrams.items()]))
            for ngrams in counts.orders
        ]


def _clipped_product(candidate: dict[Hashable, int], reference: dict[Hashable, int], weights: list[float]) -> float:
    """The product of the two tf-idf vectors, the candidate's clipped at the reference's."""
    product = 0.0
    for (ngram, count), weight in zip(candidate.items(), weights, strict=True):
        other = reference.get(ngram)
        if other:
            product += min(count, other) * other * weight
    return product


def _length_difference(candidate: NgramCounts, reference: NgramCounts) -> int:
    """In bigrams, which are what the official scorer counts: one less than tokens, but not less than 0."""
    return max(0, candidate.tokens - 1) - max(0, reference.tokens - 1)
