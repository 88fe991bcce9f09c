"""What can be said of a scene, and how probable each way to say it is.

    caption  = describe | relate | list | count
    describe = ["there is"] "a" noun [where]            there is a large red circle in the top left corner
    relate   = "a" noun "is" relation "a" noun          a red circle is to the left of a small blue square
    list     = every shape, in any order                a red circle, a blue square and a black circle
    count    = how many shapes, or of each kind         there are three shapes; two circles and one square
    noun     = [size] colour kind

A choice between true alternatives is even unless a constant below says otherwise. Captions are drawn independently,
so the probabilities give the lowest perplexity that any model can reach.
"""

import math
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate, permutations
from random import Random

from captioning.randomness import addressed_seed
from captioning.shapes.scenes import Scene, Shape, scene_of

ONE_SHAPE = {"describe": 0.85, "count": 0.15}
MORE_SHAPES = {"describe": 0.6, "relate": 0.1, "list": 0.2, "count": 0.1}  # relations take longest to learn
THERE_IS = 0.5  # that a description begins with "there is"
WHERE = 0.7  # that a description says where
SIZE_DESCRIBED = 0.4  # that a noun has its size, in a description
SIZE_RELATED = 0.2  # ... and in a relation
CAPTION_COUNTS = {5: 0.8, 4: 0.1, 6: 0.1}  # captions of a picture
NUMBERS = ("no", "one", "two", "three")

Sayings = dict[str, float]  # texts, and the probability of each


def caption_distribution(scene: Scene) -> Sayings:
    """Every caption the grammar can say of the scene, with its exact probability; they sum to 1."""
    says = {"describe": _describe, "relate": _relate, "list": _list, "count": _count}
    weights = ONE_SHAPE if len(scene.shapes) == 1 else MORE_SHAPES
    return _mix((weight, says[name](scene.shapes)) for name, weight in weights.items())


def captions_of(seed: int, index: int) -> tuple[str, ...]:
    """The captions of a picture: 4 to 6, drawn independently, so that one may come twice."""
    return tuple(caption for caption, _ in _drawn_captions(seed, index))


def perplexity_floor(seed: int, indices: Iterable[int], count_tokens: Callable[[str], int]) -> float:
    """The perplexity of these pictures' captions under the grammar's own probabilities: exp(nats / tokens).

    `count_tokens` gives a caption's tokens without BOS and EOS; EOS, which a model must predict too, is added here.
    """
    count_tokens = cache(count_tokens)
    nats, tokens = 0.0, 0
    for index in indices:
        for caption, probability in _drawn_captions(seed, index):
            nats -= math.log(probability)
            tokens += count_tokens(caption) + 1
    return math.exp(nats / tokens)


def _drawn_captions(seed: int, index: int) -> list[tuple[str, float]]:
    sayings = list(caption_distribution(scene_of(seed, index)).items())
    limits = list(accumulate(probability for _, probability in sayings))
    random = Random(addressed_seed("shapes captions", int(seed), int(index))).random
    count_limits = list(accumulate(CAPTION_COUNTS.values()))
    count = tuple(CAPTION_COUNTS)[_pick(count_limits, random())]
    return [sayings[_pick(limits, random())] for _ in range(count)]


def _pick(limits: list[float], part: float) -> int:
    return min(bisect(limits, part * limits[-1]), len(limits) - 1)


def _describe(shapes: Sequence[Shape]) -> Sayings:
    begin = {"a": 1 - THERE_IS, "there is a": THERE_IS}
    return _even(_join(begin, _noun(shape, SIZE_DESCRIBED), _where(shape)) for shape in shapes)


def _relate(shapes: Sequence[Shape]) -> Sayings:
    return _even(
        _join({"a": 1.0}, _noun(one, SIZE_RELATED), {"is": 1.0}, _relation(one, other), {"a": 1.0}, noun)
        for one, other in permutations(shapes, 2)
        for noun in [_noun(other, SIZE_RELATED)]
    )


def _list(shapes: Sequence[Shape]) -> Sayings:
    return _in_any_order([f"a {shape.colour} {shape.kind}" for shape in shapes])


def _count(shapes: Sequence[Shape]) -> Sayings:
    n = len(shapes)
    total = "there is one shape" if n == 1 else f"there are {NUMBERS[n]} shapes"
    kinds = Counter(shape.kind for shape in shapes)
    by_kind = [f"{NUMBERS[n]} {kind}" + "s" * (n > 1) for kind, n in kinds.items()]
    return _even([{total: 1.0}, _in_any_order(by_kind)])


def _noun(shape: Shape, size_probability: float) -> Sayings:
    noun = f"{shape.colour} {shape.kind}"
    return {noun: 1 - size_probability, f"{shape.size} {noun}": size_probability}


def _where(shape: Shape) -> Sayings:
    column, row = _cell(shape)
    across, down = ("left", "", "right")[column], ("top", "", "bottom")[row]
    places = [f"on the {across}"] * bool(across) + [f"at the {down}"] * bool(down)
    if across and down:
        places += [f"in the {down} {across} corner"] * 2  # the fullest answer, as often as both others together
    return _mix([(1 - WHERE, {"": 1.0}), (WHERE, _even({place: 1.0} for place in places or ["in the middle"]))])


def _relation(one: Shape, other: Shape) -> Sayings:
    columns_and_rows = zip(_cell(one), _cell(other), strict=True)
    words = (("to the left of", "to the right of"), ("above", "below"))
    return _even({pair[a > b]: 1.0} for (a, b), pair in zip(columns_and_rows, words, strict=True) if a != b)


def _cell(shape: Shape) -> tuple[int, int]:
    """Column and row, 0..2, of the grid that scenes are laid out on."""
    return int(shape.x * 3), int(shape.y * 3)


def _in_any_order(items: list[str]) -> Sayings:
    return _even(
        {" and ".join([", ".join(order[:-1])] * (len(order) > 1) + [order[-1]]): 1.0} for order in permutations(items)
    )


def _join(*parts: Sayings) -> Sayings:
    """One text of each part, chosen independently, with blanks between those that are not empty."""
    whole: Sayings = {"": 1.0}
    for part in parts:
        whole = {f"{a} {b}".strip(): p * q for a, p in whole.items() for b, q in part.items()}
    return whole


def _even(alternatives: Iterable[Sayings]) -> Sayings:
    alternatives = list(alternatives)
    return _mix((1 / len(alternatives), sayings) for sayings in alternatives)


def _mix(alternatives: Iterable[tuple[float, Sayings]]) -> Sayings:
    """The sum over every way to come to a text."""
    total: Sayings = {}
    for weight, sayings in alternatives:
        for text, probability in sayings.items():
            total[text] = total.get(text, 0.0) + weight * probability
    return total
