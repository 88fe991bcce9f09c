"""The beams of a search: those that run, and the captions that have ended.

Letters: R pictures still searched, K beams of a picture, V vocabulary, n tokens so far, T the longest caption allowed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captioning.model.generation.steps import StepwiseDecoder


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
