"""Captions from pictures: each picture is encoded once, its keys and values are kept, and tokens follow one by one.

Letters: B pictures, V vocabulary, T the longest caption allowed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner


class Caption(NamedTuple):
    """Generated token ids, EOS excluded, and their mean log-probability in nats per token, EOS included.

    The log-probability is the model's own, whatever temperature or filter chose the tokens.
    """

    token_ids: list[int]
    log_probability: float


class Decoding(Protocol):
    """How the next token is chosen."""

    max_new_tokens: int

    def draws(self, addresses: Sequence[int]) -> Tensor | None:
        """(B, T) numbers in [0, 1) for the pictures at these addresses, or None where nothing is drawn."""

    def choose(self, logits: Tensor, draw: Tensor | None) -> Tensor:
        """(B,) token ids from logits (B, V) and this step's draws (B,)."""


@dataclass(frozen=True)
class Greedy:
    """The most probable token at every step."""

    max_new_tokens: int  # tokens, EOS included

    def __post_init__(self) -> None:
        _require_whole("max_new_tokens", self.max_new_tokens)

    def draws(self, addresses: Sequence[int]) -> None:
        """Nothing is drawn."""

    def choose(self, logits: Tensor, draw: Tensor | None) -> Tensor:
        """The first of the largest logits."""
        return logits.argmax(-1)


@dataclass(frozen=True)
class Sampling:
    """Multinomial sampling with temperature, among the `top_k` tokens and the nucleus of probability `top_p`.

    A picture's draws are a function of (seed, its address), not of the batch that it falls into: the same seed gives
    the same captions with any batch size. `top_k`: null keeps all; `top_p`: 1 keeps all (Holtzman et al. 2020).
    """

    max_new_tokens: int  # tokens, EOS included
    temperature: float
    top_k: int | None
    top_p: float
    seed: int

    def __post_init__(self) -> None:
        _require_whole("max_new_tokens", self.max_new_tokens)
        for name, value in (("temperature", self.temperature), ("top_p", self.top_p)):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"decoding.{name}={value} must be a finite number, such as 1.0")
        if not self.temperature > 0:
            raise UserError(
                f"decoding.temperature={self.temperature} must be above 0; for the most probable word each time, "
                "use decoding=greedy"
            )
        if self.top_k is not None:
            _require_whole("top_k", self.top_k)
        _require_whole("seed", self.seed, least=0)
        if not 0 < self.top_p <= 1:
            raise UserError(f"decoding.top_p={self.top_p} must be above 0 and at most 1; 1 keeps every token")

    def draws(self, addresses: Sequence[int]) -> Tensor:
        """(B, T) uniform numbers, row b a function of (seed, addresses[b])."""
        # NumPy's generators hash the whole of both numbers; torch's CPU generator heeds only 32 bits of its seed.
        generators = (np.random.default_rng([self.seed, address]) for address in addresses)
        return torch.from_numpy(np.stack([g.random(self.max_new_tokens, dtype=np.float32) for g in generators]))

    def choose(self, logits: Tensor, draw: Tensor | None) -> Tensor:
        """The token in whose share of the cumulative probability, likeliest first, the draw falls."""
        assert draw is not None
        ordered, token_ids = (logits.float() / self.temperature).sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        if self.top_k is not None:
            probabilities[:, self.top_k :] = 0
        before = probabilities.cumsum(-1) - probabilities
        total = probabilities.sum(-1, keepdim=True)
        probabilities = probabilities.masked_fill(before >= self.top_p * total, 0)  # the nucleus; never empty
        cumulative = probabilities.cumsum(-1)
        target = draw.to(logits.device)[:, None] * cumulative[:, -1:]
        place = (cumulative <= target).sum(-1, keepdim=True)  # the first whose share ends beyond the target
        last = (probabilities > 0).sum(-1, keepdim=True) - 1  # against rounding at the very end
        return token_ids.gather(-1, place.minimum(last))[:, 0]


@torch.inference_mode()
def generate(
    captioner: ImageCaptioner, pixel_values: Tensor, decoding: Decoding, addresses: Sequence[int] | None = None
) -> list[Caption]:
    """One caption for each picture of (B, 3, H, W) uint8.

    Args:
        captioner: in eval mode; BOS and EOS are its decoder's.
        pixel_values: uint8, on the captioner's device.
        decoding: how each token is chosen.
        addresses: B whole numbers that tell the pictures apart in sampling; 0, 1, ... if not given.

    Raises:
        UserError: if `max_new_tokens` is more than the decoder has positions for.
    """
    limit = captioner.max_positions - 1  # BOS takes one
    if decoding.max_new_tokens > limit:
        raise UserError(f"decoding.max_new_tokens={decoding.max_new_tokens} is more than this model's limit of {limit}")
    config = captioner.network.decoder.config
    pictures = len(pixel_values)
    draws = decoding.draws(range(pictures) if addresses is None else addresses)
    encoded = captioner.encode(pixel_values)
    cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    token = torch.full((pictures,), config.bos_token_id, device=pixel_values.device)
    unfinished = torch.ones_like(token, dtype=torch.bool)
    tokens, log_probabilities = [], []
    for step in range(decoding.max_new_tokens):
        logits = captioner.network.decoder(
            input_ids=token[:, None], encoder_hidden_states=encoded, past_key_values=cache, use_cache=True
        ).logits[:, -1]  # (B, V)
        token = decoding.choose(logits, None if draws is None else draws[:, step])
        token = token.where(unfinished, config.eos_token_id)
        log_probability = logits.float().log_softmax(-1).gather(-1, token[:, None])[:, 0]
        tokens.append(token)
        log_probabilities.append(log_probability.where(unfinished, 0.0))
        unfinished = unfinished & (token != config.eos_token_id)
        if not unfinished.any():
            break
    return _captions(torch.stack(tokens, 1), torch.stack(log_probabilities, 1), config.eos_token_id)


def _captions(tokens: Tensor, log_probabilities: Tensor, eos_token_id: int) -> list[Caption]:
    """Rows (B, T) cut at their first EOS."""
    captions = []
    for row, total in zip(tokens.tolist(), log_probabilities.sum(1).tolist(), strict=True):
        length = row.index(eos_token_id) if eos_token_id in row else len(row)
        captions.append(Caption(row[:length], total / min(length + 1, len(row))))
    return captions


def _require_whole(name: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or value < least:
        raise UserError(f"decoding.{name}={value} must be a whole number of at least {least}")
