"""ROUGE-L as the official tool computes it: the longest common subsequence, recall weighed by beta = 1.2.

Lin 2004 (https://aclanthology.org/W04-1013). As in coco-caption, precision and recall are each the best over the
references, not those of one reference.
"""

from collections.abc import Sequence

BETA = 1.2


def rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of one candidate's tokens against those of each reference; all hold at least one token.

    The official tool splits at single spaces, so an empty caption is one empty token to it.

    >>> round(rouge_l("a dog runs".split(" "), ["a big dog runs".split(" "), "dogs".split(" ")]), 4)
    0.8356
    """
    common = _common_lengths(candidate, references)
    precision = max(common) / len(candidate)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_lengths(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    """The length of the longest common subsequence with each reference.

    A row of the usual table is one number, a bit per candidate token: 0 where the row is one more than to its left
    (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    where: dict[str, int] = {}
    for position, token in enumerate(candidate):
        where[token] = where.get(token, 0) | 1 << position
    everywhere = (1 << len(candidate)) - 1
    lengths = []
    for reference in references:
        row = everywhere
        for token in reference:
            matches = row & where.get(token, 0)
            row = (row + matches | row - matches) & everywhere
        lengths.append(len(candidate) - row.bit_count())
    return lengths
