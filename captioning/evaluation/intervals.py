"""How sure a figure is: its interval over the choice of pictures, and whether two models' captions truly differ.

Both draw anew what the pictures were: the interval by the bootstrap (Koehn 2004, https://aclanthology.org/W04-3250),
the test by exchanging the two captions of a random half of them (approximate randomization, Riezler and Maxwell 2005,
https://aclanthology.org/W05-0908). The figure of a draw is computed of sums over its pictures, as the corpus's is,
which is no mean of pictures for BLEU. CIDEr's document frequencies stay those of all references given.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Self

import numpy as np

DRAWS = 1000
CONFIDENCE = 0.95
SEED = 0  # the same file has the same interval each time
AT_ONCE = 2**22  # numbers of a block of draws: 32 MB


class Sums(NamedTuple):
    """A figure of the corpus as a function of sums over its pictures.

    Attributes:
        of_pictures: (N, F) what each picture adds.
        figure: (..., F) sums -> (...) figures.
    """

    of_pictures: np.ndarray
    figure: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def mean(cls, per_picture: list[float]) -> Self:
        """Of a figure that is the mean of its pictures'."""
        return cls(np.stack([np.asarray(per_picture, float), np.ones(len(per_picture))], 1), _mean)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


class Difference(NamedTuple):
    """Of two sets of captions of the same pictures: the second's figure less the first's, its interval, and p.

    p is how often a difference as large comes of captions that are exchanged at random: below 0.05 the two differ.
    """

    difference: float
    low: float
    high: float
    p: float


def intervals(sums: Mapping[str, Sums]) -> dict[str, tuple[float, float]]:
    """Of each figure the 95% interval, by resampling its pictures 1,000 times; the same numbers each time.

    >>> intervals({"CIDEr": Sums.mean([0.5] * 9)})
    {'CIDEr': (0.5, 0.5)}
    """
    return {name: _middle(figures) for name, figures in _resampled(sums).items()}


def differences(first: Mapping[str, Sums], second: Mapping[str, Sums]) -> dict[str, Difference]:
    """Of each figure that both have, what `Difference` says; row i of both is the same picture's."""
    both = {name: (one, second[name]) for name, one in first.items() if name in second}
    drawn = _resampled(first), _resampled(second)  # the same pictures of both
    as_large = dict.fromkeys(both, 0)
    for exchanged in _blocks(_pictures(first), lambda random, shape: random.integers(2, size=shape)):
        for name, (a, b) in both.items():
            moved = exchanged @ (b.of_pictures - a.of_pictures)
            found = b.figure(b.of_pictures.sum(0) - moved) - a.figure(a.of_pictures.sum(0) + moved)
            least = abs(_difference(a, b)) - 1e-12  # sums in another order are rounded otherwise
            as_large[name] += int((np.abs(found) >= least).sum())
    return {
        name: Difference(
            _difference(*both[name]), *_middle(drawn[1][name] - drawn[0][name]), (as_large[name] + 1) / (DRAWS + 1)
        )
        for name in both
    }


def _difference(first: Sums, second: Sums) -> float:
    return float(second.figure(second.of_pictures.sum(0)) - first.figure(first.of_pictures.sum(0)))


def _pictures(sums: Mapping[str, Sums]) -> int:
    return len(next(iter(sums.values())).of_pictures) if sums else 1


def _resampled(sums: Mapping[str, Sums]) -> dict[str, np.ndarray]:
    """Of each figure (DRAWS,) of as many pictures as there are, drawn with replacement."""
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in sums}
    for counts in _blocks(_pictures(sums), _counts):
        for name, one in sums.items():
            drawn[name].append(one.figure(counts @ one.of_pictures))
    return {name: np.concatenate(blocks) for name, blocks in drawn.items()}


def _counts(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """(n, N) how often each picture is drawn in each of n draws."""
    rows, pictures = shape
    places = random.integers(pictures, size=shape) + pictures * np.arange(rows)[:, None]
    return np.bincount(places.ravel(), minlength=rows * pictures).reshape(shape)


def _blocks(pictures: int, drawn: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]) -> Iterator[np.ndarray]:
    """(n, N) float64, in all `DRAWS` rows, so many at once that memory stays small."""
    random, rows = np.random.default_rng(SEED), max(1, AT_ONCE // pictures)
    for start in range(0, DRAWS, rows):
        yield drawn(random, (min(rows, DRAWS - start), pictures)).astype(float)


def _middle(figures: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(figures, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
