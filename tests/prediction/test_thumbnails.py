"""Small pictures for a page."""

from io import BytesIO

import pytest
from PIL import Image

from captioning.prediction.thumbnails import SIDE, thumbnail


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 960), (120, 240)), ((30, 20), (30, 20)), ((10_000, 10), (80, 10)), ((1, 1), (1, 1)), ((3000, 3), (24, 3))],
)
def test_the_longer_side_is_bounded_and_a_long_strip_shows_its_middle(size, expected):
    with Image.open(BytesIO(thumbnail(Image.new("RGB", size, "red")))) as small:
        assert small.format == "WEBP" and max(small.size) <= SIDE
        assert small.size == expected


def test_nothing_of_the_photographs_own_file_is_carried_along():
    photograph = Image.new("RGB", (300, 300))
    photograph.info |= {"exif": b"Exif\0\0" + b"home address", "icc_profile": b"home address", "xmp": b"home address"}
    assert b"home address" not in thumbnail(photograph)
