"""Captions to ids and back, from BOS to EOS, with a tokenizer of our own and with GPT-2's."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CAPTIONS, saved_model, trained_tokenizer
from tokenizers import Tokenizer, models

from captioning.data.tokenizer import BYTES, END_OF_TEXT, CaptionTokenizer
from captioning.errors import UserError

OURS = trained_tokenizer()


@pytest.fixture(scope="session")
def gpt2(shared_data) -> CaptionTokenizer:
    return CaptionTokenizer.from_pretrained(str(shared_data / "gpt2-tokenizer"))


@pytest.fixture(scope="session")
def real_captions(shared_data) -> list[str]:
    read = json.loads((shared_data / "coco-full-text" / "captions_val2017.json").read_text())
    return [annotation["caption"] for annotation in read["annotations"]]


def saved_by_halves(folder: Path, vocabulary: str | None, merges: str | None) -> str:
    """The folder with a GPT-2 tokenizer's two files of these contents."""
    for name, text in (("vocab.json", vocabulary), ("merges.txt", merges)):
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


def our_files() -> tuple[str, str]:
    """`vocab.json` and `merges.txt` of a tokenizer with more merges than it could lack unnoticed."""
    words = [f"{a}{b}{c}" for a in "abcdefgh" for b in "aeiou" for c in "lmnrst"]
    model = json.loads(CaptionTokenizer.train(words, vocab_size=700).to_json())["model"]
    assert len(model["merges"]) > 120
    return json.dumps(model["vocab"]), "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n"


def test_a_caption_lies_between_bos_and_eos():
    (ids,) = OURS.encode(["A cat sleeps on a chair."])
    assert ids[0] == OURS.bos_token_id and ids[-1] == OURS.eos_token_id
    assert not {OURS.bos_token_id, OURS.eos_token_id} & set(ids[1:-1])
    assert OURS.encode([""]) == [[OURS.bos_token_id, OURS.eos_token_id]]
    assert OURS.encode([]) == []


@given(st.text())
def test_any_text_comes_back_but_for_surrounding_blanks(text):
    assert OURS.decode(OURS.encode([text])[0]) == text.strip()


@given(st.lists(st.text(max_size=8), max_size=5))
def test_captions_encoded_together_are_those_encoded_alone(texts):
    assert OURS.encode(texts) == [OURS.encode([text])[0] for text in texts]


@pytest.mark.parametrize("text", [END_OF_TEXT, f"a {END_OF_TEXT} b", f"{END_OF_TEXT}{END_OF_TEXT}"])
def test_a_caption_that_spells_out_the_end_is_text(text):
    for tokenizer in (OURS, CaptionTokenizer.from_json(OURS.to_json())):
        (ids,) = tokenizer.encode([text])
        assert tokenizer.eos_token_id not in ids[1:-1]
        assert tokenizer.decode(ids) == text


def test_tokenizer_json_is_taken_as_it_is_with_its_normalizer_and_its_own_ends(tmp_path):
    written = json.loads(OURS.to_json()) | {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    plain = CaptionTokenizer.from_pretrained(str(tmp_path))
    assert plain.encode(["A CAT sleeps"]) == plain.encode(["a cat sleeps"]) == OURS.encode(["a cat sleeps"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "a"}, "eos_token": "b"}))
    named = CaptionTokenizer.from_pretrained(str(tmp_path))
    (tmp_path / "tokenizer_config.json").unlink()
    ids = {"bos_token_id": named.bos_token_id, "eos_token_id": named.eos_token_id}
    (tmp_path / "config.json").write_text(json.dumps(ids))
    by_id = CaptionTokenizer.from_pretrained(str(tmp_path))
    for tokenizer in (named, by_id, CaptionTokenizer.from_json(by_id.to_json())):
        (caption,) = tokenizer.encode(["CAT"])
        assert (caption[0], caption[-1]) == tuple(json.loads(OURS.to_json())["model"]["vocab"][end] for end in "ab")
        assert tokenizer.decode(caption) == "cat"


def test_decoding_stops_at_the_first_end_and_skips_one_bos():
    cat, dog = (ids[1:-1] for ids in OURS.encode(["a cat", " and a dog"]))
    end = OURS.eos_token_id
    assert OURS.decode([*cat, end, *dog, end]) == "a cat"
    assert OURS.decode([OURS.bos_token_id, *cat, *dog]) == "a cat and a dog"
    assert OURS.decode([OURS.bos_token_id, end, *dog]) == ""
    assert OURS.decode([]) == ""


