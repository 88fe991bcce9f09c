"""Heat maps over a photograph."""

import numpy as np
import pytest
from PIL import Image

from captioning.data.batch import PictureFormat
from captioning.prediction.strips import COLUMNS, GAP, LABEL, Word, seen_part, strip

GREY = Image.new("RGB", (80, 40), (120, 120, 120))


def one_hot(row: int, column: int) -> np.ndarray:
    heat = np.zeros((4, 8), np.float32)
    heat[row, column] = 0.01
    return heat


def panel(sheet: Image.Image, place: int) -> np.ndarray:
    """(40, 80) brightness of a panel."""
    left, top = GAP + place % COLUMNS * (80 + GAP), GAP + place // COLUMNS * (40 + LABEL)
    return np.asarray(sheet.crop((left, top, left + 80, top + 40)).convert("L"))


def test_each_word_has_a_panel_that_is_brightest_where_its_map_is():
    places = [(0, 0), (3, 7), (1, 4), (2, 2), (0, 7), (3, 0), (1, 1)]
    sheet = strip(GREY, [Word(f"word{i}", one_hot(*place)) for i, place in enumerate(places)], panel=80)
    assert sheet.size == (COLUMNS * (80 + GAP) + GAP, 2 * (40 + LABEL) + GAP)
    assert (panel(sheet, 0) == 120).all()  # the photograph alone
    for number, (row, column) in enumerate(places, start=1):
        shown = panel(sheet, number)
        brightest = np.unravel_index(shown.argmax(), shown.shape)
        assert (brightest[0] // 10, brightest[1] // 10) == (row, column)
        assert shown.min() < 50  # what was not attended to is dark


def test_panels_show_where_and_not_how_much():
    weak, strong = (strip(GREY, [Word("a", one_hot(1, 1) * factor)], panel=80) for factor in (1e-3, 1.0))
    assert np.abs(np.asarray(weak, int) - np.asarray(strong, int)).max() <= 1


def test_even_attention_is_even_and_none_is_dark():
    even, none = (panel(strip(GREY, [Word("a", np.full((4, 8), x, np.float32))], panel=80), 1) for x in (0.1, 0))
    assert even.min() == even.max() > 100
    assert none.max() < 50


@pytest.mark.parametrize("text", ["dog", "café", "кот", "incomprehensibilities", "a\nb", "…", ""])
def test_words_of_any_length_and_script_fit_under_their_panel(text):
    sheet = strip(GREY, [Word(text, one_hot(0, 0)), Word("", one_hot(0, 0))], panel=80)
    label = np.asarray(sheet.convert("L"))[GAP + 40 : GAP + 40 + LABEL]
    inked = np.flatnonzero((label < 200).any(0))
    start = GAP + 80 + GAP
    assert all(start - GAP / 2 <= column <= start + 80 + GAP / 2 for column in inked)
    assert bool(len(inked)) == bool(text)


@pytest.mark.parametrize(
    ("size", "picture_format", "expected"),
    [
        ((640, 480), PictureFormat((224, 224)), (0, 0, 640, 480)),
        ((640, 480), PictureFormat((224, 224), resize_shortest=224), (80, 0, 560, 480)),
        ((480, 640), PictureFormat((224, 224), resize_shortest=256), (30, 110, 450, 530)),
        ((100, 100), PictureFormat((120, 120), resize_shortest=100), (-10, -10, 110, 110)),
    ],
)
def test_the_part_that_the_encoder_sees_is_known(size, picture_format, expected):
    assert seen_part(size, picture_format) == expected
