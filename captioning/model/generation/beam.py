"""Beam search: which beginnings of captions run on, which captions have ended, and when a picture's search is over.

The captions are those of transformers' `generate`; its `_beam_search` is the specification of every choice here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captioning.errors import UserError
from captioning.model.generation.steps import (
    Caption,
    StepwiseDecoder,
    caption_of,
    worth_leaving,
)


def ban(log_probabilities: Tensor, tokens: Tensor, no_repeat_ngram_size: int, eos_token_id: int | None) -> None:
    """Set to -inf, in place, what would repeat an n-gram, and EOS unless it is None.

    Args:
        log_probabilities: (R, K, V) of the next token.
        tokens: (R, K, n) of the captions so far, BOS excluded.
        no_repeat_ngram_size: the n of the n-grams that may occur once; 0 for any.
        eos_token_id: EOS where it may not come yet.

    >>> scores = torch.zeros(1, 1, 5)
    >>> ban(scores, torch.tensor([[[3, 1, 3]]]), no_repeat_ngram_size=2, eos_token_id=0)
    >>> scores
    tensor([[[-inf, -inf, 0., 0., 0.]]])
    """
    if eos_token_id is not None:
        log_probabilities[..., eos_token_id] = -torch.inf
    size = no_repeat_ngram_size
    if 0 < size <= tokens.shape[-1]:
        ngrams = tokens.unfold(-1, size, 1)  # (R, K, n - size + 1, size)
        latest = tokens[..., None, tokens.shape[-1] - size + 1 :]  # (R, K, 1, size - 1), what the next token would end
        begun = (ngrams[..., :-1] == latest).all(-1)
        penalties = torch.zeros_like(begun, dtype=log_probabilities.dtype).masked_fill(begun, -torch.inf)
        log_probabilities.scatter_add_(-1, ngrams[..., -1], penalties)


class Running(NamedTuple):
    """Beginnings of captions, best first."""

    last: Tensor  # (R, K) the tokens to feed next; BOS at first
    tokens: Tensor  # (R, K, n) all tokens so far, BOS excluded
    sums: Tensor  # (R, K) float32, of their log-probabilities
    slots: Tensor  # (R, K, n) at which place among the K each of these tokens is fed, and so lies in the cache

    @classmethod
    def start(cls, decoder: StepwiseDecoder) -> Running:
        """BOS, once for each picture."""
        bos = decoder.bos()  # (R, 1)
        nothing = bos[..., None][..., :0]
        return cls(bos, nothing, torch.zeros_like(bos, dtype=torch.float32), nothing)

    def of_pictures(self, rows: Tensor) -> Running:
        """These pictures alone."""
        return Running(*(field[rows] for field in self))

    def best(self, scores: Tensor, count: int) -> Running:
        """The `count` beams of each picture with the best scores (R, K), best first."""
        index = scores.topk(count).indices
        return Running(*(_chosen(field, index) for field in self))

    def continued(self, log_probabilities: Tensor, count: int) -> Running:
        """The `count` best continuations by one token, given (R, K, V); their slots are still their parents'."""
        vocabulary = log_probabilities.shape[-1]
        sums, index = (self.sums[..., None] + log_probabilities).flatten(1).topk(count)
        parent, token = index // vocabulary, index % vocabulary
        tokens = torch.cat((_chosen(self.tokens, parent), token[..., None]), -1)
        return Running(token, tokens, sums, _chosen(self.slots, parent))

    def renamed(self) -> Running:
        """With the slots in which the last tokens are about to be fed."""
        own = torch.arange(self.last.shape[1], device=self.last.device).expand_as(self.last)
        return self._replace(slots=torch.cat((self.slots, own[..., None]), -1))

    def mask(self) -> Tensor | None:
        """(R, 1, K, 1 + K * n) whether a beam descends from a token that was fed; None while there is one beam.

        Fed were BOS, once for all beams, and then K tokens a step, one in each slot.
        """
        pictures, beams, length = self.slots.shape
        if beams == 1:
            return None
        own = F.one_hot(self.slots, beams).view(pictures, 1, beams, length * beams).bool()
        return F.pad(own, (1, 0), value=True)


class Finished(NamedTuple):
    """The K best captions that have ended, best first, in places of which some are still free."""

    tokens: Tensor  # (R, K, T) EOS included, and EOS after it
    sums: Tensor  # (R, K) float32, of log-probabilities
    scores: Tensor  # (R, K) float32; -inf marks a free place
    closed: Tensor  # (R,) whether the search has ended

    @classmethod
    def none(cls, decoder: StepwiseDecoder, beams: int, max_new_tokens: int) -> Finished:
        """All places free."""
        tokens = decoder.bos()[..., None].new_full((decoder.pictures, beams, max_new_tokens), decoder.eos_token_id)
        free = torch.full((decoder.pictures, beams), -torch.inf, device=decoder.device)
        return cls(tokens, torch.zeros_like(free), free, torch.zeros_like(free[:, 0], dtype=torch.bool))

    def of_pictures(self, rows: Tensor) -> Finished:
        """These pictures alone."""
        return Finished(*(field[rows] for field in self))

    def joined_by(self, candidates: Running, scores: Tensor) -> Finished:
        """The best of these and of the first K candidates, whose scores are (R, K)."""
        beams, length = scores.shape[1], candidates.tokens.shape[-1]
        added = self.tokens.clone()  # no finished caption is longer than the candidates: behind them all is EOS
        added[..., :length] = candidates.tokens[:, :beams]
        scores, index = torch.cat((self.scores, scores), 1).topk(beams)
        tokens = _chosen(torch.cat((self.tokens, added), 1), index)
        sums = _chosen(torch.cat((self.sums, candidates.sums[:, :beams]), 1), index)
        return Finished(tokens, sums, scores, self.closed)

    def closing(self, ended: Tensor) -> Finished:
        """With these pictures' searches ended, too."""
        return self._replace(closed=self.closed | ended)


