"""Trained captioners made ready to be trained on."""

import pytest
import torch
from support import random_pictures, small_captioner

from captioning.errors import UserError
from captioning.model.build import fine_tuned
from captioning.model.captioner import ImageCaptioner

BEFORE = small_captioner(40, encoder_width=48)


def tuned(**changed) -> ImageCaptioner:
    settings = {
        "image_size": None,
        "dropout": 0.2,
        "attention_dropout": 0.3,
        "gradient_checkpointing": False,
        "compile": False,
    }
    return fine_tuned(BEFORE, **settings | changed)


def test_the_weights_are_the_same_and_not_shared():
    after = tuned()
    saved = dict(BEFORE.network.named_parameters())
    assert saved.keys() == dict(after.network.named_parameters()).keys()
    for name, weight in after.network.named_parameters():
        assert torch.equal(weight, saved[name]) and weight.data_ptr() != saved[name].data_ptr(), name
    assert after.picture_format == BEFORE.picture_format


def test_dropout_is_the_one_asked_for():
    blocks = tuned().network.decoder.transformer.h
    assert {(b.attn.attn_dropout.p, b.crossattention.resid_dropout.p, b.mlp.dropout.p) for b in blocks} == {
        (0.3, 0.2, 0.2)
    }


def test_the_switches_are_heeded():
    encoder = tuned(gradient_checkpointing=True).network.encoder
    assert any(getattr(m, "gradient_checkpointing", False) for m in encoder.modules())


def test_larger_pictures_interpolate_the_position_embeddings():
    after = tuned(image_size=32).eval()
    assert after.picture_format.size == (32, 32)
    assert after.encode(random_pictures(2, size=32)).shape == (2, 17, 32)
    assert torch.equal(tuned(image_size=16).eval().encode(random_pictures(2)), BEFORE.encode(random_pictures(2)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image_size": 20}, "model.image_size=20 must be a multiple of the patch size 8"),
        ({"image_size": "big"}, "model.image_size=big must be a whole number"),
        ({"dropout": 1.5}, "model.dropout=1.5 must be a number from 0"),
    ],
)
def test_what_cannot_be_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        tuned(**settings)
