"""What all decodings share: the way in, a caption as it comes out, and the decoder that is fed one token a step.

A picture is encoded once, and its keys and values are projected once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner


class Caption(NamedTuple):
    """Generated token ids, EOS excluded, and their mean log-probability in nats per token, EOS included.

    The log-probability is the model's own, whatever temperature, filter or penalty chose the tokens.
    """

    token_ids: list[int]
    log_probability: float
    alternatives: tuple[Caption, ...] = ()  # the n best of a beam search, best first and this one among them


def caption_of(tokens: Sequence[int], log_probability_sum: float, eos_token_id: int) -> Caption:
    """A row of tokens cut at its first EOS, with the sum of its log-probabilities up to there.

    >>> caption_of([5, 7, 2, 2], -6.0, eos_token_id=2)
    Caption(token_ids=[5, 7], log_probability=-2.0, alternatives=())
    """
    row = list(tokens)
    length = row.index(eos_token_id) if eos_token_id in row else len(row)
    return Caption(row[:length], log_probability_sum / min(length + 1, len(row)))


class Decoding(Protocol):
    """How captions come about: `Greedy`, `Sampling` or `Beam`."""

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of a caption, EOS included."""

    @property
    def room(self) -> int:
        """The most tokens that the decoder is fed for a picture, those of all its beams together."""

    def captions(self, decoder: StepwiseDecoder, addresses: Sequence[int]) -> list[Caption]:
        """One for each of the decoder's pictures, which these numbers tell apart where something is drawn."""


def require_room(captioner: ImageCaptioner, decoding: Decoding) -> None:
    """Raise UserError if the decoder has too few positions for the longest caption."""
    limit = captioner.max_positions - 1  # BOS takes one
    if decoding.max_new_tokens > limit:
        raise UserError(f"decoding.max_new_tokens={decoding.max_new_tokens} is more than this model's limit of {limit}")


@torch.inference_mode()
def generate(
    captioner: ImageCaptioner, pixel_values: Tensor, decoding: Decoding, addresses: Sequence[int] | None = None
) -> list[Caption]:
    """One caption for each picture of (B, 3, H, W) uint8.

    Args:
        captioner: in eval mode; BOS and EOS are its decoder's.
        pixel_values: uint8, on the captioner's device.
        decoding: how tokens are chosen.
        addresses: B whole numbers that tell the pictures apart in sampling; 0, 1, ... if not given.

    Raises:
        UserError: if `max_new_tokens` is more than the decoder has positions for.
    """
    return generate_from(captioner, captioner.encode(pixel_values), decoding, addresses)


@torch.inference_mode()
def generate_from(
    captioner: ImageCaptioner, attended: Tensor, decoding: Decoding, addresses: Sequence[int] | None = None
) -> list[Caption]:
    """`generate`, of pictures encoded already: `attended` (B, P, D) is what `ImageCaptioner.attended` gives."""
    require_room(captioner, decoding)
    decoder = StepwiseDecoder(captioner, attended, decoding.room)
    return decoding.captions(decoder, range(len(attended)) if addresses is None else addresses)


# Of the pictures held. At full size on a CPU, the copy that a quarter's leaving takes is earned back in three steps of
# greedy decoding and in one of five beams.
LEAVING_SHARE = 0.25


class StepwiseDecoder:
    """Pictures and the beams that describe them, with all that the decoder has computed of both.

    The beams of a picture lie side by side in the sequence dimension: all query the one set of the picture's keys,
    and which of the earlier tokens a beam descends from is a matter of the mask, so no cache is ever reordered.

    Args:
        captioner: in eval mode; BOS and EOS are its decoder's.
        attended: (B, P, D), the encoded pictures, on the captioner's device.
        room: how many tokens a picture will be fed, those of all its beams together.
    """

    def __init__(self, captioner: ImageCaptioner, attended: Tensor, room: int):
        self._decoder = captioner.network.decoder
        self._encoded = attended
        config = self._decoder.config
        own: Any = Cache(layers=[_RoomyLayer(room) for _ in range(config.num_hidden_layers)])
        pictures: Any = DynamicCache(config=config)  # filled at the first step, and read from then on
        self._caches = own, pictures
        self._cache = EncoderDecoderCache(own, pictures)
        self.bos_token_id, self.eos_token_id = config.bos_token_id, config.eos_token_id
        self.vocab_size = config.vocab_size

    @property
    def pictures(self) -> int:
        """R, how many pictures are in the batch."""
        return len(self._encoded)

    @property
    def device(self) -> torch.device:
        return self._encoded.device

    def bos(self) -> Tensor:
        """(R, 1) token ids that every caption starts from."""
        return torch.full((self.pictures, 1), self.bos_token_id, device=self.device)

    def logits(self, token_ids: Tensor, position: int, mask: Tensor | None = None) -> Tensor:
        """Feed a token to each beam; what may come next.

        Args:
            token_ids: (R, K).
            position: of these tokens in their captions, BOS being at 0.
            mask: (R, 1, K, tokens fed so far and now) boolean, true where a beam may attend to a token; None where
                there is one beam, and it attends to all.

        Returns:
            (R, K, V) logits.
        """
        # A compiled decoder, too: torch.compile can't do with caches that are views of room written into.
        with torch.compiler.set_stance("force_eager"):
            outputs: Any = self._decoder(
                input_ids=token_ids,
                position_ids=torch.full_like(token_ids[:1], position),
                attention_mask=mask,
                encoder_hidden_states=self._encoded,
                past_key_values=self._cache,
                use_cache=True,
            )
        return outputs.logits

    def keep(self, rows: Tensor) -> None:
        """Reduce the batch to these of its rows."""
        self._encoded = self._encoded[rows]
        for cache in self._caches:
            for layer in cache.layers:
                layer.batch_select_indices(rows)


def worth_leaving(unfinished: int, held: int) -> bool:
    """Whether so many pictures of the batch have ended that copying the others out pays."""
    return held - unfinished >= LEAVING_SHARE * held


class _RoomyLayer(DynamicLayer):
    """Keys and values of one layer with room for all tokens from the start: a step copies its own, not all before.

    On a CPU at full size beam search is 4% faster so with 20 tokens and 10% with 40, greedy decoding 2% with 20.
    """

    def __init__(self, room: int):
        super().__init__()
        self._room = room
        self._length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (R, heads, K, D / heads); all so far, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            pictures, heads, _, width = key_states.shape
            self._all_keys, self._all_values = key_states.new_empty(2, pictures, heads, self._room, width)
        start, self._length = self._length, self._length + key_states.shape[-2]
        self._all_keys[:, :, start : self._length] = key_states
        self._all_values[:, :, start : self._length] = value_states
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone."""
        self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = self._all_keys[:, :, : self._length], self._all_values[:, :, : self._length]
        self.keys, self.values = keys, values
        return keys, values
