"""Greedy captions are the library's own; samples and rollouts follow the model's probabilities and their seed alone."""

from collections import Counter

import pytest
import torch
from support import random_pictures, randomise, small_captioner
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from captioning.data.batch import Row, pack
from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Caption, Greedy, Rollouts, Sampling, generate
from captioning.model.generation.sampling import PicturesNoise

VOCABULARY, END, LIMIT = 40, 39, 12
PICTURES = 64
COUNT = 6  # rollouts of a picture


def lively_captioner(**changed) -> ImageCaptioner:
    """Weights so large that captions differ from picture to picture, and some end before the limit."""
    return small_captioner(VOCABULARY, spread=0.5, end_of_text=END, **changed)


@pytest.fixture(scope="module")
def captioner() -> ImageCaptioner:
    return lively_captioner()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return random_pictures(PICTURES)


def sampling(**changed) -> Sampling:
    return Sampling(**{"max_new_tokens": LIMIT, "temperature": 1.0, "top_k": None, "top_p": 1.0, "seed": 1} | changed)


@torch.no_grad()
def library_captions(captioner: ImageCaptioner, pictures: Tensor, limit: int) -> list[list[int]]:
    """What `VisionEncoderDecoderModel.generate` says, cut at EOS."""
    pixel_values = pictures.float() / 127.5 - 1
    rows = captioner.network.generate(pixel_values=pixel_values, max_new_tokens=limit, do_sample=False, num_beams=1)
    said = [row[1:] for row in rows.tolist()]  # BOS comes first
    return [row[: row.index(END)] if END in row else row for row in said]


@torch.no_grad()
def log_probability_afresh(captioner: ImageCaptioner, picture: Tensor, caption: Caption, limit: int) -> float:
    """The mean log-probability of a caption's tokens (and EOS, if it got there) by one pass over the whole of it."""
    ended = len(caption.token_ids) < limit
    ids = torch.tensor([END, *caption.token_ids, *([END] if ended else [])])
    nats, tokens = captioner.loss(pack([Row(0, picture, [ids.numpy()])]))
    return -(nats / tokens).item()


@pytest.mark.parametrize("changed", [{}, {"encoder_width": 48}], ids=["same widths", "projected"])
def test_greedy_captions_are_those_of_the_librarys_generate(pictures, changed):
    captioner = lively_captioner(**changed)
    captions = [caption.token_ids for caption in generate(captioner, pictures, Greedy(LIMIT))]
    lengths = Counter(map(len, captions))
    assert len(set(map(tuple, captions))) > PICTURES / 2  # the pictures matter
    assert lengths[LIMIT] >= 5 and PICTURES - lengths[LIMIT] >= 5  # both kinds of end are met
    assert captions == library_captions(captioner, pictures, LIMIT)


@pytest.mark.parametrize("seed", range(1, 7))
def test_greedy_captions_are_the_librarys_for_any_weights(pictures, seed):
    captioner = lively_captioner()
    randomise(captioner, 0.4, seed=seed)
    captions = [caption.token_ids for caption in generate(captioner, pictures, Greedy(LIMIT))]
    assert captions == library_captions(captioner, pictures, LIMIT)


@pytest.mark.parametrize("limit", [1, 2, 47])
def test_greedy_captions_are_the_librarys_at_any_limit(captioner, pictures, limit):
    captions = [caption.token_ids for caption in generate(captioner, pictures[:16], Greedy(limit))]
    assert captions == library_captions(captioner, pictures[:16], limit)


@pytest.mark.parametrize("decoding", [Greedy(LIMIT), sampling(temperature=2.0, top_k=10)], ids=["greedy", "sampled"])
def test_log_probabilities_are_those_of_a_fresh_pass_over_the_caption(captioner, pictures, decoding):
    captions = generate(captioner, pictures, decoding)
    assert len({len(caption.token_ids) for caption in captions}) > 2
    for picture, caption in zip(pictures, captions, strict=True):
        afresh = log_probability_afresh(captioner, picture, caption, LIMIT)
        assert caption.log_probability == pytest.approx(afresh, abs=1e-4)


def test_each_picture_is_encoded_once_and_its_keys_are_projected_once(pictures):
    captioner, encoded, steps, projected = lively_captioner(), [], [], []
    captioner.network.encoder.register_forward_hook(lambda *_: encoded.append(1))
    block = captioner.network.decoder.transformer.h[0]
    block.register_forward_hook(lambda _, args, out: steps.append(args[0].shape[1]))
    block.crossattention.c_attn.register_forward_hook(lambda *_: projected.append(1))
    generate(captioner, pictures, Greedy(LIMIT))
    assert len(encoded) == len(projected) == 1
    assert steps == [1] * LIMIT  # one token a step: the past is cached


