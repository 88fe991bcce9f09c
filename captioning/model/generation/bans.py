"""Tokens that may not come next."""

import torch
from torch import Tensor


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
