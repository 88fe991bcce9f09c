"""Cross-attention as pictures: whose words, whose layers."""

import numpy as np
import pytest
from PIL import Image
from support import random_pictures, small_captioner, trained_tokenizer

from captioning.errors import UserError
from captioning.model.attention import cross_attention
from captioning.prediction import heat_maps
from captioning.prediction.heat_maps import checked_layers, draw_heat_maps

TOKENIZER = trained_tokenizer()


@pytest.fixture(scope="module")
def captioner():
    return small_captioner(TOKENIZER.vocab_size, spread=0.4, end_of_text=TOKENIZER.eos_token_id, image_size=32)


@pytest.fixture
def drawn(monkeypatch):
    """What `strip` was given: the photograph and the words."""
    calls = []
    monkeypatch.setattr(heat_maps, "strip", lambda *given: calls.append(given) or Image.new("RGB", (1, 1)))
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
        captioner, TOKENIZER, random_pictures(1, 32)[0], ids, photograph=Image.new("RGB", (90, 30)), panel=60
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
