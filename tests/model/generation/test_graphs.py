"""Steps over fixed buffers, as CUDA graphs replay them, make the captions of growing caches; here without a GPU."""

import copy

import pytest
import torch
from support import Waits, random_pictures, randomise, small_captioner
from torch import Tensor

from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Beam, Decoding, Greedy, Rollouts, Sampling, generate, generate_from, graphs

VOCABULARY, END, LIMIT, PICTURES = 40, 39, 11, 16
DECODINGS = {
    "greedy": Greedy(LIMIT),
    "sampling": Sampling(LIMIT, 1.3, None, 1.0, seed=5),
    "filtered": Sampling(LIMIT, 2.0, 10, 0.9, seed=6),
    "rollouts": Rollouts(1, 3, seed=1),
    "beams": Beam(LIMIT, 5, 1.0, False, 0, 0, 1),
    "stopped early": Beam(LIMIT, 3, 0.5, True, 2, 3, n_best=3),
    "never": Beam(LIMIT, 4, 2.0, "never", 3, 0, n_best=2),
    "one token": Beam(1, 4, 1.0, False, 0, 0, 1),
}


def lively_captioner(seed: int = 0, **changed) -> ImageCaptioner:
    """Captions differ from picture to picture, and end at all lengths."""
    captioner = small_captioner(VOCABULARY, end_of_text=END, **changed)
    randomise(captioner, 0.4, seed)
    with torch.no_grad():  # a step hears much more or much less of EOS than of other tokens
        captioner.network.decoder.transformer.wte.weight[END] *= 3
    return captioner


def tokens(captioner: ImageCaptioner, pictures: Tensor, decoding: Decoding, static: bool) -> list:
    captions = generate(captioner, pictures, decoding, range(7, 7 + len(pictures)), static=static)
    for caption in captions:
        assert caption.log_probability <= 0
    return [(caption.token_ids, [one.token_ids for one in caption.alternatives]) for caption in captions]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS)
def test_captions_are_those_of_growing_caches(decoding, seed):
    captioner = lively_captioner(seed, **[{}, {"encoder_width": 48}, {"decoder_heads": 2}][seed])
    for count in (PICTURES, 3, PICTURES):  # batches that fit into the first one's buffers, and into parts of them
        pictures = random_pictures(count, seed=count)
        assert tokens(captioner, pictures, decoding, True) == tokens(captioner, pictures, decoding, False)


def test_log_probabilities_are_those_of_growing_caches_to_rounding():
    captioner, pictures = lively_captioner(), random_pictures(PICTURES)
    for decoding in (DECODINGS["filtered"], DECODINGS["never"]):
        both = zip(*(generate(captioner, pictures, decoding, static=static) for static in (True, False)), strict=True)
        assert all(a.log_probability == pytest.approx(b.log_probability, abs=1e-5) for a, b in both)


def sizes(captioner: ImageCaptioner, pictures: Tensor, decoding: Decoding) -> list[int]:
    """How many pictures each step had."""
    held: list[int] = []
    block = captioner.network.decoder.transformer.h[0]
    hook = block.register_forward_hook(lambda _, args, out: held.append(len(args[0])))
    generate(captioner, pictures, decoding, static=True)
    hook.remove()
    return held


