"""Generation at a GPU's speed: steps over fixed buffers, recorded once as CUDA graphs and replayed.

A step of GPT-2 is some 300 small kernels, which Python takes 5 ms to launch and a GPU less than 1 ms to run; replayed,
they are one launch. What a graph reads and writes stays where it is: keys and values with room for all tokens, an
additive mask, the step's number as a tensor, and the search's own tensors. So the host hardly ever waits: every fourth
step it looks at who has ended, in a copy made a step before; and the batch shrinks only to a half and to a quarter,
each of which has a graph of its own.

Without capture the same steps run on any device, which is how they are tested.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D

from captioning.model.captioner import ImageCaptioner
from captioning.model.generation.steps import Caption, Decoding, Search, StepwiseDecoder, searched

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

LOOK_EVERY = 4  # steps
MASK_MULTIPLE = 16  # keys; a mask of another length is copied by every layer's attention


def with_half_weights(model: Model, dtype: torch.dtype) -> Model:
    """A copy for inference under autocast in `dtype`, which casts the weights of linear layers anew for each batch.

    In the copy they are cast once, to the same numbers. It shares all other tensors with the model.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    copied = copy.deepcopy(model, memo=dict(shared))
    for layer in copied.modules():
        if isinstance(layer, nn.Linear | Conv1D):
            for name, parameter in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    return copied


def statically_from(
    captioner: ImageCaptioner, attended: Tensor, decoding: Decoding, addresses: Sequence[int]
) -> list[Caption]:
    """`generate_from`, over buffers that are kept with the captioner as long as they fit; on a GPU from graphs.

    Where a GPU can't record them, captions are made step by step from then on, which is said once.
    """
    with torch.cuda.device(attended.device) if attended.is_cuda else contextlib.nullcontext():
        decoder = kept.get(captioner)
        if decoder is None or not decoder.fits(captioner, attended, decoding):
            kept.pop(captioner, None)
            decoder = None  # before the next takes as much memory
            if captioner not in unrecorded:
                decoder = _recorded(captioner, attended, decoding)
        if decoder is not None:
            return decoder.captions(attended, decoding, addresses)
        stepwise = StepwiseDecoder(captioner, attended, decoding)
        return searched(stepwise, decoding.search(stepwise), decoding, addresses)


kept: WeakKeyDictionary[ImageCaptioner, StaticDecoder] = WeakKeyDictionary()
unrecorded: WeakSet[ImageCaptioner] = WeakSet()  # of which a GPU could record no graph


def _recorded(captioner: ImageCaptioner, attended: Tensor, decoding: Decoding) -> StaticDecoder | None:
    decoder = StaticDecoder(captioner, attended, decoding)
    try:
        decoder.record(decoding)
    except RuntimeError as error:  # of CUDA, or for want of memory
        reason = str(error).strip().split("\n")[0]
        log.warning("captions are made step by step, which is slower: no CUDA graph could be recorded (%s)", reason)
        unrecorded.add(captioner)
        return None
    kept[captioner] = decoder
    return decoder


