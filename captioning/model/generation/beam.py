"""Beam search: what a caption's score is, and when a picture's search has ended.

The captions are those of transformers' `generate`; its `_beam_search` is the specification of every choice here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captioning.errors import UserError
from captioning.model.generation.bans import ban
from captioning.model.generation.beams import Finished, Running
from captioning.model.generation.captions import Caption, caption_of
from captioning.model.generation.checks import require_finite, require_whole
from captioning.model.generation.steps import StepwiseDecoder, worth_leaving

STRONGEST_PENALTY = 10  # 40 tokens to the 10th is 10^16: the length decides alone


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

    def __post_init__(self) -> None:
        require_whole("max_new_tokens", self.max_new_tokens)
        require_whole("num_beams", self.num_beams)
        require_finite("length_penalty", self.length_penalty)
        if abs(self.length_penalty) > STRONGEST_PENALTY:
            raise UserError(
                f"decoding.length_penalty={self.length_penalty} must be from -{STRONGEST_PENALTY} to "
                f"{STRONGEST_PENALTY}; 1 compares the means of tokens"
            )
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise UserError(f"decoding.early_stopping={self.early_stopping} is none of true, false, never")
        require_whole("no_repeat_ngram_size", self.no_repeat_ngram_size, least=0)
        require_whole("min_new_tokens", self.min_new_tokens, least=0)
        require_whole("n_best", self.n_best)
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"decoding.min_new_tokens={self.min_new_tokens} must be at most "
                f"decoding.max_new_tokens={self.max_new_tokens}"
            )
        if self.n_best > self.num_beams:
            raise UserError(
                f"decoding.n_best={self.n_best} must be at most decoding.num_beams={self.num_beams}; "
                f"for more captions, search with decoding.num_beams={self.n_best}"
            )

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
