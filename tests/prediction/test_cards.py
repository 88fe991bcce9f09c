"""One picture of the gallery as HTML."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from captioning.prediction.cards import GalleryEntry, card, score_values


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "1.jpg"
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[:, :30] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_a_picture_is_made_small_and_upright_of_its_file(photograph):
    html = "".join(card(0, GalleryEntry(photograph, "a", -1.0)))
    assert 'width="30" height="60"' in html and 'alt="picture 1.jpg"' in html


@pytest.mark.parametrize("known", [{"error": "empty file"}, {"caption": "a", "log_probability": -1.0}])
def test_a_file_that_cannot_be_read_has_a_placeholder(tmp_path, known):
    (tmp_path / "1.jpg").touch()
    html = "".join(card(0, GalleryEntry(tmp_path / "1.jpg", **known)))
    assert 'role="img" aria-label="no picture: empty file"' in html and "<img" not in html


def test_scores_go_between_the_two_parts(photograph):
    before, after = card(7, GalleryEntry(photograph, "a <b> & c", -0.5, references=["r"], alternatives=[("n", -2.0)]))
    html = before + score_values({"CIDEr": 0.25}) + after
    (numbers,) = re.findall('<p class="numbers">(.*?)</p>', html)
    assert re.findall('data-key="(.*?)" value="(.*?)"', numbers) == [("log-probability", "-0.5"), ("CIDEr", "0.25")]
    assert "a &lt;b&gt; &amp; c</p>" in html and "1 reference<" in html and "The 1 best<" in html
    assert html.startswith('<li class="card" tabindex="-1" data-place="7" aria-labelledby="caption-7">')


def test_what_is_no_number_is_not_shown_as_one(photograph):
    assert score_values({"CIDEr": math.nan}) == ""
    before, _ = card(0, GalleryEntry(photograph, "a", -math.inf))
    assert before.endswith('<p class="numbers">')