def test_decoding_stops_when_every_caption_has_ended(captioner, pictures):
    captions = generate(captioner, pictures, Greedy(LIMIT))
    short = pictures[[len(caption.token_ids) <= 3 for caption in captions]]
    assert len(short) > 0
    steps: list[int] = []
    hook = captioner.network.decoder.register_forward_hook(lambda *_: steps.append(1))
    generate(captioner, short, Greedy(LIMIT))
    hook.remove()
    assert len(steps) <= 4


@pytest.mark.parametrize("decoding", [Greedy(LIMIT), sampling()], ids=["greedy", "sampled"])
def test_ended_captions_leave_the_batch_and_change_no_other(pictures, decoding):
    captioner, held = lively_captioner(), []
    with torch.no_grad():  # many captions end
        captioner.network.decoder.transformer.wte.weight[END] *= 3
    block = captioner.network.decoder.transformer.h[0]
    hook = block.register_forward_hook(lambda _, args, out: held.append(len(args[0])))
    together = generate(captioner, pictures, decoding)
    hook.remove()
    going_on = [sum(len(one.token_ids) >= step for one in together) for step in range(LIMIT)]
    assert going_on[-1] < PICTURES / 2
    for here, needed in zip(held, going_on, strict=True):
        assert needed <= here <= needed / 0.75, "a few ended ones stay: a copy would cost more"
    alone = [generate(captioner, picture[None], decoding, [i])[0] for i, picture in enumerate(pictures)]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


def test_a_caption_that_ends_at_once_is_empty_and_finite():
    captioner = lively_captioner()
    with torch.no_grad():  # EOS everywhere: the last norm gives a constant that only EOS's embedding answers to
        gpt2 = captioner.network.decoder.transformer
        gpt2.ln_f.weight.zero_()
        gpt2.ln_f.bias.copy_(100 * gpt2.wte.weight[END])
    (caption,) = generate(captioner, random_pictures(1), Greedy(5))
    assert caption.token_ids == []
    assert caption.log_probability == pytest.approx(0, abs=1e-3)


def test_captions_do_not_depend_on_batch_mates(captioner, pictures):
    together = generate(captioner, pictures[:16], Greedy(LIMIT))
    alone = [generate(captioner, picture[None], Greedy(LIMIT))[0] for picture in pictures[:16]]
    assert [caption.token_ids for caption in together] == [caption.token_ids for caption in alone]


def sampled(captioner: ImageCaptioner, pictures: Tensor, batch_size: int, **changed) -> list[list[int]]:
    captions = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        captions += generate(captioner, batch, sampling(**changed), range(start, start + len(batch)))
    return [caption.token_ids for caption in captions]


def test_the_same_seed_gives_the_same_captions_with_any_batch_size(captioner, pictures):
    whole = sampled(captioner, pictures[:24], 24)
    for batch_size in (1, 5, 16):
        assert sampled(captioner, pictures[:24], batch_size) == whole


@pytest.mark.parametrize("other", [0, 2, 1 + 2**32, 2**70])
def test_another_seed_gives_other_captions(captioner, pictures, other):
    first, second = sampled(captioner, pictures, 64), sampled(captioner, pictures, 64, seed=other)
    assert sum(a == b for a, b in zip(first, second, strict=True)) < PICTURES / 2


def test_addresses_tell_equal_pictures_apart(captioner, pictures):
    copies = pictures[:1].expand(16, -1, -1, -1)
    assert len(set(map(tuple, sampled(captioner, copies, 16)))) > 8
    alike = generate(captioner, copies, sampling(), [5] * 16)
    assert len({tuple(caption.token_ids) for caption in alike}) == 1


def test_a_longer_limit_continues_the_same_caption(captioner, pictures):
    short, long = sampled(captioner, pictures, 64, max_new_tokens=4), sampled(captioner, pictures, 64)
    assert [caption[:4] for caption in long] == short


def test_a_vocabulary_of_near_ties_does_not_make_captions_depend_on_the_batch(pictures):
    """GPT-2 has 50,257 tokens, thousands of them as likely as each other to within the rounding of another batch."""
    captioner = small_captioner(50_257, end_of_text=50_256)
    whole = sampled(captioner, pictures[:8], 8)
    assert sampled(captioner, pictures[:8], 1) == whole
    assert sampled(captioner, pictures[:8], 3, top_p=0.9) == sampled(captioner, pictures[:8], 8, top_p=0.9)


