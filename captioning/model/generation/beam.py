"""Beam search: which beginnings of captions run on, which captions have ended, and when a picture's search is over.

The captions are those of transformers' `generate`; its `_beam_search` is the specification of every choice here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioning.errors import UserError
from captioning.model.generation.steps import Caption, Search, StepwiseDecoder, caption_of


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


class BeamSearch(Search):
    """The best beginnings, of which each step's continuations are sorted into those that run on and those that end."""

    # Running, best first:
    tokens: Tensor  # (R, K, T); EOS where there is no token yet
    sums: Tensor  # (R, K) float32, of their log-probabilities
    # The K best that have ended, best first, in places of which some are still free:
    ended_tokens: Tensor  # (R, K, T) EOS included, and EOS after it
    ended_sums: Tensor  # (R, K) float32, of log-probabilities
    scores: Tensor  # (R, K) float32; -inf marks a free place
    closed: Tensor  # (R,) whether the search has ended

    def __init__(self, decoding: Beam, decoder: StepwiseDecoder):
        beams, device = (decoder.pictures, decoding.num_beams), decoder.device
        self._decoding, self._bos, self._eos = decoding, decoder.bos_token_id, decoder.eos_token_id
        divisors = [n**decoding.length_penalty for n in range(1, decoding.max_new_tokens + 1)]
        self._divisors = torch.tensor(divisors, dtype=torch.float32, device=device)  # of a sum of so many, to its score
        whole = {
            "last": torch.empty(beams, dtype=torch.long, device=device),
            "tokens": torch.empty(*beams, decoding.max_new_tokens, dtype=torch.long, device=device),
            "sums": torch.empty(beams, device=device),
            "ended_tokens": torch.empty(*beams, decoding.max_new_tokens, dtype=torch.long, device=device),
            "ended_sums": torch.empty(beams, device=device),
            "scores": torch.empty(beams, device=device),
            "closed": torch.empty(decoder.pictures, dtype=torch.bool, device=device),
        }
        super().__init__(whole)

    def begin(self, decoding: Beam, pictures: int, addresses: Sequence[int]) -> None:
        """BOS, as if one beam alone had begun; all places of ended captions are free."""
        self.narrow(pictures)
        self.last.fill_(self._bos)
        self.sums.fill_(-torch.inf)[:, 0] = 0.0
        self.tokens.fill_(self._eos)
        self.scores.fill_(-torch.inf)
        self.closed.fill_(True)[: len(addresses)] = False

    def advance(self, logits: Tensor, decoder: StepwiseDecoder) -> None:
        """Sort the best continuations of the beams; twice as many as beams, for at most one of each is its EOS."""
        beams, step = self.last.shape[1], decoder.step
        sums, parents, token = self._continuations(logits, step)  # (R, 2K), best first
        tokens = _chosen(self.tokens, parents).index_copy_(-1, step, token[..., None])  # (R, 2K, T)
        is_last = step + 1 == self._decoding.max_new_tokens
        ended = (token == self._eos) | is_last
        # An EOS that is not among the best K continuations ends no caption.
        scores = (sums / self._divisors[step]).masked_fill(~ended | self.closed[:, None], -torch.inf)[:, :beams]
        self._end(tokens[:, :beams], sums[:, :beams], scores)
        index = sums.masked_fill(ended, -torch.inf).topk(beams).indices  # (R, K), of those that run on
        self.sums.copy_(sums.gather(1, index))
        self.tokens.copy_(_chosen(tokens, index))
        self.last.copy_(token.gather(1, index))
        self.closed.logical_or_(self._hopeless(step) | is_last)
        decoder.descend(parents.gather(1, index))

    def _continuations(self, logits: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The 2K best by one token: the sum of their log-probabilities, the beam that each continues, and the token.

        Given (R, K, V), or (R, 1, V) at first: each (R, 2K), best first.
        """
        count, beams = 2 * self.last.shape[1], logits.shape[1]
        logits = logits.float()
        normalisers = logits.logsumexp(-1, keepdim=True)  # (R, K, 1), of all tokens: a ban makes no other likelier
        if self._decoding.min_new_tokens:
            logits[..., self._eos].masked_fill_(step < self._decoding.min_new_tokens, -torch.inf)
        if self._decoding.no_repeat_ngram_size:
            ban(logits, self.tokens[:, :beams], step, self._decoding.no_repeat_ngram_size)
        best, token = logits.topk(count)  # (R, K, 2K) of each beam: no other can be among the best of all
        sums, index = (self.sums[:, :beams, None] + (best - normalisers)).flatten(1).topk(count)
        return sums, index // count, token.flatten(1).gather(1, index)

    def _end(self, tokens: Tensor, sums: Tensor, scores: Tensor) -> None:
        """Of the ended captions and the K best continuations, whose scores are (R, K), the best have ended now."""
        scores, index = torch.cat((self.scores, scores), 1).topk(scores.shape[1])
        self.ended_tokens.copy_(_chosen(torch.cat((self.ended_tokens, tokens), 1), index))
        self.ended_sums.copy_(torch.cat((self.ended_sums, sums), 1).gather(1, index))
        self.scores.copy_(scores)

    def _hopeless(self, step: Tensor) -> Tensor:
        """(R,) whether no running beam is thought able to replace an ended one."""
        full = self.scores.isfinite().all(-1)
        if self._decoding.early_stopping is True or self._decoding.num_beams == 1:
            return full
        favours_length = self._decoding.early_stopping == "never" and self._decoding.length_penalty > 0
        best = self.sums[:, 0] / (self._divisors[-1] if favours_length else self._divisors[step])
        return full & (best <= self.scores[:, -1])

    def ended(self) -> Tensor:
        """(R,) whether the search has."""
        return self.closed

    def captions(self, pictures: Sequence[int]) -> list[Caption]:
        """One for each of these pictures; with `n_best` above 1 it holds so many alternatives."""
        count = self._decoding.n_best
        fields = (field[:, :count].tolist() for field in (self.ended_tokens, self.ended_sums, self.scores))
        tokens, sums, scores = fields
        made = []
        for picture in pictures:
            found = [
                caption_of(ids, total, self._eos)
                for ids, total, score in zip(tokens[picture], sums[picture], scores[picture], strict=True)
                if score > -torch.inf  # fewer only where bans left no more in the vocabulary
            ]
            if not found:
                raise UserError(
                    f"decoding.no_repeat_ngram_size={self._decoding.no_repeat_ngram_size} and decoding.min_new_tokens="
                    f"{self._decoding.min_new_tokens} leave no caption that this model's vocabulary can write; "
                    "lower the second"
                )
            made.append(found[0]._replace(alternatives=tuple(found) if count > 1 else ()))
        return made


def _chosen(field: Tensor, index: Tensor) -> Tensor:
    """Of (R, K, T) the beams at (R, J): (R, J, T)."""
    return field.gather(1, index[..., None].expand(-1, -1, field.shape[-1]))


@dataclass(frozen=True)
class Beam:
    """The `num_beams` best beginnings are kept at every step; the ended caption of the best score wins.

    A score is the sum of the log-probabilities, EOS included, divided by (number of tokens) ** `length_penalty`: 0
    compares sums and so favours short captions, 1 compares means. One beam is greedy decoding.

    `early_stopping`: true ends a picture's search when `num_beams` captions have ended; false, when the best running
    beam would score less than all of these if it ended now; "never", when it would do so at its most favourable length.
    """

    max_new_tokens: int  # tokens, EOS included
    num_beams: int
    length_penalty: float
    early_stopping: bool | str
    no_repeat_ngram_size: int  # no run of so many tokens occurs twice in a caption; 0 lets them
    min_new_tokens: int  # tokens, EOS excluded, as transformers counts them here
    n_best: int  # the most captions returned for a picture

    @property
    def beams(self) -> int:
        """K, the beginnings of a picture's captions."""
        return self.num_beams

    def search(self, decoder: StepwiseDecoder) -> BeamSearch:
        """The searches of the decoder's pictures.

        Raises:
            UserError: if there are more beams than half the vocabulary.
        """
        most = decoder.vocab_size // 2
        if self.num_beams > most:
            raise UserError(f"decoding.num_beams={self.num_beams} is more than this model's vocabulary allows, {most}")
        return BeamSearch(self, decoder)
