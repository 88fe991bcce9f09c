"""What a picture of the `shapes` data set holds, one to three coloured shapes, and how it is drawn.

A scene is a function of (seed, index) alone. It becomes pixels with smooth edges at any size: each pixel takes as much
of a shape's colour as the shape covers of it, which near an edge is the signed distance from pixel centre to edge, in
pixels, cut to one pixel's width. No drawing library, so no version of one changes a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from captioning.errors import UserError
from captioning.randomness import addressed_seed

KINDS = ("circle", "square", "triangle")
COLOURS = {
    "red": (214, 45, 40),
    "green": (50, 165, 70),
    "blue": (45, 85, 215),
    "yellow": (240, 205, 40),
    "purple": (150, 60, 180),
    "black": (35, 35, 40),
}
RADII = {"small": (0.08, 0.09), "large": (0.13, 0.14)}  # ranges, in parts of the picture's side
SHADE = 18  # how far a colour channel strays from the name's colour, of 255
BACKGROUND = (225, 255)  # range of the background's grey
COUNT_PROBABILITIES = (0.4, 0.4, 0.2)  # of one, two and three shapes

# Each shape has a cell of a 3 x 3 grid to itself, so none overlap. It strays from the cell's middle by at most this:
# centres in different columns are then at least 1/3 - 2 * 0.06 = 0.21 apart and in the same one at most 0.12, which
# leaves no doubt about what is left of what. A large shape strays less, to stay within its cell.
JITTER = 0.06
CELL = 1 / 3
SQUARE = 0.88  # half a square's side, for radius 1: about a circle's area
REACH = 1.1  # how far a shape of radius 1 extends at most: a triangle's corners

SPLIT_STARTS = {"val": 0, "test": 1_000_000, "train": 2_000_000}  # train has no end
HELD_OUT_COUNT = 1_000_000  # pictures that val and test have at most


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape; lengths are in parts of the picture's side, y grows downwards, rgb is 0..255."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three shapes of different colours, none overlapping, on a background of one light grey (0..255)."""

    shapes: tuple[Shape, ...]
    background: int


def scene_of(seed: int, index: int) -> Scene:
    """The scene at this index of the data set with this seed; the same on every machine."""
    # Of Python's generator only `random()` is promised to stay the same from version to version: nothing else is used.
    random = Random(addressed_seed("shapes scene", int(seed), int(index))).random
    cells = [(column, row) for row in range(3) for column in range(3)]
    colours = list(COLOURS)
    draw = random()
    count = 1 + sum(draw >= limit for limit in (COUNT_PROBABILITIES[0], 1 - COUNT_PROBABILITIES[2]))
    shapes = tuple(
        _shape_in(cells.pop(int(random() * len(cells))), colours.pop(int(random() * len(colours))), random)
        for _ in range(count)
    )
    return Scene(shapes, int(_between(*BACKGROUND, random())))


def _shape_in(cell: tuple[int, int], colour: str, random: Callable[[], float]) -> Shape:
    kind, size = (names[int(random() * len(names))] for names in (KINDS, tuple(RADII)))
    radius = _between(*RADII[size], random())
    stray = min(JITTER, CELL / 2 - REACH * radius)
    x, y = ((place + 0.5) * CELL + _between(-stray, stray, random()) for place in cell)
    red, green, blue = (min(255, max(0, round(c + _between(-SHADE, SHADE, random())))) for c in COLOURS[colour])
    return Shape(kind, colour, size, x, y, radius, (red, green, blue))


def _between(low: float, high: float, part: float) -> float:
    return low + (high - low) * part


def split_indices(split: str, count: int) -> range:
    """The first `count` indices of `train`, `val` or `test`; no index is in two splits.

    Raises:
        UserError: if the split is none of these, or `count` is not in reach.
    """
    if split not in SPLIT_STARTS:
        raise UserError(f"data=shapes has no split {split!r}; choose one of train, val, test")
    if count < 1:
        raise UserError(f"the {split} split of data=shapes was asked for {count} pictures; ask for at least 1")
    if split != "train" and count > HELD_OUT_COUNT:
        raise UserError(f"the {split} split of data=shapes holds {HELD_OUT_COUNT} pictures, not {count}; ask for fewer")
    return range(SPLIT_STARTS[split], SPLIT_STARTS[split] + count)


def draw(scene: Scene, image_size: int) -> np.ndarray:
    """The scene as (image_size, image_size, 3) uint8."""
    centres = (np.arange(image_size, dtype=np.float64) + 0.5) / image_size
    canvas = np.full((image_size, image_size, 3), float(scene.background))
    for shape in scene.shapes:
        inside = _inside_distance(shape, centres[None, :] - shape.x, centres[:, None] - shape.y)
        coverage = np.clip(inside * image_size + 0.5, 0, 1)[:, :, None]  # (H, W, 1)
        canvas += coverage * (np.array(shape.rgb, dtype=np.float64) - canvas)
    return np.rint(canvas).astype(np.uint8)


def _inside_distance(shape: Shape, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """How far each point lies inside the shape, negative outside; `dx` (1, W) and `dy` (H, 1) are from its centre."""
    radius = shape.radius
    if shape.kind == "circle":
        return radius - np.sqrt(dx * dx + dy * dy)
    if shape.kind == "square":
        return SQUARE * radius - np.maximum(np.abs(dx), np.abs(dy))
    # An equilateral triangle that stands on its base: all three sides are half its corners' reach from the centre.
    slanted = np.abs(dx) * (3**0.5 / 2) - dy / 2
    return REACH * radius / 2 - np.maximum(slanted, dy)
