"""What all decodings share: a caption as it comes out, the loop of steps, and the decoder that is fed one token a step.

A picture is encoded once, and its keys and values are projected once and kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def caption_of(tokens: Sequence[int], log_probability_sum: float, eos_token_id: int, given: int = 0) -> Caption:
    """Tokens cut at their first EOS, with the sum of their log-probabilities up to there, without the first, `given`.

    >>> caption_of([5, 7, 2, 2], -6.0, eos_token_id=2)
    Caption(token_ids=[5, 7], log_probability=-2.0, alternatives=())
    """
    ids = list(tokens)
    length = ids.index(eos_token_id) if eos_token_id in ids else len(ids)
    return Caption(ids[:length], log_probability_sum / (min(length + 1, len(ids)) - given))


class Decoding(Protocol):
    """How captions come about: `Greedy`, `Sampling`, `Beam` or `Rollouts`."""

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of a caption, EOS included, but for those of a prefix."""

    @property
    def longest(self) -> int:
        """T, the most tokens of a caption with its prefix."""

    @property
    def beams(self) -> int:
        """K, how many captions of a picture are on their way at once."""

    def search(self, decoder: StepwiseDecoder) -> Search:
        """Where the captions of the decoder's pictures are on their way, still at none."""


def require_room(captioner: ImageCaptioner, decoding: Decoding) -> None:
    """Raise UserError if the decoder has too few positions for the longest caption."""
    limit = captioner.max_positions - 1  # BOS takes one
    if decoding.max_new_tokens <= limit < decoding.longest:
        prefix = decoding.longest - decoding.max_new_tokens
        raise UserError(
            f"decoding.prefix has {prefix} tokens, which with decoding.max_new_tokens={decoding.max_new_tokens} is "
            f"more than this model's limit of {limit}; shorten one of them"
        )
    if decoding.max_new_tokens > limit:
        raise UserError(f"decoding.max_new_tokens={decoding.max_new_tokens} is more than this model's limit of {limit}")


class Search:
    """How far the captions of R pictures are, in tensors that each step writes in place and asks no value of.

    So a step can be recorded on a GPU and replayed. The tensors are made for B pictures; those at hand lie in the first
    R places of each.
    """

    last: Tensor  # (R, K) the tokens to feed next; BOS at first

    def __init__(self, whole: Mapping[str, Tensor]):
        self._whole = whole
        self.narrow(len(whole["last"]))

    def narrow(self, pictures: int) -> None:
        """Let R be `pictures`."""
        for name, tensor in self._whole.items():
            setattr(self, name, tensor[:pictures])

    def keep(self, pictures: Tensor) -> None:
        """Reduce the batch to these, given by their numbers (R,)."""
        for tensor in self._whole.values():
            tensor[: len(pictures)] = tensor[pictures]
        self.narrow(len(pictures))

    def begin(self, decoding: Any, pictures: int, addresses: Sequence[int]) -> None:
        """Back to no tokens, as `decoding` wants it, for the pictures of these addresses; any others have ended."""
        raise NotImplementedError

    def draw(self, places: Sequence[int]) -> None:
        """Before a step: the random numbers it needs, of the pictures that had these numbers at the beginning."""

    def advance(self, logits: Tensor, decoder: StepwiseDecoder) -> None:
        """Choose the next tokens, given their logits (R, K, V), or (R, 1, V) where all beams have begun alike."""
        raise NotImplementedError

    def ended(self) -> Tensor:
        """(R,) whether nothing more comes of a picture."""
        raise NotImplementedError

    def captions(self, pictures: Sequence[int]) -> list[Caption]:
        """Of those that have these numbers among the R; fetched from the device together."""
        raise NotImplementedError


def searched(decoder: StepwiseDecoder, search: Search, decoding: Decoding, addresses: Sequence[int]) -> list[Caption]:
    """One caption for each address, of the decoder's pictures, which these numbers tell apart in sampling."""
    captions: dict[int, Caption] = {}
    places = list(range(decoder.pictures))  # of the R pictures, among all; what is more than the addresses is padding
    search.begin(decoding, len(places), addresses)

    def leave(pictures: Sequence[int]) -> None:
        real = [i for i in pictures if places[i] < len(addresses)]
        captions.update(zip([places[i] for i in real], search.captions(real), strict=True))

    for _ in range(decoding.longest):
        search.draw(places)
        decoder.advance(search)
        going = decoder.going(search)
        if going is None:
            continue
        if not going:
            break
        held = decoder.worth_holding(len(going))
        if held < len(places):
            ended = sorted(set(range(len(places))).difference(going))
            leave(ended)
            kept = sorted(going + ended[: held - len(going)])
            decoder.keep(kept, search)
            places = [places[i] for i in kept]
    leave(range(len(places)))
    return [captions[place] for place in range(len(addresses))]


