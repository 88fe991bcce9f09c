"""Beam search finds the captions that transformers' `generate` finds, with one set of keys for each picture."""

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from support import Waits, random_pictures, randomise, small_captioner
from torch import Tensor

from captioning.data.batch import Row, pack
from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Beam, Greedy, generate, generate_from
from captioning.model.generation.rules import Rules

VOCABULARY, END, LIMIT, PICTURES = 40, 39, 12, 64
USUAL = Beam(
    max_new_tokens=LIMIT,
    num_beams=5,
    length_penalty=1.0,
    early_stopping=False,
    no_repeat_ngram_size=0,
    min_new_tokens=0,
    n_best=1,
)


def lively_captioner(seed: int = 0) -> ImageCaptioner:
    """Captions differ from picture to picture, and end at all lengths."""
    captioner = small_captioner(VOCABULARY, end_of_text=END)
    randomise(captioner, 0.4, seed)
    with torch.no_grad():  # a step hears much more or much less of EOS than of other tokens
        captioner.network.decoder.transformer.wte.weight[END] *= 3
    return captioner


@pytest.fixture(scope="module")
def captioner() -> ImageCaptioner:
    return lively_captioner()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return random_pictures(PICTURES)


def beam(**changed) -> Beam:
    return dataclasses.replace(USUAL, **changed)


def found(captioner: ImageCaptioner, pictures: Tensor, decoding: Beam) -> list[list[int]]:
    """The token ids of all captions, each picture's best first."""
    captions = generate(captioner, pictures, decoding)
    return [one.token_ids for caption in captions for one in caption.alternatives or (caption,)]


@torch.no_grad()
def library_captions(captioner: ImageCaptioner, pictures: Tensor, decoding: Beam) -> list[list[int]]:
    """What `VisionEncoderDecoderModel.generate` says to the same settings, cut at EOS."""
    own = {field.name for field in dataclasses.fields(Rules)} | {"n_best"}
    settings = {key: value for key, value in dataclasses.asdict(decoding).items() if key not in own}
    if decoding.num_beams == 1:  # the library is greedy then, and warns of settings of beams
        settings = {key: value for key, value in settings.items() if key not in ("length_penalty", "early_stopping")}
    rows = captioner.network.generate(
        pixel_values=pictures.float() / 127.5 - 1,
        do_sample=False,
        num_return_sequences=decoding.n_best,
        **settings,
    )
    said = [row[1:] for row in rows.tolist()]  # BOS comes first
    return [row[: row.index(END)] if END in row else row for row in said]


# Every penalty meets every way to stop with every number of beams; the bans and the weights take turns.
GRID = list(itertools.product((1, 3, 5), (0.0, 1.0, 2.0), (True, False, "never")))
TURNS = [(*combination, (0, 2, 3)[i % 4 % 3], (0, 4)[i % 5 % 2], i % 5) for i, combination in enumerate(GRID)]


@pytest.mark.parametrize(("num_beams", "length_penalty", "early_stopping", "ngram", "least", "seed"), TURNS)
def test_captions_are_those_of_the_librarys_generate(
    pictures, num_beams, length_penalty, early_stopping, ngram, least, seed
):
    decoding = beam(
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        no_repeat_ngram_size=ngram,
        min_new_tokens=least,
    )
    captioner = lively_captioner(seed)
    captions = found(captioner, pictures, decoding)
    assert len(set(map(tuple, captions))) > 3, "the pictures matter"
    assert captions == library_captions(captioner, pictures, decoding)


def test_the_compared_captions_end_at_many_lengths(pictures):
    lengths = Counter(len(one) for seed in range(4) for one in found(lively_captioner(seed), pictures, USUAL))
    assert len(lengths) > 8 and lengths[LIMIT] < 3 * PICTURES


@pytest.mark.parametrize("limit", [1, 2, 47])
def test_captions_are_the_librarys_at_any_limit(captioner, pictures, limit):
    decoding = beam(max_new_tokens=limit, num_beams=3)
    assert found(captioner, pictures[:16], decoding) == library_captions(captioner, pictures[:16], decoding)


@pytest.mark.parametrize("changed", [{}, {"length_penalty": -1.0, "no_repeat_ngram_size": 2}])
def test_the_n_best_are_the_librarys_in_its_order(captioner, pictures, changed):
    decoding = beam(n_best=4, **changed)
    captions = found(captioner, pictures, decoding)
    assert len(captions) == 4 * PICTURES
    assert captions == library_captions(captioner, pictures, decoding)


