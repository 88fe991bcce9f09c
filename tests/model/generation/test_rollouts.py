"""Rollouts are draws from the model's own distribution, all of a picture from its one encoding."""

from collections import Counter

import pytest
import torch
from support import random_pictures, small_captioner
from test_generation import END, LIMIT, VOCABULARY, log_probability_afresh

from captioning.model.generation import Rollouts, generate

COUNT = 6


@pytest.fixture(scope="module")
def captioner():
    return small_captioner(VOCABULARY, spread=0.5, end_of_text=END)


def rollouts(captioner, pictures, seed=1, count=COUNT, limit=LIMIT):
    return [caption.alternatives for caption in generate(captioner, pictures, Rollouts(limit, count, seed))]


def test_each_caption_sees_its_own_past_alone(captioner):
    """Their log-probabilities are those of a pass over each caption by itself, so no other caption was attended to."""
    pictures = random_pictures(16)
    drawn = rollouts(captioner, pictures)
    assert all(len(captions) == COUNT for captions in drawn)
    lengths = Counter(len(caption.token_ids) for captions in drawn for caption in captions)
    assert len(lengths) > 4 and lengths[LIMIT] > 0, "some end before the limit, at different lengths, and some do not"
    for picture, captions in zip(pictures, drawn, strict=True):
        for caption in captions:
            afresh = log_probability_afresh(captioner, picture, caption, LIMIT)
            assert caption.log_probability == pytest.approx(afresh, abs=1e-4)


def test_a_pictures_captions_differ_and_the_seed_decides_them(captioner):
    pictures = random_pictures(8)
    first, again, other = (rollouts(captioner, pictures, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert all(len({tuple(caption.token_ids) for caption in captions}) > 1 for captions in first)


def test_tokens_follow_the_models_probabilities(captioner):
    picture = random_pictures(1)
    with torch.no_grad():
        encoded = captioner.encode(picture)
        logits = captioner.network.decoder(input_ids=torch.tensor([[END]]), encoder_hidden_states=encoded).logits[0, -1]
    expected = 4000 * logits.softmax(-1)
    (captions,) = rollouts(captioner, picture, count=4000, limit=1)
    counts = Counter(caption.token_ids[0] if caption.token_ids else END for caption in captions)
    common = [token for token in range(VOCABULARY) if expected[token] >= 5]
    assert len(common) > 5
    chi_square = sum((counts[t] - expected[t].item()) ** 2 / expected[t].item() for t in common)
    assert chi_square < 73.4  # at 40 degrees of freedom, p = 0.001


def test_the_picture_is_encoded_once_and_its_keys_are_projected_once():
    captioner, encoded, projected = small_captioner(VOCABULARY, spread=0.5, end_of_text=END), [], []
    captioner.network.encoder.register_forward_hook(lambda *_: encoded.append(1))
    attention = captioner.network.decoder.transformer.h[0].crossattention
    attention.c_attn.register_forward_hook(lambda _, args, out: projected.append(len(args[0])))
    rollouts(captioner, random_pictures(4))
    assert len(encoded) == 1 and projected == [4]