def test_noise_is_gumbels_and_each_pictures_own():
    drawn, again = torch.empty(20, 1, 50_000), torch.empty(1, 1, 50_000)
    PicturesNoise(1, range(20))(drawn, range(20))
    gumbels = -drawn[:, 0].clamp(min=1e-30).log()
    assert gumbels.mean().item() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert gumbels.var().item() == pytest.approx(torch.pi**2 / 6, rel=0.01)
    assert torch.corrcoef(gumbels).fill_diagonal_(0).abs().max() < 0.03
    alone = PicturesNoise(1, [7])
    alone(again, [0])
    assert torch.equal(again[0], drawn[7])
    alone(again, [0])
    assert not torch.equal(again[0], drawn[7]), "another step"


def test_sampled_tokens_follow_the_models_probabilities(captioner, pictures):
    copies, temperature = pictures[:1].expand(4000, -1, -1, -1), 3.0
    with torch.no_grad():
        encoded = captioner.encode(pictures[:1])
        logits = captioner.network.decoder(input_ids=torch.tensor([[END]]), encoder_hidden_states=encoded).logits[0, -1]
    expected = 4000 * (logits / temperature).softmax(-1)
    captions = generate(captioner, copies, sampling(max_new_tokens=1, temperature=temperature))
    counts = Counter(caption.token_ids[0] if caption.token_ids else END for caption in captions)
    common = [token for token in range(VOCABULARY) if expected[token] >= 5]
    rest = sum(counts[t] for t in range(VOCABULARY) if t not in common), 4000 - sum(expected[t].item() for t in common)
    cells = [(counts[t], expected[t].item()) for t in common] + [(rest[0], max(rest[1], 1e-9))] * (rest[1] > 5)
    assert len(cells) > 10
    assert sum((seen - due) ** 2 / due for seen, due in cells) < 73.4  # chi-square at 40 degrees of freedom, p = 0.001


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [None, 1, 4, 10, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
def test_filters_and_temperature_are_the_librarys(temperature, top_k, top_p):
    for seed in range(5):
        logits = 1.5 * torch.randn(1, 10, generator=torch.Generator().manual_seed(seed))
        scores = TemperatureLogitsWarper(temperature)(None, logits)
        if top_k is not None:
            scores = TopKLogitsWarper(top_k)(None, scores)
        if top_p < 1:
            scores = TopPLogitsWarper(top_p)(None, scores)
        ours = sampling(temperature=temperature, top_k=top_k, top_p=top_p).scores(logits)
        torch.testing.assert_close(ours.softmax(-1), scores.softmax(-1), atol=1e-6, rtol=0)
        assert torch.equal(ours.isfinite(), scores.isfinite())


def test_the_lowest_temperature_is_greedy_and_finite():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    scores = sampling(temperature=1e-38).scores(logits)
    assert torch.equal(scores.argmax(-1), logits.argmax(-1))
    assert not scores.isnan().any()


def test_sampling_among_one_token_is_greedy(captioner, pictures):
    greedy = [caption.token_ids for caption in generate(captioner, pictures, Greedy(LIMIT))]
    assert sampled(captioner, pictures, 64, top_k=1) == greedy
    assert sampled(captioner, pictures, 64, top_p=1e-9) == greedy
    assert sampled(captioner, pictures, 64, temperature=1e-4) == greedy


def test_more_tokens_than_the_model_has_positions_for_are_refused(captioner, pictures):
    with pytest.raises(UserError, match=r"decoding\.max_new_tokens=48 is more than this model's limit of 47"):
        generate(captioner, pictures[:1], Greedy(48))


def test_gradient_checkpointing_does_not_change_captions(captioner, pictures):
    checkpointed = lively_captioner(gradient_checkpointing=True)
    assert generate(checkpointed, pictures, Greedy(LIMIT)) == generate(captioner, pictures, Greedy(LIMIT))


def rollouts(captioner, pictures, seed=1, count=COUNT, limit=LIMIT):
    return [caption.alternatives for caption in generate(captioner, pictures, Rollouts(limit, count, seed))]


def test_each_rollout_sees_its_own_past_alone(captioner):
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


def test_a_pictures_rollouts_differ_and_the_seed_decides_them(captioner):
    pictures = random_pictures(8)
    first, again, other = (rollouts(captioner, pictures, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert all(len({tuple(caption.token_ids) for caption in captions}) > 1 for captions in first)


def test_rollouts_tokens_follow_the_models_probabilities(captioner):
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


def test_the_picture_of_rollouts_is_encoded_once_and_its_keys_are_projected_once():
    captioner, encoded, projected = lively_captioner(), [], []
    captioner.network.encoder.register_forward_hook(lambda *_: encoded.append(1))
    attention = captioner.network.decoder.transformer.h[0].crossattention
    attention.c_attn.register_forward_hook(lambda _, args, out: projected.append(len(args[0])))
    rollouts(captioner, random_pictures(4))
    assert len(encoded) == 1 and projected == [4]