def test_a_tokenizer_comes_back_whole_from_json():
    again = CaptionTokenizer.from_json(OURS.to_json())
    assert again.encode(CAPTIONS) == OURS.encode(CAPTIONS)
    assert (again.vocab_size, again.eos_token_id) == (OURS.vocab_size, OURS.eos_token_id)
    assert again.to_json() == OURS.to_json()


@pytest.fixture
def with_own_tokens(tmp_path) -> Path:
    return saved_model(tmp_path / "model", own_tokens=True)


def test_a_models_own_beginning_and_end_are_kept_in_the_text(with_own_tokens):
    ids = OURS.vocab_size, OURS.vocab_size + 1
    found = CaptionTokenizer.of_model(str(with_own_tokens), "checkpoint", bos_token_id=ids[0], eos_token_id=ids[1])
    for tokenizer in (found, CaptionTokenizer.from_json(found.to_json())):
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == ids
        (caption,) = tokenizer.encode(["a man </s>"])
        assert caption == [ids[0], *OURS.encode(["a man </s>"])[0][1:-1], ids[1]]
        padding = OURS.vocab_size + 2
        assert tokenizer.decode([*caption[:-1], padding, ids[1], padding]) == "a man </s>"


def test_a_models_tokenizer_may_be_two_files_without_a_word_on_their_kind(tmp_path):
    folder = saved_by_halves(tmp_path, *our_files())
    found = CaptionTokenizer.of_model(folder, "checkpoint", bos_token_id=0, eos_token_id=0)
    assert found.encode(["abel"]) == CaptionTokenizer.from_pretrained(folder).encode(["abel"])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("gone", r"has no tokenizer that can be read; put the model's own tokenizer\.json"),
        ("cut", r"has no tokenizer that can be read"),
        ("another end", r"ends captions with token 999, which its tokenizer of 304 does not have; put the model's own"),
    ],
)
def test_a_model_without_its_tokenizer_is_refused(with_own_tokens, damage, said):
    eos_token_id = 999 if damage == "another end" else 301
    if damage == "cut":
        (with_own_tokens / "tokenizer.json").write_text('{"version": ')
    elif damage == "gone":
        (with_own_tokens / "tokenizer.json").unlink()
        (with_own_tokens / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=rf"^checkpoint={with_own_tokens} {said}"):
        CaptionTokenizer.of_model(str(with_own_tokens), "checkpoint", bos_token_id=300, eos_token_id=eos_token_id)


def test_training_learns_words_and_keeps_to_the_vocabulary_asked_for():
    assert BYTES + 1 < OURS.vocab_size <= 300
    assert max(max(ids) for ids in OURS.encode(CAPTIONS)) < OURS.vocab_size
    assert len(OURS.encode(["children"])[0]) < len("children") + 2
    assert CaptionTokenizer.train([], vocab_size=300).decode(OURS.encode(["é"])[0]) != "", "every byte is a token"


def test_a_tokenizer_without_the_end_of_text_is_refused():
    with pytest.raises(UserError, match=r"names no EOS and has no <\|endoftext\|>; say eos_token"):
        CaptionTokenizer.from_json(Tokenizer(models.BPE()).to_str())


def test_a_folder_of_vocabulary_and_merges_is_a_tokenizer(tmp_path):
    tokenizer = CaptionTokenizer.from_pretrained(saved_by_halves(tmp_path, *our_files()))
    (ids,) = tokenizer.encode(["abel bemos"])
    assert len(ids) < len("abel bemos") and tokenizer.decode(ids) == "abel bemos"


def test_a_folder_of_tokenizer_json_is_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text(OURS.to_json(), encoding="utf-8")
    assert CaptionTokenizer.from_pretrained(str(tmp_path)).encode(CAPTIONS) == OURS.encode(CAPTIONS)


