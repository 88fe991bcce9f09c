"""Beam search: which beginnings of captions run on, which captions have ended, and when a picture's search is over.

The captions are those of transformers' `generate`; its `_beam_search` is the specification of every choice here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioning.errors import UserError
from captioning.model.generation.rules import Ruler, Rules
from captioning.model.generation.steps import Caption, Search, StepwiseDecoder, caption_of


class BeamSearch(Search):
    """The best beginnings, of which each step's continuations are sorted into those that run on and those that end."""

    # Running, best first:
    tokens: Tensor  # (R, K, T); EOS where there is no token yet
    sums: Tensor  # (R, K) float32, of their log-probabilities, as a penalty makes them
    own: Tensor  # (R, K) float32, the same as the model makes them
    # The K best that have ended, best first, in places of which some are still free:
    ended_tokens: Tensor  # (R, K, T) EOS included, and EOS after it
    ended_sums: Tensor  # (R, K) float32, of the model's own log-probabilities
    scores: Tensor  # (R, K) float32; -inf marks a free place
    closed: Tensor  # (R,) whether the search has ended

    def __init__(self, decoding: Beam, decoder: StepwiseDecoder):
        beams, device = (decoder.pictures, decoding.num_beams), decoder.device
        self._decoding, self._bos, self._eos = decoding, decoder.bos_token_id, decoder.eos_token_id
        self._ruler = Ruler(decoding, self._bos, self._eos, device)
        lengths = [max(1, n - self._ruler.prefix) for n in range(1, decoding.longest + 1)]
        divisors = [n**decoding.length_penalty for n in lengths]
        self._divisors = torch.tensor(divisors, dtype=torch.float32, device=device)  # of a sum of so many, to its score
        whole = {
            "last": torch.empty(beams, dtype=torch.long, device=device),
            "tokens": torch.empty(*beams, decoding.longest, dtype=torch.long, device=device),
            "sums": torch.empty(beams, device=device),
            "own": torch.empty(beams, device=device),
            "ended_tokens": torch.empty(*beams, decoding.longest, dtype=torch.long, device=device),
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
        self.own.zero_()
        self.tokens.fill_(self._eos)
        self.scores.fill_(-torch.inf)
        self.closed.fill_(True)[: len(addresses)] = False

    def advance(self, logits: Tensor, decoder: StepwiseDecoder) -> None:
        """Sort the best continuations of the beams; so many more than beams that enough of them are no EOS."""
        beams, step = self.last.shape[1], decoder.step
        sums, own, parents, token = self._continuations(logits, step)  # (R, 2K), best first
        is_last = step + 1 == self._decoding.longest
        at_eos = self._ruler.ended(token)
        ended = at_eos | is_last
        written = token.masked_fill(at_eos, self._eos)
        tokens = _chosen(self.tokens, parents).index_copy_(-1, step, written[..., None])  # (R, 2K, T)
        # An EOS that is not among the best K continuations ends no caption.
        scores = (sums / self._divisors[step]).masked_fill(~ended | self.closed[:, None], -torch.inf)[:, :beams]
        self._end(tokens[:, :beams], own[:, :beams], scores)
        index = sums.masked_fill(ended, -torch.inf).topk(beams).indices  # (R, K), of those that run on
        self.sums.copy_(sums.gather(1, index))
        self.own.copy_(own.gather(1, index))
        self.tokens.copy_(_chosen(tokens, index))
        self.last.copy_(token.gather(1, index))
        self.closed.logical_or_(self._hopeless(step) | is_last)
        decoder.descend(parents.gather(1, index))

    def _continuations(self, logits: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best by one token: the sums of their log-probabilities, the beam that each continues, and the token.

        Given (R, K, V), or (R, 1, V) at first: each (R, 2K), best first, or more where there are several EOS. The sums
        are those that choose, and the model's own.
        """
        beams, ruler = logits.shape[1], self._ruler
        count = max(2, 1 + len(ruler.ends)) * self.last.shape[1]
        logits = logits.float()
        normalisers = logits.logsumexp(-1, keepdim=True)  # (R, K, 1), of all tokens: a ban makes no other likelier
        log_probabilities = logits - normalisers if ruler.penalty != 1 or ruler.prefix else None
        if log_probabilities is not None:  # which the penalty is of, and a prefix has none
            logits, normalisers = log_probabilities.clone(), torch.zeros_like(normalisers)
        if ruler.change:
            logits = ruler.apply(logits, self.tokens[:, :beams], step)
        if ruler.prefix:
            logits, log_probabilities = self._on_prefix(logits, log_probabilities, step)
        best, token = logits.topk(count)  # (R, K, 2K) of each beam: no other can be among the best of all
        sums, index = (self.sums[:, :beams, None] + (best - normalisers)).flatten(1).topk(count)
        parents, token = index // count, token.flatten(1)
        if log_probabilities is None:
            return sums, sums, parents, token.gather(1, index)
        own = log_probabilities.gather(-1, token.view_as(best)) + self.own[:, :beams, None]
        return sums, own.flatten(1).gather(1, index), parents, token.gather(1, index)

    def _on_prefix(self, scores: Tensor, own: Tensor | None, step: Tensor) -> tuple[Tensor, Tensor | None]:
        """Both (R, K, V); within the prefix, its token alone is possible and costs nothing."""
        forced = self._ruler.forced(step)
        others = torch.arange(scores.shape[-1], device=scores.device) != forced
        alone = torch.zeros_like(scores).masked_fill(others, -torch.inf)
        return scores.where(forced < 0, alone), None if own is None else own.where(forced < 0, 0.0)

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
                caption_of(ids, total, self._eos, self._ruler.prefix)
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
class Beam(Rules):
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
            UserError: if there are more beams than half the vocabulary, or than a third where there are two EOS, ...
        """
        most = decoder.vocab_size // max(2, 2 + len(set(self.eos_token_ids) - {decoder.eos_token_id}))
        if self.num_beams > most:
            raise UserError(f"decoding.num_beams={self.num_beams} is more than this model's vocabulary allows, {most}")
        return BeamSearch(self, decoder)
