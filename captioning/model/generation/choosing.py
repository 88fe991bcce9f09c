"""Captions token by token, each chosen from what the decoder says of it alone: greedy decoding and sampling."""

from collections.abc import Callable

import torch
from torch import Tensor

from captioning.model.generation.captions import Caption, caption_of
from captioning.model.generation.steps import StepwiseDecoder, worth_leaving

# logits (R, K, V), the pictures' places among all (R,) -> token ids (R, K)
Choose = Callable[[Tensor, Tensor], Tensor]


def choose_tokens(decoder: StepwiseDecoder, choose: Choose, max_new_tokens: int, count: int = 1) -> list[list[Caption]]:
    """`count` captions of each of the decoder's pictures, K in shapes, each token as `choose` says."""
    device, eos_token_id = decoder.device, decoder.eos_token_id
    tokens = torch.full((decoder.pictures, count, max_new_tokens), eos_token_id, device=device)
    log_probabilities = torch.zeros(decoder.pictures, count, device=device)  # sums
    places = torch.arange(decoder.pictures, device=device)  # the result's row of each picture in the batch
    unfinished = torch.ones_like(log_probabilities, dtype=torch.bool)  # (R, K)
    token = decoder.bos()  # (R, 1), fed once for all captions of a picture
    for step in range(max_new_tokens):
        logits = decoder.logits(token, step, own_tokens(count, step, token)).float()  # (R, K, V), one row at first
        logits = logits.expand(-1, count, -1)
        token = choose(logits, places)
        token = token.where(unfinished, eos_token_id)
        tokens[places, :, step] = token
        log_probability = logits.gather(-1, token[..., None])[..., 0] - logits.logsumexp(-1)
        log_probabilities[places] += log_probability.where(unfinished, 0.0)
        unfinished = unfinished & (token != eos_token_id)
        described = unfinished.any(-1)  # (R,)
        left = int(described.sum())
        if left == 0:
            break
        if worth_leaving(left, len(described)):
            rows = described.nonzero()[:, 0]
            decoder.keep(rows)
            places, token, unfinished = places[rows], token[rows], unfinished[rows]
    return [
        [caption_of(row, total, eos_token_id) for row, total in zip(rows, sums, strict=True)]
        for rows, sums in zip(tokens.tolist(), log_probabilities.tolist(), strict=True)
    ]


def own_tokens(count: int, step: int, token: Tensor) -> Tensor | None:
    """(R, 1, K, 1 + K * step) true where a caption may attend: to BOS and to its own tokens, one of K fed a step.

    None for one caption, which attends to all that was fed.
    """
    if count == 1 or step == 0:
        return None
    own = torch.eye(count, dtype=torch.bool, device=token.device).repeat(1, step)  # (K, K * step)
    return torch.nn.functional.pad(own, (1, 0), value=True).expand(len(token), 1, -1, -1)
