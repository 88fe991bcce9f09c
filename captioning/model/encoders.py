"""The one seam for encoders: all that the project asks of a family of vision models, one entry for each.

To add a family, add an entry to `ENCODERS`. It fits where transformers' class gives `last_hidden_state` as prefix
tokens (CLS, registers, or none), then patches row by row, and can interpolate its position embeddings. Everything
else is read from the checkpoint's configuration and processor.

torch and transformers are not imported here, so that a model of an unknown family is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from captioning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from captioning.data.batch import PictureFormat


@dataclass(frozen=True)
class EncoderFamily:
    """What tells one family of encoders from another. Parameters and modules are named as in `model_class`."""

    model_type: str  # transformers' name, in config.json
    name: str  # in sentences
    model_class: str  # of transformers
    positions: str  # the parameter of position embeddings, (1, P, D) or (P, D)
    prefix: tuple[str, ...] = ()  # the parameters of tokens before the patches, each of (tokens, D) numbers
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the class, to leave out what captions don't need
    config: Mapping[str, Any] = field(default_factory=dict)  # of its configuration, likewise
    spare: str | None = None  # a module that `arguments` leave out, and that transformers wants to load

    @property
    def undecayed(self) -> tuple[str, ...]:
        """Parameters that are no matrices, whatever their shape."""
        return (*self.prefix, self.positions)

    @property
    def model(self) -> Any:
        """The class, to be made with a configuration and `arguments`."""
        import transformers

        return getattr(transformers, self.model_class)

    def prefix_tokens(self, encoder: Any) -> int:
        """How many tokens come before the patches."""
        return sum(encoder.get_parameter(name).numel() for name in self.prefix) // encoder.config.hidden_size

    def interpolated_positions(self, encoder: Any, image_size: int) -> Tensor:
        """Its position embeddings for square pictures of `image_size` pixels, by the library's own (bicubic) way.

        Raises:
            UserError: if patches don't tile such a picture.
        """
        patch_size = encoder.config.patch_size
        if image_size % patch_size:
            raise UserError(f"model.image_size={image_size} must be a multiple of the patch size {patch_size}")
        positions = encoder.get_parameter(self.positions).detach()
        tokens = self.prefix_tokens(encoder) + (image_size // patch_size) ** 2
        as_if = positions.new_empty(1, tokens, positions.shape[-1])
        found = encoder.embeddings.interpolate_pos_encoding(as_if, image_size, image_size)
        return found.detach().reshape(*positions.shape[:-2], tokens, -1).clone()


VIT = EncoderFamily(
    model_type="vit",
    name="ViT",
    model_class="ViTModel",
    positions="embeddings.position_embeddings",
    prefix=("embeddings.cls_token",),
    arguments={"add_pooling_layer": False},
    spare="pooler",
)

ENCODERS = {family.model_type: family for family in (VIT,)}
FROM_SCRATCH = VIT  # the family of encoders with random weights


def family_of(encoder: Any) -> EncoderFamily:
    """The entry of an encoder."""
    return ENCODERS[encoder.config.model_type]


def picture_size(config: Any) -> tuple[int, int]:
    """(height, width) in pixels of the pictures that an encoder takes; a configuration may give one for both."""
    return _pair(config.image_size)


def patch_grid(config: Any, size: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of the patches of a picture of `size`, (height, width) in pixels."""
    high, wide = _pair(config.patch_size)
    return size[0] // high, size[1] // wide


def _pair(one_or_two: int | Sequence[int]) -> tuple[int, int]:
    return (one_or_two, one_or_two) if isinstance(one_or_two, int) else (one_or_two[0], one_or_two[1])


# Pillow's numbers, which processors store.
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def picture_format_of(processor: Any, config: Any) -> PictureFormat:
    """What transformers' image processor does with a picture, for an encoder of this configuration."""
    from captioning.data.batch import PictureFormat

    shortest = processor.size.get("shortest_edge") if processor.do_resize else None
    final = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    height, width = picture_size(config)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    # Its statistics are of bytes times this factor, usually 1/255; ours are of values in 0..1.
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    found = PictureFormat(
        size=(final.get("height") or height, final.get("width") or width),
        mean=_of_channels(mean, scale),
        std=_of_channels(std, scale),
        resample=RESAMPLING[int(processor.resample)],
        resize_shortest=shortest,
    )
    return resized(found, (height, width))


def _of_channels(values: Sequence[float], scale: float) -> tuple[float, float, float]:
    red, green, blue = (value / scale for value in values)
    return red, green, blue


def resized(picture_format: PictureFormat, size: tuple[int, int]) -> PictureFormat:
    """The same format for pictures of (height, width) pixels; where the middle is cut out, the same part of it."""
    shortest = picture_format.resize_shortest
    if shortest is not None:
        shortest = round(shortest * min(size) / min(picture_format.size))
    return replace(picture_format, size=size, resize_shortest=shortest)


def processor_of(picture_format: PictureFormat) -> Any:
    """transformers' image processor that does the same."""
    from transformers import CLIPImageProcessor, ViTImageProcessor

    height, width = picture_format.size
    size = {"height": height, "width": width}
    common: dict[str, Any] = {
        "image_mean": list(picture_format.mean),
        "image_std": list(picture_format.std),
        "resample": {name: number for number, name in RESAMPLING.items()}[picture_format.resample],
    }
    if picture_format.resize_shortest is None:
        return ViTImageProcessor(size=size, **common)
    return CLIPImageProcessor(size={"shortest_edge": picture_format.resize_shortest}, crop_size=size, **common)
