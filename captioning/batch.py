"""The one contract between data and model: what a batch of captioned pictures is, and how a picture must look.

Letters used in shape comments: B rows (one picture each), S packed tokens of a row, K captions of a row,
H and W the picture's height and width, P encoded patches (CLS included), D the encoder's width.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

ImageId = int | str  # COCO's number, or a file name
IGNORE = -100  # the label of a position that is not scored, cross-entropy's own default


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """How the encoder wants its pictures, read from its own checkpoint's processor.

    `size` is (height, width) in pixels. With `crop`, the shorter side is resized to `resize_shortest` and the middle
    cut out; without, the whole picture is squeezed into `size`. `mean` and `std` are per channel, for values in 0..1.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: str = "bilinear"  # or "bicubic", "nearest", "lanczos": a filter's name
    resize_shortest: int | None = None  # pixels; None squeezes


@dataclass(frozen=True)
class FrozenEncoder:
    """All that data needs of an encoder in order to run it once a picture and never again.

    Encoders of one `key` give the same outputs for pictures of the same format; `shape` is (P, D).
    """

    key: str
    shape: tuple[int, int]
    encode: Callable[[Tensor], Tensor]  # (B, 3, H, W) uint8 -> (B, P, D)


@dataclass(slots=True)
class CaptionBatch:
    """B pictures, each with up to K captions laid end to end in one row (packing).

    A picture comes either as `pixel_values` or, where the frozen encoder's outputs are kept, as the
    `encoder_hidden_states` that they would be encoded to, before any projection; the other one is None.

    `caption_index` is 1..K within a caption and 0 on padding, so that padding is known by position and never by
    comparing token ids. `labels` are already shifted: `labels[b, s]` is the token that follows `input_ids[b, s]` in
    the same caption, or `IGNORE`. `image_ids` and `caption_count` stay on the host, so that no one waits for a GPU in
    order to know them.
    """

    pixel_values: Tensor | None  # (B, 3, H, W) uint8
    input_ids: Tensor  # (B, S) int64
    position_ids: Tensor  # (B, S) int64, restarting at 0 in each caption
    caption_index: Tensor  # (B, S) int64
    labels: Tensor  # (B, S) int64
    image_ids: tuple[ImageId, ...]
    caption_count: int  # of all rows
    encoder_hidden_states: Tensor | None = None  # (B, P, D) in the number format that they are kept in

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "CaptionBatch":
        """The same batch with its tensors on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "CaptionBatch":
        """The same batch in page-locked host memory, from which a GPU copies asynchronously."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "CaptionBatch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def __len__(self) -> int:
        return self.input_ids.shape[0]
