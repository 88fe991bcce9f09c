"""Captions from pictures: `generate` with one of the decodings `Greedy`, `Sampling`, `Beam` and `Rollouts`.

Letters in all its files: B pictures (R of them still in the batch), K beams or captions of a picture, P encoded
patches, D decoder width, V vocabulary, n tokens so far, T the longest caption allowed.
"""

from captioning.model.generation.beam import Beam
from captioning.model.generation.sampling import Greedy, Rollouts, Sampling
from captioning.model.generation.steps import Caption, Decoding, generate, generate_from, require_room

__all__ = ["Beam", "Caption", "Decoding", "Greedy", "Rollouts", "Sampling", "generate", "generate_from", "require_room"]