def _chosen(field: Tensor, index: Tensor) -> Tensor:
    """Of (R, K, ...) the beams at (R, J): (R, J, ...)."""
    return field[torch.arange(len(field), device=field.device)[:, None], index]


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
    def room(self) -> int:
        """Tokens that a picture is fed: BOS once, for all of its beams, and then one for each beam a step."""
        return 1 + (self.max_new_tokens - 1) * self.num_beams

    def captions(self, decoder: StepwiseDecoder, addresses: Sequence[int]) -> list[Caption]:
        """One for each of the decoder's pictures; with `n_best` above 1 it holds so many alternatives."""
        self._check_vocabulary(decoder)
        captions: list[Caption] = [Caption([], 0.0)] * decoder.pictures
        places = torch.arange(decoder.pictures, device=decoder.device)  # the result's place of each picture searched
        running, finished = Running.start(decoder), Finished.none(decoder, self.num_beams, self.max_new_tokens)
        for step in range(self.max_new_tokens):
            searching = ~finished.closed
            running, finished = self._advance(decoder, running, finished, step)
            for row in (searching & finished.closed).nonzero()[:, 0].tolist():
                captions[places[row]] = self._best(finished, row, decoder.eos_token_id)
            left = int((~finished.closed).sum())
            if left == 0:
                break
            if worth_leaving(left, len(places)):
                rows = (~finished.closed).nonzero()[:, 0]
                decoder.keep(rows)
                places, running, finished = places[rows], running.of_pictures(rows), finished.of_pictures(rows)
        return captions

    def _advance(
        self, decoder: StepwiseDecoder, running: Running, finished: Finished, step: int
    ) -> tuple[Running, Finished]:
        """Feed the running beams' last tokens, and sort their continuations into those that run on and that end."""
        logits = decoder.logits(running.last, step, running.mask())  # (R, K, V), one beam at first
        log_probabilities = logits.float().log_softmax(-1)
        eos_token_id = decoder.eos_token_id if step < self.min_new_tokens else None
        ban(log_probabilities, running.tokens, self.no_repeat_ngram_size, eos_token_id)
        # Twice as many as beams: at most one continuation of each beam is EOS, so enough of them run on.
        candidates = running.continued(log_probabilities, 2 * self.num_beams)
        is_last = step + 1 == self.max_new_tokens
        ended = (candidates.last == decoder.eos_token_id) | is_last
        running = candidates.best(candidates.sums.masked_fill(ended, -torch.inf), self.num_beams)
        running = running.renamed()
        # An EOS that is not among the best `num_beams` continuations ends no caption.
        scores = candidates.sums / (step + 1) ** self.length_penalty
        scores = scores.masked_fill(~ended | finished.closed[:, None], -torch.inf)[:, : self.num_beams]
        finished = finished.joined_by(candidates, scores)
        return running, finished.closing(self._hopeless(running, finished, step + 1) | is_last)

    def _hopeless(self, running: Running, finished: Finished, length: int) -> Tensor:
        """(R,) whether no running beam, of so many tokens, is thought able to replace a finished one."""
        full = finished.scores.isfinite().all(-1)
        if self.early_stopping is True or self.num_beams == 1:
            return full
        favours_length = self.early_stopping == "never" and self.length_penalty > 0
        hypothetical_length = self.max_new_tokens if favours_length else length
        best = running.sums[:, 0] / hypothetical_length**self.length_penalty
        return full & (best <= finished.scores[:, -1])

    def _best(self, finished: Finished, row: int, eos_token_id: int) -> Caption:
        found = finished.scores[row, : self.n_best].isfinite()  # fewer only where bans left no more in the vocabulary
        if not found.any():
            raise UserError(
                f"decoding.no_repeat_ngram_size={self.no_repeat_ngram_size} and decoding.min_new_tokens="
                f"{self.min_new_tokens} leave no caption that this model's vocabulary can write; lower the second"
            )
        pairs = zip(
            finished.tokens[row, : self.n_best][found].tolist(),
            finished.sums[row, : self.n_best][found].tolist(),
            strict=True,
        )
        captions = tuple(caption_of(tokens, total, eos_token_id) for tokens, total in pairs)
        return captions[0]._replace(alternatives=captions if self.n_best > 1 else ())

    def _check_vocabulary(self, decoder: StepwiseDecoder) -> None:
        most = decoder.vocab_size // 2
        if self.num_beams > most:
            raise UserError(f"decoding.num_beams={self.num_beams} is more than this model's vocabulary allows, {most}")