class StaticDecoder(StepwiseDecoder):
    """`StepwiseDecoder` over buffers for B pictures, which serve one batch after the other.

    BOS is fed to all K beams, so that all steps are alike: what beams have in common is a matter of the mask.

    Args:
        captioner: in eval mode. Its weights may change in place.
        attended: (B, P, D), the first pictures; later batches are no larger.
        decoding: how many beams there are, and tokens at most.
    """

    def __init__(self, captioner: ImageCaptioner, attended: Tensor, decoding: Decoding):
        super().__init__(captioner, attended, decoding)
        self._made_for = _what_is_fixed(captioner, attended, decoding)
        kind, dtype, original = self.device.type, attended.dtype, self._decoder
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            self._decoder = with_half_weights(original, dtype)
        ours, theirs = (dict(m.named_parameters(remove_duplicate=False)) for m in (self._decoder, original))
        cast = [name for name in ours if ours[name].dtype != theirs[name].dtype]
        self._weights = [ours[name].data for name in cast], [theirs[name].data for name in cast]

        (pictures, patches, width), beams, config = attended.shape, decoding.beams, original.config
        room = -(-decoding.longest * beams // MASK_MULTIPLE) * MASK_MULTIPLE

        def keys_and_values(length: int) -> list[Tensor]:
            shape = (2, pictures, config.num_attention_heads, length, width // config.num_attention_heads)
            return [attended.new_zeros(shape, dtype=dtype) for _ in range(config.num_hidden_layers)]

        self._whole_own, self._whole_seen = keys_and_values(room), keys_and_values(patches)  # of tokens, of patches
        self._whole_mask = attended.new_empty(pictures, beams, room, dtype=dtype)  # -inf where a beam may not look
        self._whole_encoded = attended.new_empty(1).expand(pictures, patches, 1)  # only its shape is looked at
        self._beams = torch.arange(beams, device=self.device)
        self._slots = self._beams.clone()  # (K,) where the tokens of a step lie among those of the picture
        self._sizes = sorted({-(-pictures // part) for part in (1, 2, 4)})  # R
        self._steps = 0  # of this batch
        self._ended = torch.empty(pictures, dtype=torch.bool, pin_memory=attended.is_cuda)
        self._copied = torch.cuda.Event() if attended.is_cuda else None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by R
        self._search = decoding.search(self)

    def fits(self, captioner: ImageCaptioner, attended: Tensor, decoding: Decoding) -> bool:
        """Whether these pictures can be captioned by it."""
        return len(attended) <= self._sizes[-1] and self._made_for == _what_is_fixed(captioner, attended, decoding)

    def captions(self, attended: Tensor, decoding: Decoding, addresses: Sequence[int]) -> list[Caption]:
        """One for each address of (n, P, D); n may be less than B."""
        if self._weights[0]:
            torch._foreach_copy_(*self._weights)
        self._narrow(next(size for size in self._sizes if size >= len(attended)))
        self._restart()
        attended = attended.to(self._whole_mask.dtype)
        gpt2: Any = self._decoder.transformer
        for block, whole in zip(gpt2.h, self._whole_seen, strict=True):
            both = block.crossattention.c_attn(attended)  # (n, P, 2 * D)
            heads, width = whole.shape[2], whole.shape[4]
            whole[:, : len(attended)] = both.view(*both.shape[:2], 2, heads, width).permute(2, 0, 3, 1, 4)
        return searched(self, self._search, decoding, addresses)

    def _restart(self) -> None:
        self.step.zero_()
        self._steps = 0
        self._whole_mask.fill_(-torch.inf)
        torch._foreach_zero_(self._whole_own)  # what isn't finite would reach the next picture through its mask

    def _narrow(self, pictures: int) -> None:
        """Let R be `pictures`."""
        self._encoded, self._mask = self._whole_encoded[:pictures], self._whole_mask[:pictures]
        both: Any = [
            Cache(layers=[_StaticLayer(layer[:, :pictures], self._slots) for layer in layers])
            for layers in (self._whole_own, self._whole_seen)
        ]
        self._cache = EncoderDecoderCache(*both)

    def advance(self, search: Search) -> None:
        """A step, replayed where it was recorded; every few, see who has ended by then."""
        if graph := self._graphs.get(self.pictures):
            graph.replay()
        else:
            super().advance(search)
        self._steps += 1
        if self._steps % LOOK_EVERY == 0:
            self._ended[: self.pictures].copy_(search.ended(), non_blocking=True)
            if self._copied:
                self._copied.record()

    def going(self, search: Search) -> list[int] | None:
        """Who had not ended a step ago: while the host waits for that, the device has a step to do."""
        if self._steps < LOOK_EVERY or self._steps % LOOK_EVERY != 1:
            return None
        if self._copied:
            self._copied.synchronize()
        return [picture for picture, ended in enumerate(self._ended[: self.pictures].tolist()) if not ended]

    def logits(self, token_ids: Tensor) -> Tensor:
        """Feed each beam its next token (R, K); what may follow, (R, K, V)."""
        torch.add(self._beams, self.step, alpha=len(self._beams), out=self._slots)
        own = self._slots[None, :, None].expand(self.pictures, -1, 1)
        self._mask.scatter_(2, own, 0.0)
        return self._fed_with(token_ids, self._mask[:, None])

    def descend(self, parents: Tensor) -> None:
        """Let each beam go on from what the beam (R, K) was that it descends from now."""
        self._mask.copy_(self._mask.gather(1, parents[..., None].expand_as(self._mask)))

    def worth_holding(self, going: int) -> int:
        """The least of the sizes that so many pictures fit into."""
        return next(size for size in self._sizes if size >= going)

    def keep(self, pictures: list[int], search: Search) -> None:
        """Reduce the batch, and the search's, to these of its pictures."""
        index = torch.tensor(pictures, device=self.device)
        search.keep(index)
        for whole in (*self._whole_own, *self._whole_seen):
            whole[:, : len(pictures)] = whole[:, index]
        self._whole_mask[: len(pictures)] = self._whole_mask[index]
        self._narrow(len(pictures))

    def record(self, decoding: Decoding) -> None:
        """On a GPU, a step of each size as a graph. They never run at once, so they share their memory."""
        if self.device.type != "cuda":
            return
        kind, current = self.device.type, torch.cuda.current_stream()
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        pool, beside = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        # A stream that failed to record is left for the current one; what autocast casts now is not for later.
        with torch.cuda.stream(current), torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False):
            for size in reversed(self._sizes):
                self._narrow(size)
                beside.wait_stream(current)
                with torch.cuda.stream(beside):
                    for _ in range(2):  # in the first, libraries set themselves up
                        self._restart()
                        self._search.begin(decoding, size, range(size))
                        super().advance(self._search)
                current.wait_stream(beside)
                graph = torch.cuda.CUDAGraph()
                # Other threads, such as the one that pins batches, may call CUDA meanwhile.
                capture = torch.cuda.graph(graph, pool=pool, stream=beside, capture_error_mode="thread_local")
                with all_patches_seen(self._decoder), capture:
                    super().advance(self._search)
                self._graphs[size] = graph


@contextlib.contextmanager
def all_patches_seen(decoder: nn.Module) -> Iterator[None]:
    """Inside, the cross-attention gets no mask.

    Some versions of transformers, 5.17 among them, can't look while a graph is recorded whether a mask hides anything,
    and make one that hides nothing. With it torch computes in float32, from copies of all keys and values: on an H200
    13 of the 19 ms of a step with 512 pictures.
    """

    def unmasked(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {"encoder_attention_mask": None}

    gpt2: Any = decoder.get_submodule("transformer")
    hooks = [block.crossattention.register_forward_pre_hook(unmasked, with_kwargs=True) for block in gpt2.h]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _what_is_fixed(captioner: ImageCaptioner, attended: Tensor, decoding: Decoding) -> tuple[Any, ...]:
    """What a graph holds for as long as it lives: shapes, number formats, settings but for the seed, and addresses."""
    kind = attended.device.type
    settings = dataclasses.replace(decoding, seed=0) if hasattr(decoding, "seed") else decoding  # type: ignore[type-var]
    cast_to = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    weights = tuple(weight.data_ptr() for weight in captioner.network.decoder.parameters())
    config = captioner.network.decoder.config
    tokens = config.bos_token_id, config.eos_token_id
    return settings, attended.shape[1:], attended.dtype, attended.device, cast_to, weights, tokens


class _StaticLayer(DynamicLayer):
    """Keys and values of one layer, in buffers (R, heads, room, D / heads) that a step writes into at `slots`."""

    def __init__(self, both: Tensor, slots: Tensor):
        super().__init__()
        self.keys, self.values = both
        self._slots = slots
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put (R, heads, K, D / heads) at its place; all, and what the mask hides."""
        assert self.keys is not None and self.values is not None
        return self.keys.index_copy_(2, self._slots, key_states), self.values.index_copy_(2, self._slots, value_states)
