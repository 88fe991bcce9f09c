"""All captions of a split, tokenised once, as flat arrays in shared memory.

A list of lists of Python integers would be copied into every loader worker as reference counts touch its pages. Flat
arrays are not: workers, forked or spawned, read the same memory. COCO's 591,753 training captions take about 22 MB:
13.86 tokens each on average (measured on the 25,014 of its validation part), BOS and EOS included, at two bytes, with
an 8-byte offset each, and one for each of the 118,287 pictures.
"""

import logging
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from captioning.data.tokenizer import CaptionTokenizer

log = logging.getLogger(__name__)

CAPTIONS_AT_ONCE = 50_000  # bounds the Python objects alive while COCO is tokenised


class TokenArrays:
    """The captions of N pictures: `captions_of(i)` gives picture i's, each an int array from BOS to EOS."""

    def __init__(self, tokens: np.ndarray, caption_starts: np.ndarray, picture_starts: np.ndarray):
        # torch tensors in shared memory travel to spawned workers as handles; numpy views of them index faster.
        self._shared = [_shared(array) for array in (tokens, caption_starts, picture_starts)]

    @classmethod
    def encode(
        cls, captions: Sequence[Sequence[str]], tokenizer: CaptionTokenizer, max_tokens: int, name: str = ""
    ) -> "TokenArrays":
        """Tokenise each picture's captions.

        A caption of more than `max_tokens` targets (its tokens and EOS) is cut there, without an EOS, so that the
        model never learns to stop in mid-sentence; how many were cut is one warning.
        """
        flat = [caption for of_picture in captions for caption in of_picture]
        dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
        pieces: list[np.ndarray] = []
        lengths: list[int] = []
        cut = 0
        for start in range(0, len(flat), CAPTIONS_AT_ONCE):
            encoded = tokenizer.encode(flat[start : start + CAPTIONS_AT_ONCE])
            cut += sum(len(ids) - 1 > max_tokens for ids in encoded)
            encoded = [ids[: max_tokens + 1] for ids in encoded]
            pieces.append(np.fromiter((token for ids in encoded for token in ids), dtype=dtype))
            lengths.extend(len(ids) for ids in encoded)
        if cut:
            log.warning(
                "%d of %d %s captions are longer than data.max_tokens=%d and were cut", cut, len(flat), name, max_tokens
            )
        return cls(
            np.concatenate(pieces) if pieces else np.empty(0, dtype),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([[0], np.cumsum([len(of_picture) for of_picture in captions])]).astype(np.int64),
        )

    def captions_of(self, picture: int) -> list[np.ndarray]:
        """Picture `picture`'s captions, each (tokens + 2,) from BOS to EOS."""
        tokens, caption_starts, picture_starts = (shared.numpy() for shared in self._shared)
        first, last = picture_starts[picture], picture_starts[picture + 1]
        bounds = caption_starts[first : last + 1]
        return [tokens[a:b] for a, b in pairwise(bounds)]

    def captions_per_picture(self) -> np.ndarray:
        """(N,) how many captions each picture has."""
        return np.diff(self._shared[2].numpy())

    @property
    def caption_count(self) -> int:
        return len(self._shared[1]) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all workers share."""
        return sum(shared.nbytes for shared in self._shared)

    def __len__(self) -> int:
        return len(self._shared[2]) - 1


def _shared(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).share_memory_()
