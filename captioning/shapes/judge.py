"""Is this caption true of this scene? Written from what the words mean, not from the grammar that says them.

A noun with "a" claims that such a shape exists; "one", "two" and "three" claim an exact number. Left, right, above and
below compare centres, and need a clear distance.
"""

import re
from itertools import permutations

from captioning.shapes.scenes import COLOURS, KINDS, Scene, Shape

CLEAR = 1 / 6  # how far apart, in parts of the picture's side, before one shape is left of another
EXACTLY = {"one": 1, "two": 2, "three": 3}

_KIND = "|".join(KINDS)
_NOUN = rf"(?:(?:small|large) )?(?:{'|'.join(COLOURS)}) (?:{_KIND})"
_PLACE = "on the (?:left|right)|at the (?:top|bottom)|in the (?:top|bottom) (?:left|right) corner|in the middle"
_DESCRIPTION = re.compile(rf"(?:there is )?a (?P<noun>{_NOUN})(?: (?P<place>{_PLACE}))?")
_RELATION = re.compile(
    rf"a (?P<one>{_NOUN}) is (?P<how>to the left of|to the right of|above|below) a (?P<other>{_NOUN})"
)
_TOTAL = re.compile(r"there (?:is (?P<one>one) shape|are (?P<more>two|three) shapes)")
_ITEM = re.compile(
    rf"(?:(?P<number>a|one) (?P<noun>{_NOUN}|{_KIND})|(?P<numbers>two|three) (?P<nouns>{_NOUN}|{_KIND})s)"
)


def is_true(caption: str, scene: Scene) -> bool:
    """Whether the caption is a sentence of the data set's language and true of the scene."""
    shapes = scene.shapes
    if match := _DESCRIPTION.fullmatch(caption):
        return any(_is(shape, match["noun"]) and _lies(shape, match["place"] or "") for shape in shapes)
    if match := _RELATION.fullmatch(caption):
        pairs = ((a, b) for a, b in permutations(shapes, 2) if _is(a, match["one"]) and _is(b, match["other"]))
        return any(_related(a, match["how"], b) for a, b in pairs)
    if match := _TOTAL.fullmatch(caption):
        return len(shapes) == EXACTLY[match["one"] or match["more"]]
    return _list_is_true(caption, shapes)


def _list_is_true(caption: str, shapes: tuple[Shape, ...]) -> bool:
    """Items joined by commas and a last "and"; the things named with "a" must be different shapes."""
    *firsts, last = caption.split(" and ")
    if len(firsts) > 1:
        return False
    items = [_ITEM.fullmatch(item) for item in [*(firsts[0].split(", ") if firsts else []), last]]
    claims = [(item["number"] or item["numbers"], item["noun"] or item["nouns"]) for item in items if item]
    if len(claims) < len(items) or any(number == "a" and noun in KINDS for number, noun in claims):
        return False
    exact = [(EXACTLY[number], noun) for number, noun in claims if number != "a"]
    each = [noun for number, noun in claims for _ in range(EXACTLY.get(number, 1))]
    found = any(all(map(_is, chosen, each)) for chosen in permutations(shapes, len(each)))
    return found and all(sum(_is(shape, noun) for shape in shapes) == number for number, noun in exact)


def _is(shape: Shape, noun: str) -> bool:
    return set(noun.split()) <= {shape.size, shape.colour, shape.kind}


def _lies(shape: Shape, place: str) -> bool:
    """Whether the shape's centre lies in the named third, or thirds, of the picture; no place named is anywhere."""
    words = set(place.split())
    thirds = {
        "left": shape.x < 1 / 3,
        "right": shape.x > 2 / 3,
        "top": shape.y < 1 / 3,
        "bottom": shape.y > 2 / 3,
        "middle": 1 / 3 < shape.x < 2 / 3 and 1 / 3 < shape.y < 2 / 3,
    }
    return all(holds for word, holds in thirds.items() if word in words)


def _related(one: Shape, how: str, other: Shape) -> bool:
    distances = {
        "to the left of": other.x - one.x,
        "to the right of": one.x - other.x,
        "above": other.y - one.y,
        "below": one.y - other.y,
    }
    return distances[how] > CLEAR
