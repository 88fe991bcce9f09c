"""The maps of cross-attention, against transformers' own."""

import pytest
import torch
from support import random_pictures, small_captioner

from captioning.model.attention import cross_attention, decoder_layers

CAPTION = [7, 3, 9, 9, 4, 0]  # ends with EOS


@pytest.fixture(scope="module")
def captioner():
    return small_captioner(12, spread=0.4, image_size=32)


def reference(captioner, pixels: torch.Tensor) -> torch.Tensor:
    """(L, heads, T, P) as transformers returns them for the whole network."""
    network = captioner.network
    network.set_attn_implementation("eager")
    values = (pixels.float() / 255 - captioner.pixel_mean) / captioner.pixel_std
    inputs = torch.tensor([[0, *CAPTION[:-1]]])
    with torch.no_grad():
        outputs = network(pixel_values=values, decoder_input_ids=inputs, output_attentions=True)
    network.set_attn_implementation("sdpa")
    return torch.cat(outputs.cross_attentions)


@pytest.mark.parametrize("layers", [None, [0], [1], [1, 0]])
def test_maps_are_transformers_own_weights_averaged(layers):
    captioner = small_captioner(12, spread=0.4, image_size=32)  # its own, for transformers' hooks stay in it
    pixels = random_pictures(1, 32)
    maps = cross_attention(captioner, pixels, CAPTION, layers)
    weights = reference(captioner, pixels)
    expected = weights[[0, 1] if layers is None else layers].mean((0, 1))  # (T, P)
    assert maps.shape == (6, 4, 4)
    torch.testing.assert_close(maps.flatten(1), expected[:, 1:], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(maps.sum((1, 2)), 1 - expected[:, 0], rtol=1e-5, atol=1e-6)  # CLS has the rest


def test_a_map_depends_on_the_tokens_before_and_on_no_later_one(captioner):
    pixels = random_pictures(1, 32)
    maps, changed = (cross_attention(captioner, pixels, [*CAPTION[:3], token, 4, 0]) for token in (9, 5))
    torch.testing.assert_close(changed[:4], maps[:4])
    assert (changed[4:] - maps[4:]).abs().max() > 1e-3


def test_rows_and_columns_lie_as_in_the_picture():
    """A decoder that attends to bright patches finds the one that is bright."""
    captioner = small_captioner(12, image_size=32, encoder_layers=1)
    encoder = captioner.network.encoder
    with torch.no_grad():
        for parameter in encoder.layers.parameters():
            parameter.zero_()
        encoder.embeddings.position_embeddings.zero_()
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[:, :, 8:16, 24:32] = 255
    maps = cross_attention(captioner, pixels, CAPTION)
    odd_one = (maps - maps.flatten(1).median(1).values[:, None, None]).abs().flatten(1).argmax(1)
    assert odd_one.tolist() == [1 * 4 + 3] * len(CAPTION)


def test_the_captioner_is_as_it_was_afterwards(captioner):
    def state():
        modules = list(captioner.modules())
        return captioner.network.decoder.config._attn_implementation, [len(m._forward_hooks) for m in modules]

    before = state()
    cross_attention(captioner, random_pictures(1, 32), CAPTION)
    assert state() == before and before[0] == "sdpa"
    with pytest.raises(IndexError):
        cross_attention(captioner, random_pictures(1, 32), [99, 7])  # no such token: the pass fails
    assert state() == before


def test_it_is_known_how_many_layers_there_are_to_choose_from(captioner):
    assert decoder_layers(captioner) == 2