def test_log_probabilities_of_all_alternatives_are_those_of_a_fresh_pass(captioner, pictures):
    """Whatever the penalty and the bans: they choose, but are no part of what the model thinks."""
    decoding = beam(n_best=3, length_penalty=0.5, no_repeat_ngram_size=2, min_new_tokens=2)
    for picture, caption in zip(pictures[:24], generate(captioner, pictures[:24], decoding), strict=True):
        assert caption.alternatives[0] == caption._replace(alternatives=())
        for one in caption.alternatives:
            ended = len(one.token_ids) < LIMIT
            ids = torch.tensor([END, *one.token_ids, *([END] if ended else [])])
            with torch.no_grad():
                nats, tokens = captioner.loss(pack([Row(0, picture, [ids.numpy()])]))
            assert one.log_probability == pytest.approx(-(nats / tokens).item(), abs=1e-4)


def test_more_beams_find_likelier_captions(captioner, pictures):
    def total(decoding):
        captions = generate(captioner, pictures, decoding)
        return sum(one.log_probability * min(len(one.token_ids) + 1, LIMIT) for one in captions)

    sums = beam(length_penalty=0.0, early_stopping="never")
    assert total(dataclasses.replace(sums, num_beams=10)) > total(sums) > total(Greedy(LIMIT))


def test_each_picture_is_encoded_once_and_its_keys_are_projected_once_for_all_beams(pictures):
    captioner, encoded, projected, fed = lively_captioner(), [], [], []
    captioner.network.encoder.register_forward_hook(lambda _, args, out: encoded.append(out[0].shape[0]))
    block = captioner.network.decoder.transformer.h[0]
    block.register_forward_hook(lambda _, args, out: fed.append(args[0].shape[1]))
    block.crossattention.c_attn.register_forward_hook(lambda _, args, out: projected.append(args[0].shape[0]))
    generate(captioner, pictures, USUAL)
    assert encoded == projected == [PICTURES]
    assert fed == [1] + [5] * (LIMIT - 1), "BOS once for all beams, then a token for each"


def test_pictures_whose_search_has_ended_leave_the_batch(captioner, pictures):
    decoding, held = beam(early_stopping=True), []
    block = captioner.network.decoder.transformer.h[0]
    hook = block.register_forward_hook(lambda _, args, out: held.append(len(args[0])))
    together = generate(captioner, pictures, decoding)
    hook.remove()
    assert held[0] == PICTURES and held[-1] < 0.75 * PICTURES
    alone = [generate(captioner, picture[None], decoding)[0] for picture in pictures[:24]]
    assert [one.token_ids for one in together[:24]] == [one.token_ids for one in alone]


def test_a_step_waits_once_for_the_device_and_searches_that_end_together_are_fetched_together(monkeypatch, captioner):
    attended = captioner.encode(random_pictures(32))
    with Waits(monkeypatch) as waits:
        generate_from(captioner, attended, beam(early_stopping=True, no_repeat_ngram_size=2, min_new_tokens=2))
    leaves = 6  # with a quarter at least of those that are left; of each, three fields are fetched
    assert (+waits.counts).keys() == {"tolist"}
    assert waits.counts["tolist"] <= LIMIT + 3 * leaves


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_occurs_twice_and_captions_still_end(captioner, pictures, size):
    def repeats(ids):
        ngrams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
        return len(ngrams) - len(set(ngrams))

    def captions(n):
        return found(captioner, pictures, beam(max_new_tokens=30, length_penalty=2.0, no_repeat_ngram_size=n))

    assert sum(map(repeats, captions(0))) > 0
    assert sum(map(repeats, captions(size))) == 0
    assert min(map(len, captions(size))) < 30  # BOS is EOS here; it is no word that could be repeated


def test_a_caption_has_at_least_min_new_tokens(captioner, pictures):
    def shortest(least):
        return min(map(len, found(captioner, pictures, beam(length_penalty=0.0, min_new_tokens=least))))

    assert shortest(0) < 5 and shortest(5) == 5 and shortest(LIMIT) == LIMIT


def test_what_this_models_vocabulary_does_not_allow_is_refused(captioner, pictures):
    with pytest.raises(UserError, match=r"decoding\.num_beams=21 is more than this model's vocabulary allows, 20"):
        generate(captioner, pictures[:1], beam(num_beams=21))
    with pytest.raises(UserError, match=r"no_repeat_ngram_size=1 and decoding\.min_new_tokens=47 leave no caption"):
        generate(captioner, pictures[:1], beam(max_new_tokens=47, no_repeat_ngram_size=1, min_new_tokens=47))
    with pytest.raises(UserError, match=r"decoding\.max_new_tokens=48 is more than this model's limit of 47"):
        generate(captioner, pictures[:1], beam(max_new_tokens=48))