def test_a_batch_shrinks_to_a_half_and_a_quarter_and_stops_when_all_have_ended():
    pictures, decoding, met = random_pictures(32), Greedy(20), set()
    for seed in (0, 8):
        captioner = lively_captioner(seed)
        lengths = [len(caption.token_ids) + 1 for caption in generate(captioner, pictures, decoding)]
        held = sizes(captioner, pictures, decoding)
        for step, size in enumerate(held):
            looked = max(0, (step - 1) // 4 * 4)  # the steps after which it was looked at last
            assert size == next(least for least in (8, 16, 32) if least >= sum(length > looked for length in lengths))
        met |= set(held)
    assert met == {32, 16, 8} and len(held) == 17, "the last ends at 15: one step beyond the look after the 16th"


def test_a_smaller_batch_has_the_least_size_that_holds_it():
    captioner = lively_captioner()
    assert {count: sizes(captioner, random_pictures(count), Greedy(1)) for count in (10, 6, 5, 2, 10)} == {
        10: [10],
        6: [10],
        5: [5],
        2: [3],
    }


def test_the_host_waits_for_a_look_every_fourth_step_and_for_those_that_leave(monkeypatch):
    captioner = lively_captioner()
    attended = captioner.encode(random_pictures(32))
    generate_from(captioner, attended, DECODINGS["beams"], static=True)
    with Waits(monkeypatch) as waits:
        generate_from(captioner, attended, DECODINGS["beams"], static=True)
    looks, leaves = LIMIT // 4, 3
    assert (+waits.counts).keys() == {"tolist"}
    assert waits.counts["tolist"] <= looks + 3 * leaves


def test_buffers_are_kept_while_they_fit_and_made_anew_for_replaced_weights():
    captioner, pictures = lively_captioner(), random_pictures(6)

    def kept():
        generate(captioner, pictures, Sampling(LIMIT, 1.0, None, 1.0, seed=kept.calls), static=True)
        kept.calls += 1
        return graphs.kept[captioner]

    kept.calls = 0
    first = kept()
    assert kept() is first, "another seed"
    with torch.no_grad():
        captioner.network.decoder.transformer.ln_f.bias += 1.0
    assert kept() is first, "weights that changed in place"
    weight = captioner.network.decoder.transformer.ln_f.weight
    weight.data = weight.data.clone()
    assert (second := kept()) is not first, "another tensor"
    generate(captioner, random_pictures(7), Greedy(LIMIT), static=True)
    assert graphs.kept[captioner] is not second, "another decoding, and more pictures"


@pytest.mark.parametrize("half", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("decoding", [Greedy(LIMIT), DECODINGS["never"]], ids=["greedy", "beams"])
def test_captions_follow_weights_that_change_in_place(decoding, half):
    captioner, pictures = lively_captioner(), random_pictures(PICTURES)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        before, kept = tokens(captioner, pictures, decoding, True), graphs.kept[captioner]
        randomise(captioner, 0.4, seed=9)
        after = tokens(captioner, pictures, decoding, True)
        assert before != after == tokens(copy.deepcopy(captioner), pictures, decoding, True)
        assert graphs.kept[captioner] is kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_are_cast_once_give_autocasts_numbers_to_the_bit(dtype):
    captioner, pictures = lively_captioner(encoder_width=48), random_pictures(PICTURES)
    half = graphs.with_half_weights(captioner, dtype)
    linear = half.network.decoder.transformer.h[0].mlp.c_fc
    assert linear.weight.dtype == half.network.decoder.lm_head.weight.dtype == dtype
    embeddings = half.network.decoder.transformer.wte.weight
    assert embeddings is captioner.network.decoder.transformer.wte.weight, "tied to the head in the original alone"
    with torch.autocast("cpu", dtype):
        for decoding in (DECODINGS["greedy"], DECODINGS["never"]):
            assert generate(half, pictures, decoding) == generate(captioner, pictures, decoding)
            ours, theirs = (generate(one, pictures, decoding, static=True) for one in (half, captioner))
            assert ours == theirs
        assert graphs.kept[half]._weights == ([], []), "nothing is left to be cast"


def test_what_a_picture_left_behind_reaches_no_later_one():
    captioner, pictures = lively_captioner(), random_pictures(4)
    wanted = tokens(captioner, pictures, Greedy(LIMIT), True)
    attended = captioner.encode(pictures)
    generate_from(captioner, attended * torch.inf, Greedy(LIMIT), static=True)
    assert tokens(captioner, pictures, Greedy(LIMIT), True) == wanted


def test_where_no_graph_can_be_recorded_captions_are_made_step_by_step_which_is_said_once(monkeypatch, caplog):
    captioner, pictures = lively_captioner(), random_pictures(4)

    def refuse(decoder, decoding):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand a long advice")

    monkeypatch.setattr(graphs.StaticDecoder, "record", refuse)
    for _ in range(2):
        assert tokens(captioner, pictures, Greedy(LIMIT), True) == tokens(captioner, pictures, Greedy(LIMIT), False)
    assert [record.message for record in caplog.records] == [
        "captions are made step by step, which is slower: no CUDA graph could be recorded (CUDA error: operation not "
        "permitted when stream is capturing)"
    ]


def test_no_mask_reaches_the_cross_attention_while_a_graph_is_recorded(monkeypatch):
    captioner = small_captioner(97)
    attended, masks = captioner.encode(random_pictures(2)).detach(), []
    usual = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **how):
        masks.extend([attn_mask] if key.shape[2] == attended.shape[1] else [])
        return usual(query, key, value, attn_mask=attn_mask, **how)

    def useless(**_):  # as transformers 5.17 makes it then
        return torch.ones(2, 1, 1, attended.shape[1], dtype=torch.bool)

    monkeypatch.setattr("transformers.models.gpt2.modeling_gpt2.create_bidirectional_mask", useless)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    decoder = captioner.network.decoder
    ids = torch.zeros(2, 1, dtype=torch.long)
    with torch.inference_mode():
        decoder(input_ids=ids, encoder_hidden_states=attended)
        assert masks and all(mask is not None for mask in masks)
        masks.clear()
        with graphs.all_patches_seen(decoder):
            decoder(input_ids=ids, encoder_hidden_states=attended)
        assert masks and all(mask is None for mask in masks)
        decoder(input_ids=ids, encoder_hidden_states=attended)
    assert masks[-1] is not None, "the hooks have gone"
