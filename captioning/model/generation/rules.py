"""Rules that every decoding may have: penalties, bans, more ends, and a text that a caption goes on from.

They mean what they mean to transformers' `generate`, in its order, so the captions are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from captioning.errors import UserError

Ruled = TypeVar("Ruled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What decodings have in common; as they stand here, nothing is ruled.

    `prefix` and `banned_words` are texts until `in_tokens` knows the tokenizer, and the fields behind them then.
    """

    repetition_penalty: float = 1.0  # divides what speaks for a token that was there, BOS too (Keskar et al. 2019)
    banned_words: Sequence[str] = ()
    eos_token_ids: Sequence[int] = ()  # these end a caption, too
    prefix: str = ""
    banned_token_ids: tuple[tuple[int, ...], ...] = ()
    prefix_token_ids: tuple[int, ...] = ()

    @property
    def longest(self) -> int:
        """T, tokens of the longest caption: those of the prefix, and all new ones with EOS."""
        return len(self.prefix_token_ids) + self.max_new_tokens  # type: ignore[attr-defined]


def in_tokens(decoding: Ruled, encode: Callable[[Sequence[str]], list[list[int]]], vocab_size: int) -> Ruled:
    """The decoding with its texts as token ids.

    A word is banned at the beginning of a caption and behind a blank, written as it is given.

    Args:
        decoding: one with rules, or any other, which is returned as it is.
        encode: texts to token ids, each between BOS and EOS.
        vocab_size: of the model.

    Raises:
        UserError: for a prefix in which a caption ends or begins, and an EOS that the model doesn't have.
    """
    if not isinstance(decoding, Rules):
        return decoding
    if unknown := [one for one in decoding.eos_token_ids if one >= vocab_size]:
        raise UserError(f"decoding.eos_token_ids has {unknown[0]}, and this model's tokens end at {vocab_size - 1}")
    words = [form for word in decoding.banned_words for form in (word, f" {word}")]
    banned = {tuple(ids[1:-1]) for ids in encode(words)} if words else set()
    prefix: list[int] = []
    if decoding.prefix:
        bos, *prefix, eos = encode([decoding.prefix])[0]
        if {bos, eos, *decoding.eos_token_ids} & set(prefix):
            raise UserError(
                f"decoding.prefix={decoding.prefix!r} has a token at which a caption ends or begins; leave it out"
            )
    kept = tuple(sorted(ids for ids in banned if ids))
    return dataclasses.replace(decoding, banned_token_ids=kept, prefix_token_ids=tuple(prefix))


def ban(logits: Tensor, tokens: Tensor, step: Tensor, no_repeat_ngram_size: int) -> None:
    """Set to -inf, in place, what would repeat an n-gram.

    Args:
        logits: (R, K, V) of the next token.
        tokens: (R, K, T) of the captions, of which the first `step` are there; BOS is none of them.
        step: (1,).
        no_repeat_ngram_size: the n of the n-grams that may occur once.

    >>> logits = torch.zeros(1, 1, 5)
    >>> ban(logits, torch.tensor([[[3, 1, 3, 0]]]), torch.tensor([3]), no_repeat_ngram_size=2)
    >>> logits
    tensor([[[0., -inf, 0., 0., 0.]]])
    """
    size = no_repeat_ngram_size
    if size > tokens.shape[-1]:
        return
    ngrams = tokens.unfold(-1, size, 1)  # (R, K, T - size + 1, size)
    there = torch.arange(size, tokens.shape[-1] + 1, device=tokens.device) <= step  # (T - size + 1,)
    # (size - 1,) where the tokens lie that the next one would make an n-gram of
    latest = (torch.arange(1 - size, 0, device=tokens.device) + step).clamp(min=0)
    begun = there & (ngrams[..., :-1] == tokens[..., None, latest]).all(-1)
    penalties = torch.zeros_like(begun, dtype=logits.dtype).masked_fill(begun, -torch.inf)
    logits.scatter_add_(-1, ngrams[..., -1], penalties)


class Ruler:
    """Rules over tensors of a device, which ask no value of them: a step can be recorded.

    Args:
        decoding: whose rules they are.
        bos_token_id: the decoder's.
        eos_token_id: the decoder's; a caption's other ends are written as this one.
        device: of the scores.
    """

    def __init__(self, decoding: Any, bos_token_id: int, eos_token_id: int, device: torch.device):
        rules = decoding if isinstance(decoding, Rules) else Rules()
        self.penalty, self._bos, self._eos = rules.repetition_penalty, bos_token_id, eos_token_id
        self.ngram_size: int = getattr(decoding, "no_repeat_ngram_size", 0)
        self.least: int = getattr(decoding, "min_new_tokens", 0)
        self.prefix = len(rules.prefix_token_ids)
        self.ends = torch.tensor(sorted({eos_token_id, *rules.eos_token_ids}), device=device)
        self._forced = torch.tensor([*rules.prefix_token_ids, *[-1] * (decoding.longest - self.prefix)], device=device)
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for ids in rules.banned_token_ids:
            if ids != (eos_token_id,):  # as in transformers: captions must be able to end
                by_length.setdefault(len(ids), []).append(ids)
        self._banned = [torch.tensor(ids, device=device) for ids in by_length.values()]  # each (M, n)

    @property
    def change(self) -> bool:
        """Whether scores may come out otherwise than they went in."""
        return self.penalty != 1 or bool(self.ngram_size or self.least or self._banned)

    def ended(self, token: Tensor) -> Tensor:
        """Which of the tokens end a caption."""
        return (token[..., None] == self.ends).any(-1)

    def forced(self, step: Tensor) -> Tensor:
        """(1,) the token of the prefix at this step; -1 behind it."""
        return self._forced[step]

    def apply(self, scores: Tensor, tokens: Tensor, step: Tensor) -> Tensor:
        """What the rules make of scores (R, K, V), which may be written in; see `ban` for the others."""
        if self.penalty != 1:
            there = torch.arange(tokens.shape[-1], device=tokens.device) < step
            seen = torch.zeros_like(scores, dtype=torch.bool)
            seen.scatter_(-1, tokens.where(there, self._bos), True)  # BOS, too: the next token's place is still free
            scores = scores.where(~seen, torch.where(scores < 0, scores * self.penalty, scores / self.penalty))
        if self.ngram_size:
            ban(scores, tokens, step, self.ngram_size)
        for words in self._banned:
            self._ban_words(scores, tokens, step, words)
        if self.least:
            early = (step < self.prefix + self.least) & torch.ones_like(self.ends, dtype=torch.bool)
            ends = torch.zeros_like(self.ends, dtype=scores.dtype).masked_fill(early, -torch.inf)
            scores.index_add_(-1, self.ends, ends.expand(*scores.shape[:-1], -1))
        return scores

    def _ban_words(self, scores: Tensor, tokens: Tensor, step: Tensor, words: Tensor) -> None:
        """Where all but the last of a word's tokens (M, n) are the latest ones, the last becomes impossible."""
        before = words.shape[1] - 1
        if before > tokens.shape[-1]:
            return
        latest = (torch.arange(-before, 0, device=tokens.device) + step).clamp(min=0)
        begun = (tokens[..., None, latest] == words[:, :-1]).all(-1) & (step >= before)  # (R, K, M)
        penalties = torch.zeros_like(begun, dtype=scores.dtype).masked_fill(begun, -torch.inf)
        scores.scatter_add_(-1, words[:, -1].expand_as(begun), penalties)