@pytest.mark.parametrize("damage", ["nothing", "no merges", "no vocabulary", "cut vocabulary", "cut line", "no table"])
def test_a_folder_without_a_whole_tokenizer_is_refused_by_name(tmp_path, damage):
    vocabulary, merges = our_files()
    files = {
        "nothing": (None, None),
        "no merges": (vocabulary, None),
        "no vocabulary": (None, merges),
        "cut vocabulary": (vocabulary[:2000], merges),
        "cut line": (vocabulary, merges[:601].rstrip() + " x"),
        "no table": ("[1, 2]", merges),
    }
    folder = saved_by_halves(tmp_path, *files[damage])
    with pytest.raises(UserError, match=rf"^data\.tokenizer={folder} is a folder without a readable.*holds .*GPT-2's"):
        CaptionTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 10])
def test_merges_cut_at_the_end_of_a_line_are_noticed(tmp_path, kept):
    vocabulary, merges = our_files()
    folder = saved_by_halves(tmp_path, vocabulary, "\n".join(merges.split("\n")[: kept + 1]) + "\n")
    with pytest.raises(UserError, match=rf"tokens and {kept} merges, so a part of merges\.txt is missing"):
        CaptionTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("where", ["tokenizer.json", "added_tokens.json", "vocab.json"])
def test_a_thousand_tokens_may_be_added(tmp_path, where):
    vocabulary, merges = our_files()
    ids = json.loads(vocabulary)
    added = {f"<loc_{i}>": len(ids) + i for i in range(1000)}
    if where == "vocab.json":  # reserved, but no token of its own
        saved_by_halves(tmp_path, json.dumps(ids | added), merges)
    elif where == "added_tokens.json":
        saved_by_halves(tmp_path, vocabulary, merges)
        (tmp_path / where).write_text(json.dumps(added))
    else:
        backend = Tokenizer.from_str(OURS.to_json())
        backend.add_tokens(list(added))
        backend.save(str(tmp_path / where))
    tokenizer = CaptionTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer.vocab_size == (OURS.vocab_size if where == "tokenizer.json" else len(ids)) + 1000
    assert tokenizer.added_tokens == (0 if where == "vocab.json" else 1000)
    (ids,) = tokenizer.encode(["a <loc_7> abal"])
    assert tokenizer.decode(ids) == "a <loc_7> abal"
    assert (tokenizer.added_tokens == 0) == (len(ids) > 10), "one token, where it was added"


def test_a_tokenizer_of_another_kind_is_refused_where_it_names_no_end(tmp_path):
    words = {"[UNK]": 0} | {f"word{i}": i + 1 for i in range(400)}
    (tmp_path / "tokenizer.json").write_text(Tokenizer(models.WordPiece(words, unk_token="[UNK]")).to_str())
    with pytest.raises(UserError, match="names no EOS"):
        CaptionTokenizer.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("name", ["nobody/no-such-tokenizer", "/nowhere/at/all"])
def test_a_name_that_cannot_be_fetched_is_refused_with_a_way_out(name):
    with pytest.raises(UserError, match=rf"data\.tokenizer={name} is no local folder and could not be fetched.*point"):
        CaptionTokenizer.from_pretrained(name)


@given(st.lists(st.text(), min_size=1, max_size=4).map(" ".join))
def test_words_hold_all_that_is_no_blank_and_each_token_once(text):
    ids = OURS.encode([text])[0][1:-1]
    words = OURS.words(ids)
    assert "".join("".join(word.split()) for word, _ in words) == "".join(OURS.decode(ids).split())
    places = [place for _, places in words for place in places]
    assert places == sorted(set(places)) and set(places) <= set(range(len(ids)))


def test_words_are_what_lies_between_blanks():
    ids = OURS.encode(["two zebras,  here\nand café."])[0][1:-1]
    assert [word for word, _ in OURS.words(ids)] == ["two", "zebras,", "here", "and", "café."]
    assert OURS.words([]) == []


def test_real_captions_get_the_ids_of_transformers_own_tokenizer(gpt2, real_captions, shared_data):
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer.from_pretrained(shared_data / "gpt2-tokenizer")
    captions = real_captions[::5]
    expected = [[50256, *ids, 50256] for ids in theirs(captions)["input_ids"]]
    assert gpt2.encode(captions) == expected
    assert gpt2.vocab_size == 50257


def test_real_captions_come_back(gpt2, real_captions):
    captions = real_captions[::5]
    assert [gpt2.decode(ids) for ids in gpt2.encode(captions)] == [caption.strip() for caption in captions]
    assert gpt2.decode(gpt2.encode([f"a {END_OF_TEXT}"])[0]) == f"a {END_OF_TEXT}"
