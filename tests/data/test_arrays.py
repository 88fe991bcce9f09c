"""All captions of a split as flat arrays: what goes in comes out, and workers share it."""

import io
import json
import logging
import os
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import trained_tokenizer

from captioning.data import rows as arrays
from captioning.data.rows import TokenArrays
from captioning.data.tokenizer import CaptionTokenizer

TOKENIZER = trained_tokenizer()
LONG = "Several people are waiting for the bus down a wet street"


def encoded(captions, max_tokens: int = 1000, **named) -> TokenArrays:
    return TokenArrays.encode(captions, TOKENIZER, max_tokens, **named)


def ids_of(tokens: TokenArrays) -> list[list[list[int]]]:
    return [[caption.tolist() for caption in tokens.captions_of(i)] for i in range(len(tokens))]


@given(st.lists(st.lists(st.text(max_size=12), max_size=3), max_size=4))
@settings(max_examples=50)
def test_what_goes_in_comes_out(captions):
    tokens = encoded(captions)
    assert ids_of(tokens) == [TOKENIZER.encode(of_picture) for of_picture in captions]
    assert len(tokens) == len(captions)
    assert tokens.captions_per_picture().tolist() == [len(of_picture) for of_picture in captions]
    assert tokens.caption_count == sum(map(len, captions))


def test_captions_tokenised_in_many_portions_keep_their_places(monkeypatch):
    captions = [[f"a man {i}", f"a cat {i}"] for i in range(10)]
    expected = ids_of(encoded(captions))
    monkeypatch.setattr(arrays, "CAPTIONS_AT_ONCE", 3)
    assert ids_of(encoded(captions)) == expected


class ManyTokens:
    """A tokenizer whose highest id is as high as ids go."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode(self, captions):
        return [[0, self.vocab_size - 1, 0] for _ in captions]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50257, np.uint16), (2**16, np.uint16), (2**16 + 1, np.int32)])
def test_ids_take_two_bytes_where_the_vocabulary_allows_it(vocab_size, dtype):
    tokens = TokenArrays.encode([["a"]], ManyTokens(vocab_size), 64)
    (ids,) = tokens.captions_of(0)
    assert ids.dtype == dtype and ids.tolist() == [0, vocab_size - 1, 0]


def test_a_longer_caption_is_cut_without_an_eos_and_counted_in_one_warning(caplog):
    (whole,) = TOKENIZER.encode([LONG])
    with caplog.at_level(logging.WARNING):
        tokens = encoded([[LONG, "a man"], [LONG]], max_tokens=6, name="train")
    assert ids_of(tokens) == [[whole[:7], TOKENIZER.encode(["a man"])[0]], [whole[:7]]]
    assert TOKENIZER.eos_token_id not in whole[1:7], "the model never learns to stop in mid-sentence"
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 train captions are longer than data.max_tokens=6 and were cut"
    ]


def test_a_caption_of_exactly_the_limit_is_whole(caplog):
    (whole,) = TOKENIZER.encode([LONG])
    assert ids_of(encoded([[LONG]], max_tokens=len(whole) - 1)) == [[whole]]
    assert not caplog.records


def test_a_worker_is_sent_handles_and_reads_the_same_memory():
    tokens = encoded([["a man on a horse"] * 2000])
    assert tokens.nbytes > 30_000
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(tokens)  # what a spawned worker is sent
    assert len(buffer.getvalue()) < 2000
    received = ForkingPickler.loads(buffer.getvalue())
    assert ids_of(received) == ids_of(tokens)
    received.captions_of(0)[0][:] = 7
    assert set(tokens.captions_of(0)[0].tolist()) == {7}, "what one of them writes, the other sees"


def test_a_forked_worker_reads_the_same_memory():
    tokens = encoded([["a man"]])
    if (child := os.fork()) == 0:
        tokens.captions_of(0)[0][:] = 7
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert set(tokens.captions_of(0)[0].tolist()) == {7}, "not copied on writing either"


def test_cocos_captions_take_the_memory_that_the_module_states(shared_data):
    tokenizer = CaptionTokenizer.from_pretrained(str(shared_data / "gpt2-tokenizer"))
    read = json.loads((shared_data / "coco-full-text" / "captions_val2017.json").read_text())
    captions: dict[int, list[str]] = {}
    for annotation in read["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(" ".join(annotation["caption"].split()))
    tokens = TokenArrays.encode(list(captions.values()), tokenizer, 64)
    lengths = [len(ids) for i in range(len(tokens)) for ids in tokens.captions_of(i)]
    assert len(lengths) == 25_014
    assert f"\n{np.mean(lengths):.2f} tokens each" in (arrays.__doc__ or "")
    megabytes = (591_753 * (2 * np.mean(lengths) + 8) + 118_287 * 8) / 1e6
    assert f"about {megabytes:.0f} MB" in (arrays.__doc__ or "")
    assert tokens.nbytes == pytest.approx(megabytes * 1e6 * 25_014 / 591_753, rel=0.01)
