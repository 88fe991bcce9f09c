"""One caption a picture, token by token: what greedy decoding and sampling share."""

from collections.abc import Callable

import torch
from torch import Tensor

from captioning.model.generation.captions import Caption, caption_of
from captioning.model.generation.steps import StepwiseDecoder, worth_leaving

Choose = Callable[[Tensor, Tensor], Tensor]  # logits (R, V), the pictures' places among all (R,) -> token ids (R,)


def choose_tokens(decoder: StepwiseDecoder, choose: Choose, max_new_tokens: int) -> list[Caption]:
    """Captions of the decoder's pictures, each token as `choose` says."""
    device, eos_token_id = decoder.device, decoder.eos_token_id
    tokens = torch.full((decoder.pictures, max_new_tokens), eos_token_id, device=device)
    log_probabilities = torch.zeros(decoder.pictures, device=device)  # sums
    places = torch.arange(decoder.pictures, device=device)  # the result's row of each picture in the batch
    unfinished = torch.ones_like(places, dtype=torch.bool)
    token = decoder.bos()[:, 0]
    for step in range(max_new_tokens):
        logits = decoder.logits(token[:, None], step)[:, 0].float()  # (R, V)
        token = choose(logits, places)
        token = token.where(unfinished, eos_token_id)
        tokens[places, step] = token
        log_probability = logits.gather(-1, token[:, None])[:, 0] - logits.logsumexp(-1)
        log_probabilities[places] += log_probability.where(unfinished, 0.0)
        unfinished = unfinished & (token != eos_token_id)
        left = int(unfinished.sum())
        if left == 0:
            break
        if worth_leaving(left, len(unfinished)):
            rows = unfinished.nonzero()[:, 0]
            decoder.keep(rows)
            places, token, unfinished = places[rows], token[rows], unfinished[rows]
    rows_and_sums = zip(tokens.tolist(), log_probabilities.tolist(), strict=True)
    return [caption_of(row, total, eos_token_id) for row, total in rows_and_sums]
