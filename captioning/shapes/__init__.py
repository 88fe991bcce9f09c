"""Pictures of coloured shapes, drawn on the fly, with captions whose probabilities are known.

Nothing is downloaded, the lowest reachable perplexity is exact, and every caption can be judged true or false.
"""

from captioning.shapes.grammar import caption_distribution, captions_of, perplexity_floor
from captioning.shapes.judge import is_true
from captioning.shapes.scenes import Scene, Shape, draw, scene_of, split_indices

__all__ = [
    "Scene",
    "Shape",
    "caption_distribution",
    "captions_of",
    "draw",
    "is_true",
    "perplexity_floor",
    "scene_of",
    "split_indices",
]
