"""Scenes to pixels, with smooth edges at any size.

Each pixel takes as much of a shape's colour as the shape covers of it, which near an edge is the signed distance from
pixel centre to edge, in pixels, cut to one pixel's width. No drawing library, so no version of one changes a picture.
"""

import numpy as np

from captioning.data.shapes.scene import REACH, Scene, Shape

SQUARE = 0.88  # half a square's side, for radius 1: about a circle's area


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
