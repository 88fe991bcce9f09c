"""Cross-attention as pictures: whose words, whose layers, and how it is drawn over a photograph."""

import numpy as np
import pytest
from PIL import Image
from support import random_pictures, small_captioner, trained_tokenizer

from captioning.data.batch import PictureFormat
from captioning.errors import UserError
from captioning.model.attention import cross_attention
from captioning.prediction import strips
from captioning.prediction.strips import (
    COLUMNS,
    GAP,
    LABEL,
    PANEL,
    Word,
    checked_layers,
    draw_heat_maps,
    seen_box,
    seen_part,
    strip,
)

TOKENIZER = trained_tokenizer()


@pytest.fixture(scope="module")
def captioner():
    return small_captioner(TOKENIZER.vocab_size, spread=0.4, end_of_text=TOKENIZER.eos_token_id, image_size=32)


@pytest.fixture
def drawn(monkeypatch):
    """What `strip` was given: the photograph and the words."""
    calls = []
    monkeypatch.setattr(strips, "strip", lambda *given: calls.append(given) or Image.new("RGB", (1, 1)))
    return calls


def test_a_words_map_is_the_mean_of_its_tokens_and_eos_has_its_own(captioner, drawn):
    ids = TOKENIZER.encode(["two zebras, here"])[0][1:-1]
    (pixels,) = random_pictures(1, 32)
    draw_heat_maps(captioner, TOKENIZER, pixels, ids, layers=[1])
    ((photograph, words, _),) = drawn
    maps = cross_attention(captioner, pixels[None], [*ids, TOKENIZER.eos_token_id], [1]).numpy()
    assert [word.text for word in words] == ["two", "zebras,", "here", "(end)"]
    assert len(ids) > 3, "a word of several tokens is needed"
    places = [places for _, places in TOKENIZER.words(ids)]
    for word, its_places in zip(words, [*places, [len(ids)]], strict=True):
        np.testing.assert_allclose(word.heat, maps[its_places].mean(0), rtol=1e-6)
    assert np.array_equal(np.asarray(photograph), pixels.permute(1, 2, 0).numpy())


def test_a_caption_that_was_cut_off_has_no_end(captioner, drawn):
    ids = TOKENIZER.encode(["a man"])[0][1:-1]
    draw_heat_maps(captioner, TOKENIZER, random_pictures(1, 32)[0], ids, ended=False)
    assert [word.text for word in drawn[0][1]] == ["a", "man"]


def test_a_photograph_is_drawn_on_at_its_own_shape(captioner):
    ids = TOKENIZER.encode(["a man"])[0][1:-1]
    strip = draw_heat_maps(
        captioner, TOKENIZER, random_pictures(1, 32)[0], ids, seen=Image.new("RGB", (90, 30)), panel=60
    )
    assert strip.size == (4 * (60 + 12) + 12, 20 + 30 + 12)


def test_a_caption_of_no_words_shows_the_photograph(captioner):
    assert draw_heat_maps(captioner, TOKENIZER, random_pictures(1, 32)[0], [], ended=False).size == (224, 242)
    assert draw_heat_maps(captioner, TOKENIZER, random_pictures(1, 32)[0], []).size == (436, 242)


def test_layers_are_a_number_a_list_or_all(captioner):
    assert [checked_layers(wanted, captioner) for wanted in (None, 1, [0, 1])] == [None, [1], [0, 1]]


@pytest.mark.parametrize("wanted", [2, -1, [0, 2], [], "last", True, 0.5])
def test_a_layer_that_does_not_exist_is_refused(captioner, wanted):
    with pytest.raises(UserError, match=r"^heat_maps_layers=.* must name layers of this model's decoder, 0 to 1; null"):
        checked_layers(wanted, captioner)


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
    assert seen_box(size, picture_format) == expected


def test_a_photograph_made_small_while_it_is_read_is_drawn_the_same():
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    photograph, words = Image.fromarray(noise), [Word("a", one_hot(0, 0))]
    seen = seen_part(photograph, PictureFormat((224, 224), resize_shortest=224))
    assert max(seen.size) == PANEL
    whole = photograph.crop(seen_box(photograph.size, PictureFormat((224, 224), resize_shortest=224)))
    assert np.array_equal(np.asarray(strip(seen, words)), np.asarray(strip(whole, words)))