# Of the pictures held. At full size on a CPU, the copy that a quarter's leaving takes is earned back in three steps of
# greedy decoding and in one of five beams.
LEAVING_SHARE = 0.25


class StepwiseDecoder:
    """R pictures and the K beams that describe each, with all that the decoder has computed of both.

    The beams of a picture lie side by side in the sequence dimension: all query the one set of the picture's keys,
    and which of the earlier tokens a beam descends from is a matter of the mask, so no cache is ever reordered.

    Args:
        captioner: in eval mode; BOS and EOS are its decoder's.
        attended: (B, P, D), the encoded pictures, on the captioner's device.
        decoding: how many beams there are, and tokens at most.
    """

    def __init__(self, captioner: ImageCaptioner, attended: Tensor, decoding: Decoding):
        self._decoder = captioner.network.decoder
        self._encoded = attended
        config = self._decoder.config
        self.bos_token_id, self.eos_token_id = config.bos_token_id, config.eos_token_id
        self.vocab_size = config.vocab_size
        self.device = attended.device
        self.step = torch.zeros(1, dtype=torch.long, device=self.device)  # how many tokens each beam was fed before
        self._fed = 0  # how many a picture was fed, those of all its beams together
        room = 1 + (decoding.longest - 1) * decoding.beams  # BOS once, then a token for each beam
        own: Any = Cache(layers=[_RoomyLayer(room) for _ in range(config.num_hidden_layers)])
        pictures: Any = DynamicCache(config=config)  # filled at the first step, and read from then on
        self._caches = own, pictures
        self._cache = EncoderDecoderCache(own, pictures)
        # (R, K, room) whether a beam descends from a token that was fed
        self._descends = torch.zeros(len(attended), decoding.beams, room, dtype=torch.bool, device=self.device)

    @property
    def pictures(self) -> int:
        """R, how many pictures are in the batch."""
        return len(self._encoded)

    def advance(self, search: Search) -> None:
        """A step: feed the beams their last tokens, and let the next be chosen."""
        search.advance(self.logits(search.last), self)
        self.step += 1

    def logits(self, token_ids: Tensor) -> Tensor:
        """Feed each beam its next token (R, K); what may follow, (R, K, V). Of BOS, one is fed for all: (R, 1, V)."""
        if self._fed == 0:
            token_ids = token_ids[:, :1]
        fed, now = self._fed, self._fed + token_ids.shape[1]
        beams, mask = self._descends.shape[1], None
        if beams > 1:
            self._descends[:, :, fed:now] = torch.eye(beams, dtype=torch.bool, device=self.device) if fed else True
            mask = self._descends[:, None, :, :now] if fed else None
        self._fed = now
        return self._fed_with(token_ids, mask)

    def _fed_with(self, token_ids: Tensor, mask: Tensor | None) -> Tensor:
        outputs: Any = self._decoder(
            input_ids=token_ids,
            position_ids=self.step.expand(1, token_ids.shape[1]),
            attention_mask=mask,
            encoder_hidden_states=self._encoded,
            past_key_values=self._cache,
            use_cache=True,
        )
        return outputs.logits

    def descend(self, parents: Tensor) -> None:
        """Let each beam go on from what the beam (R, K) was that it descends from now."""
        self._descends = self._descends.gather(1, parents[..., None].expand_as(self._descends))

    def going(self, search: Search) -> list[int] | None:
        """The numbers of the pictures whose captions go on, among the R; None where it isn't worth a look now."""
        return [picture for picture, ended in enumerate(search.ended().tolist()) if not ended]

    def worth_holding(self, going: int) -> int:
        """How many pictures to hold while so many go on: when many have ended, copying the others out pays."""
        return going if self.pictures - going >= LEAVING_SHARE * self.pictures else self.pictures

    def keep(self, pictures: list[int], search: Search) -> None:
        """Reduce the batch, and the search's, to these of its pictures."""
        index = torch.tensor(pictures, device=self.device)
        search.keep(index)
        self._encoded, self._descends = self._encoded[index], self._descends[index]
        for cache in self._caches:
            for layer in cache.layers:
                layer.batch_select_indices(index)


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
        """Keep these pictures alone."""
        self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = self._all_keys[:, :, : self._length], self._all_values[:, :, : self._length]
        self.keys, self.values = keys, values
        return keys, values
