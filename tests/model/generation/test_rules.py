"""Penalties, bans, ends and prefixes make the captions that transformers' `generate` makes, in every decoding."""

import dataclasses
from typing import Any

import pytest
import torch
from support import random_pictures, randomise, small_captioner
from torch import Tensor
from transformers import MinPLogitsWarper

from captioning.data.batch import Row, pack
from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Beam, Decoding, Greedy, Sampling, generate, in_tokens
from captioning.model.generation.rules import Ruler

VOCABULARY, END, LIMIT, PICTURES = 40, 39, 12, 48
BEAM = Beam(LIMIT, 4, 1.0, False, 0, 0, 1)
SAMPLING = Sampling(LIMIT, 1.0, None, 1.0, seed=3)

RULES: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.4},
    "reward": {"repetition_penalty": 0.8},
    "n-grams": {"no_repeat_ngram_size": 2},
    "banned": {"banned_token_ids": ((3,), (7, 12), (1, 2, 3), (20, 4), (END,), (30,))},
    "ends": {"eos_token_ids": (5, 11, 17)},
    "prefix": {"prefix_token_ids": (8, 21, 8)},
    "all": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "banned_token_ids": ((3,), (8, 21), (21, 30)),
        "eos_token_ids": (5, 11),
        "prefix_token_ids": (8, 21),
    },
}


def lively_captioner(seed: int = 0) -> ImageCaptioner:
    """Captions differ from picture to picture, and end at all lengths."""
    captioner = small_captioner(VOCABULARY, end_of_text=END)
    randomise(captioner, 0.4, seed)
    with torch.no_grad():
        captioner.network.decoder.transformer.wte.weight[END] *= 3
    return captioner


def ours(captioner: ImageCaptioner, pictures: Tensor, decoding: Decoding, static: bool = False) -> list[list[int]]:
    captions = generate(captioner, pictures, decoding, static=static)
    return [one.token_ids for caption in captions for one in caption.alternatives or (caption,)]


@torch.no_grad()
def librarys(captioner: ImageCaptioner, pictures: Tensor, decoding: Greedy | Beam) -> list[list[int]]:
    """What `VisionEncoderDecoderModel.generate` says to the same rules, its prefix behind BOS, cut at an EOS."""
    ends = [END, *decoding.eos_token_ids]
    settings: dict[str, Any] = {"eos_token_id": ends, "max_new_tokens": LIMIT}
    settings |= {"repetition_penalty": decoding.repetition_penalty, "pad_token_id": END, "do_sample": False}
    settings["no_repeat_ngram_size"] = decoding.no_repeat_ngram_size
    if decoding.banned_token_ids:
        settings["bad_words_ids"] = [list(ids) for ids in decoding.banned_token_ids]
    if isinstance(decoding, Beam):
        names = ("num_beams", "length_penalty", "early_stopping", "min_new_tokens")
        settings |= {name: getattr(decoding, name) for name in names} | {"num_return_sequences": decoding.n_best}
    start = torch.tensor([[END, *decoding.prefix_token_ids]]).expand(len(pictures), -1)
    rows = captioner.network.generate(
        pixel_values=pictures.float() / 127.5 - 1, decoder_input_ids=start, **settings
    ).tolist()
    said = [row[1:] for row in rows]
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in said]


DECODINGS = {
    "greedy": Greedy(LIMIT),
    "beams": BEAM,
    "n best": dataclasses.replace(BEAM, n_best=3, length_penalty=0.5, min_new_tokens=3),
    "never": dataclasses.replace(BEAM, early_stopping="never", length_penalty=2.0),
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS)
def test_captions_are_those_of_the_librarys_generate(decoding, rules):
    decoding, changed = dataclasses.replace(decoding, **rules), 0
    for seed in (0, 1):
        captioner, pictures = lively_captioner(seed), random_pictures(PICTURES)
        captions = ours(captioner, pictures, decoding)
        assert captions == librarys(captioner, pictures, decoding)
        assert captions == ours(captioner, pictures, decoding, static=True), "as CUDA graphs make them"
        plain = dataclasses.replace(decoding, **{name: getattr(Greedy(1), name) for name in rules})
        changed += captions != ours(captioner, pictures, plain)
    assert changed, "the rule has an effect"


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_a_draw_among_one_token_is_greedy_by_the_same_rules(rules):
    captioner, pictures = lively_captioner(), random_pictures(16)
    greedy = ours(captioner, pictures, Greedy(LIMIT, **rules))
    assert ours(captioner, pictures, dataclasses.replace(SAMPLING, top_k=1, **rules)) == greedy
    assert ours(captioner, pictures, dataclasses.replace(SAMPLING, min_p=1.0, **rules)) == greedy


