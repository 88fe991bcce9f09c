"""A picture's own memory as a tensor: the right pixels, for as long as they are needed."""

import gc

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from captioning.data.transforms import lent_pixels


def drawn(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (640, 480), (3000, 2000)])  # the last fills several blocks
def test_the_pixels_are_the_pictures(size):
    assert torch.equal(lent_pixels(drawn(*size))[:3], F.pil_to_tensor(drawn(*size)))


def test_the_pixels_outlive_the_picture():
    pixels = lent_pixels(drawn(200, 100))[:3, 10:]
    gc.collect()
    others = [Image.new("RGB", (200, 100), "white") for _ in range(50)]  # would take over memory that was given back
    assert torch.equal(pixels, F.pil_to_tensor(drawn(200, 100))[:, 10:])
    assert others


def test_the_memory_is_given_back():
    from resource import RUSAGE_SELF, getrusage

    def peak_mebibytes() -> float:
        return getrusage(RUSAGE_SELF).ru_maxrss / 1024

    lent_pixels(Image.new("RGB", (1500, 1500)))
    before = peak_mebibytes()
    for _ in range(100):  # of 9 MB each
        lent_pixels(Image.new("RGB", (1500, 1500)))
    assert peak_mebibytes() - before < 100
