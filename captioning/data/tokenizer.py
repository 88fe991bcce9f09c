"""Captions to token ids and back. This is the only place that knows BOS, EOS and where they go.

A caption becomes `<|endoftext|> caption <|endoftext|>`: the first is BOS, from which generation starts and the first
word is learned, the last is EOS, a target, so that the model learns to stop. GPT-2 has no padding token and needs
none: padding is known by position (see `CaptionBatch.caption_index`). Models from elsewhere may have other BOS and
EOS tokens; these are kept in the tokenizer's own text, as its template.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from captioning.errors import UserError
from captioning.hub import fetched_file, out_of_reach

END_OF_TEXT = "<|endoftext|>"
BLANKS = ("Ġ", "Ċ", "ĉ")  # how a byte-level BPE writes space, line feed and tab
BYTES = 256  # each is a token of every byte-level BPE
UNMERGED = 100  # tokens that a GPT-2 tokenizer may hold whole and in parts without a merge of these, such as <s>


class CaptionTokenizer:
    """A byte-level BPE (Radford et al. 2019) whose only special token is `<|endoftext|>`; or what `of_model` finds."""

    def __init__(self, backend: Tokenizer):
        ends = _ends(backend)
        if ends is None:
            raise UserError(
                f"the tokenizer names no EOS and has no {END_OF_TEXT}; say eos_token (and bos_token) in the "
                "tokenizer_config.json of data.tokenizer"
            )
        backend.encode_special_tokens = True  # a caption that spells out <|endoftext|> is text, not an end
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.bos_token_id, self.eos_token_id = ends

    @classmethod
    def from_pretrained(cls, name_or_folder: str) -> "CaptionTokenizer":
        """The tokenizer in a local folder (`tokenizer.json`, or GPT-2's `vocab.json` + `merges.txt`) or on the hub.

        BOS and EOS are those that its `tokenizer_config.json` names, or the `config.json` of the model beside it, or
        else `<|endoftext|>`.

        Raises:
            UserError: if it is neither in a folder of that name, nor in the local cache, nor to be fetched.
        """
        way_out = "point data.tokenizer to a folder that holds a tokenizer.json, or GPT-2's vocab.json and merges.txt"
        if Path(name_or_folder).is_dir():
            problem = "is a folder without a readable tokenizer.json, or vocab.json and merges.txt"
        else:
            problem = "is no local folder and could not be fetched from the hub"
        what = f"data.tokenizer={name_or_folder}"
        backend = _loaded(name_or_folder, _halves, BYTES, what, f"{what} {problem}; {way_out}", way_out)
        ends = _named_ends(backend, name_or_folder)
        if ends is not None and ends != _ends(backend):
            backend.post_processor = _template(backend, *ends)
        return cls(backend)

    @classmethod
    def of_model(cls, name: str, key: str, *, bos_token_id: int, eos_token_id: int) -> "CaptionTokenizer":
        """The tokenizer beside the weights of transformers' model `name`, with the model's own BOS and EOS.

        `key` is the one that named the model.

        Raises:
            UserError: if there is none that is whole, or it lacks one of the two tokens.
        """
        way_out = "put the model's own tokenizer.json, or vocab.json and merges.txt, beside its weights"
        what = f"{key}={name}"
        backend = _loaded(
            name, _beside_weights, 1, what, f"{what} has no tokenizer that can be read; {way_out}", way_out
        )
        for what, token in (("starts", bos_token_id), ("ends", eos_token_id)):
            if backend.id_to_token(token) is None:
                raise UserError(
                    f"{key}={name} {what} captions with token {token}, which its tokenizer of "
                    f"{backend.get_vocab_size()} does not have; {way_out}"
                )
        backend.post_processor = _template(backend, bos_token_id, eos_token_id)
        return cls(backend)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "CaptionTokenizer":
        """A byte-level BPE of at most `vocab_size` tokens, learned from `captions`; the same captions give the same."""
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any text at all can be spelled
            show_progress=False,
        )
        backend.train_from_iterator(captions, trainer)
        return cls(backend)

    @classmethod
    def from_json(cls, text: str) -> "CaptionTokenizer":
        """The tokenizer that `to_json` wrote."""
        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """The whole tokenizer as text, in the `tokenizer.json` format of Hugging Face."""
        return self._backend.to_str()

    def save_pretrained(self, folder: Path, pad_token_id: int) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers loads as a fast tokenizer."""
        backend = Tokenizer.from_str(self.to_json())
        backend.post_processor = processors.ByteLevel(trim_offsets=False)  # as GPT-2's, which adds no BOS or EOS
        ids = {"bos": self.bos_token_id, "eos": self.eos_token_id, "pad": pad_token_id}
        names = {f"{which}_token": backend.id_to_token(token) for which, token in ids.items()}
        PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
        file = folder / "tokenizer_config.json"
        # Written is the class's name of transformers 5 alone; this one its version 4 knows, too.
        config = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def added_tokens(self) -> int:
        """How many of these ids were added to those that the tokenizer was trained with."""
        return self.vocab_size - self._backend.get_vocab_size(with_added_tokens=False)

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        """Each caption's ids, from BOS to EOS."""
        encodings = self._backend.encode_batch(list(captions), add_special_tokens=False)
        return [[self.bos_token_id, *encoding.ids, self.eos_token_id] for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The caption that ids spell up to the first EOS; a leading BOS is skipped, surrounding blanks are dropped."""
        ids = list(ids)
        if ids and ids[0] == self.bos_token_id:
            ids = ids[1:]
        if self.eos_token_id in ids:
            ids = ids[: ids.index(self.eos_token_id)]
        return self._backend.decode(ids, skip_special_tokens=True).strip()

    def words(self, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The words that ids spell, with each the places in `ids` of its tokens; ids hold no BOS or EOS.

        A word goes from one blank to the next, so a comma or a full stop belongs to the word before it.
        """
        groups: list[list[int]] = []
        for place, token_id in enumerate(ids):
            if not groups or (self._backend.id_to_token(token_id) or "").startswith(BLANKS):
                groups.append([])
            groups[-1].append(place)
        spelled = [(self.decode([ids[place] for place in group]), group) for group in groups]
        return [(word, group) for word, group in spelled if word]


def _ends(backend: Tokenizer) -> tuple[int, int] | None:
    """BOS and EOS: those of a template of ours, or else `<|endoftext|>` for both; None where there is neither."""
    template: dict[str, Any] = json.loads(backend.to_str()).get("post_processor") or {}
    special = template.get("special_tokens", {})
    if {"BOS", "EOS"} <= special.keys():
        return special["BOS"]["ids"][0], special["EOS"]["ids"][0]
    end_of_text_id = backend.token_to_id(END_OF_TEXT)
    return None if end_of_text_id is None else (end_of_text_id, end_of_text_id)


def _template(backend: Tokenizer, bos_token_id: int, eos_token_id: int) -> processors.TemplateProcessing:
    named = {"BOS": bos_token_id, "EOS": eos_token_id}
    return processors.TemplateProcessing(
        single=["BOS", "$A", "EOS"],
        special_tokens=[
            {"id": name, "ids": [token], "tokens": [backend.id_to_token(token)]} for name, token in named.items()
        ],
    )


def _loaded(
    name: str, without_json: Callable[[str], Any], least: int, what: str, refusal: str, way_out: str
) -> Tokenizer:
    """`tokenizer.json` itself where there is one, since transformers' classes drop parts of it; or as `without_json`.

    UserError says `refusal` of what can't be read or has no more than `least` tokens.
    """
    try:
        file = _file_of(name, "tokenizer.json")
        backend: Tokenizer = Tokenizer.from_file(str(file)) if file else without_json(name).backend_tokenizer
        tokens = backend.get_vocab_size()
    except Exception as error:  # of a damaged file the tokenizers library raises a bare Exception
        raise UserError(refusal) from error
    if tokens <= least:  # the library makes an empty tokenizer where it finds no file
        raise UserError(refusal)
    if type(backend.model).__name__ == "BPE":
        _require_whole_bpe(backend, what, way_out)
    return backend


def _file_of(name: str, file: str) -> Path | None:
    """That file of a folder or of a model of the hub; None where it has none."""
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    try:
        return fetched_file(name, file)
    except (OSError, ValueError):
        return None


def _named_ends(backend: Tokenizer, name: str) -> tuple[int, int] | None:
    """BOS and EOS by the files beside the tokenizer; None where they name none that it has. EOS serves for both."""
    found: dict[str, int | None] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        path = _file_of(name, file)
        try:
            settings = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError):
            continue
        for end in ("bos", "eos"):
            token, token_id = settings.get(f"{end}_token"), settings.get(f"{end}_token_id")
            token = token.get("content") if isinstance(token, dict) else token
            if found.get(end) is None and isinstance(token, str):
                found[end] = backend.token_to_id(token)
            if found.get(end) is None and isinstance(token_id, int) and backend.id_to_token(token_id) is not None:
                found[end] = token_id
    eos = found.get("eos")
    bos = found.get("bos")
    return None if eos is None else (eos if bos is None else bos, eos)


def _halves(name: str) -> Any:
    return GPT2Tokenizer.from_pretrained(name, local_files_only=out_of_reach())


def _beside_weights(name: str) -> Any:
    """Whichever fast tokenizer a model of transformers has; GPT-2's where its files do not say."""
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=out_of_reach(), trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return _halves(name)


def _require_whole_bpe(backend: Tokenizer, what: str, way_out: str) -> None:
    """Raise UserError where merges are missing, since it would spell nearly everything byte by byte.

    A token that was never merged can have been added or reserved; then its parts are no tokens.
    """
    model = json.loads(backend.to_str())["model"]
    vocabulary, merges = model["vocab"], model.get("merges", ())
    merged = {pair.replace(" ", "") if isinstance(pair, str) else "".join(pair) for pair in merges}
    unmerged = (token for token in vocabulary if token not in merged)
    lost = sum(any(t[:i] in vocabulary and t[i:] in vocabulary for i in range(1, len(t))) for t in unmerged)
    if lost > UNMERGED:
        raise UserError(
            f"{what} is no whole byte-level BPE: it has {backend.get_vocab_size()} tokens "
            f"and {len(merges)} merges, so a part of merges.txt is missing; {way_out}"
        )