@pytest.mark.parametrize("min_p", [1e-3, 0.05, 0.3, 0.999])
def test_the_least_part_of_the_likeliest_is_the_librarys(min_p):
    logits = 1.5 * torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    kept = dataclasses.replace(SAMPLING, min_p=min_p).scores(logits).isfinite()
    assert torch.equal(kept, MinPLogitsWarper(min_p)(None, logits).isfinite()) and not kept.all()


def test_several_captions_of_a_picture_are_drawn_and_the_first_is_that_of_one_alone():
    captioner, pictures = lively_captioner(), random_pictures(12)
    several = dataclasses.replace(SAMPLING, n_best=4, temperature=2.0)
    captions = generate(captioner, pictures, several)
    assert all(len(one.alternatives) == 4 and one.alternatives[0].token_ids == one.token_ids for one in captions)
    assert sum(len({tuple(one.token_ids) for one in caption.alternatives}) for caption in captions) > 40
    alone = generate(captioner, pictures, dataclasses.replace(several, n_best=1))
    assert [one.token_ids for one in alone] == [one.token_ids for one in captions]
    assert ours(captioner, pictures, several, static=True) == ours(captioner, pictures, several)
    halves = generate(captioner, pictures[:5], several) + generate(captioner, pictures[5:], several, range(5, 12))
    assert [one.token_ids for c in halves for one in c.alternatives] == ours(captioner, pictures, several)


@pytest.mark.parametrize("decoding", [Greedy(LIMIT), BEAM, SAMPLING], ids=["greedy", "beams", "sampling"])
def test_log_probabilities_are_the_models_own_of_what_follows_the_prefix(decoding):
    captioner, pictures, prefix = lively_captioner(), random_pictures(6), (8, 21)
    decoding = dataclasses.replace(decoding, repetition_penalty=1.5, prefix_token_ids=prefix)
    for picture, caption in zip(pictures, generate(captioner, pictures, decoding), strict=True):
        ended = len(caption.token_ids) < LIMIT + len(prefix)
        nats = []
        for ids in ([END, *caption.token_ids, *[END] * ended], [END, *prefix]):
            with torch.no_grad():
                nats.append(captioner.loss(pack([Row(0, picture, [torch.tensor(ids).numpy()])])).nats.item())
        count = len(caption.token_ids) + ended - len(prefix)
        assert caption.token_ids[:2] == list(prefix)
        assert caption.log_probability == pytest.approx((nats[1] - nats[0]) / count, abs=1e-4)


def test_texts_become_tokens_and_what_cannot_be_meant_is_refused():
    words = {"A": 1, " A": 2, "dog": 3, " dog": 4, "a b": 5}

    def encode(texts):
        return [[END, *([words[text]] if text in words else [6, END, 7]), END] for text in texts]

    made = in_tokens(Greedy(LIMIT, banned_words=["dog"], prefix="a b"), encode, VOCABULARY)
    assert (made.banned_token_ids, made.prefix_token_ids) == (((3,), (4,)), (5,))
    for changed, said in (
        ({"prefix": "x"}, r"decoding\.prefix='x' has a token at which a caption ends"),
        ({"eos_token_ids": [40]}, r"decoding\.eos_token_ids has 40, and this model's tokens end at 39"),
    ):
        with pytest.raises(UserError, match=said):
            in_tokens(Greedy(LIMIT, **changed), encode, VOCABULARY)
    long = Greedy(40, prefix_token_ids=tuple(range(10)))
    with pytest.raises(UserError, match=r"prefix has 10 tokens, which with decoding\.max_new_tokens=40 is more than"):
        generate(lively_captioner(), random_pictures(1), long)


def test_a_banned_word_is_not_seen_in_tokens_that_are_not_there_yet():
    ruler = Ruler(Greedy(4, banned_token_ids=((8, 8, 3),)), END, END, torch.device("cpu"))
    tokens = torch.tensor([[[8, 8, END, END]]])
    for step, banned in ((1, False), (2, True), (3, False)):
        scores = ruler.apply(torch.zeros(1, 1, VOCABULARY), tokens, torch.tensor([step]))
        assert bool(scores[0, 0, 3].isinf()) == banned
