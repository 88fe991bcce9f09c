"""The one seam for encoders: all that the project asks of a family of vision models, one entry for each.

To add a family, add an entry to `ENCODERS`. It fits where transformers' class gives `last_hidden_state` as prefix
tokens (CLS, registers, or none), then patches row by row. Everything else is read from the checkpoint's configuration
and processor.

torch and transformers are not imported here, so that a model of an unknown family is refused at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from captioning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from captioning.data.batch import PictureFormat


@dataclass(frozen=True)
class EncoderFamily:
    """What tells one family of encoders from another. Parameters and modules are named as in `model_class`.

    `sizes` says who decides on the size of pictures: the configuration, and positions are interpolated for another;
    the processor, where the class takes any size and the configuration has only that of pretraining (DINOv2's 518 for
    pictures of 224); or the configuration alone, where positions cannot be interpolated once and for all.
    """

    model_type: str  # transformers' name, in config.json
    name: str  # in sentences
    model_class: str  # of transformers
    positions: str | None = None  # the parameter of position embeddings, (1, P, D) or (P, D), if there is a table
    prefix: tuple[str, ...] = ()  # the parameters of tokens before the patches, each of (tokens, D) numbers
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the class, to leave out what captions don't need
    config: Mapping[str, Any] = field(default_factory=dict)  # of its configuration, likewise
    needs: Mapping[str, Any] = field(default_factory=dict)  # of its configuration: a checkpoint of others is refused
    spare: tuple[str, ...] = ()  # modules and parameters that captions don't need and that transformers wants to load
    joint: str | None = None  # transformers' name of the model of pictures and texts whose tower it is
    sizes: Literal["configured", "processed", "fixed"] = "configured"
    compiles: bool = True  # whether torch compiles a layer in seconds

    @property
    def undecayed(self) -> tuple[str, ...]:
        """Parameters that are no matrices, whatever their shape."""
        return (*self.prefix, *([self.positions] if self.positions else []))

    @property
    def model(self) -> Any:
        """The class, to be made with a configuration and `arguments`."""
        import transformers

        return getattr(transformers, self.model_class)

    def made(self, config: Any) -> Any:
        """A model with random weights, without what is spare."""
        return self.without_spare(self.model(config, **self.arguments))

    def without_spare(self, encoder: Any) -> Any:
        """The same model; what is spare computes nothing and has no weights, so that no weight lacks a gradient."""
        from torch import nn

        for name in self.spare:
            owner, leaf = owner_of(encoder, name)
            setattr(owner, leaf, nn.Identity() if isinstance(getattr(owner, leaf), nn.Module) else None)
        return encoder

    def is_spare(self, weight: str) -> bool:
        """Whether a weight, by its name, belongs to what is spare."""
        return any(weight == name or weight.startswith(f"{name}.") for name in self.spare)

    def prefix_tokens(self, encoder: Any) -> int:
        """How many tokens come before the patches."""
        return sum(encoder.get_parameter(name).numel() for name in self.prefix) // encoder.config.hidden_size

    def weights_for(self, encoder: Any, size: tuple[int, int]) -> dict[str, Tensor]:
        """The weights that differ for pictures of `size`: position embeddings, by the library's own (bicubic) way.

        Raises:
            UserError: if patches don't tile such a picture, or the family takes no other size than its own.
        """
        config, (height, width) = encoder.config, size
        if self.sizes == "fixed":
            own = " x ".join(map(str, picture_size(config)))
            raise UserError(
                f"model.image_size={height} is not for a {self.name}, whose positions are made for pictures of "
                f"{own} pixels; leave model.image_size=null"
            )
        rows, columns = _strides(config)
        if height % rows or width % columns:
            given = height if height == width else f"{height} x {width}"
            raise UserError(f"model.image_size={given} must be a multiple of the patch size {rows}")
        if self.positions is None:
            return {}
        if height != width:
            raise UserError(f"pictures of {height} x {width} pixels are not for a {self.name}; square ones are needed")
        positions = encoder.get_parameter(self.positions).detach()
        # those of prefix tokens stay, and registers have none
        tokens = positions.shape[-2] - patches_in(config, picture_size(config)) + patches_in(config, size)
        as_if = positions.new_empty(1, tokens, positions.shape[-1])
        found = encoder.embeddings.interpolate_pos_encoding(as_if, height, width)
        return {self.positions: found.detach().reshape(*positions.shape[:-2], tokens, -1).clone()}


def owner_of(model: Any, name: str) -> tuple[Any, str]:
    """The module that holds the module or parameter `name`, and its name there."""
    parent, _, leaf = name.rpartition(".")
    return model.get_submodule(parent), leaf


REGISTERS = "embeddings.register_tokens"
CLS, TABLE = "embeddings.cls_token", "embeddings.position_embeddings"
NO_POOLER: dict[str, Any] = {"arguments": {"add_pooling_layer": False}, "spare": ("pooler",)}

VIT = EncoderFamily("vit", "ViT", "ViTModel", TABLE, prefix=(CLS,), **NO_POOLER)
SIGLIP = EncoderFamily(
    "siglip_vision_model",
    "SigLIP",
    "SiglipVisionModel",
    "embeddings.position_embedding.weight",
    config={"vision_use_head": False},  # which pools patches
    joint="siglip",  # SigLIP 2 with pictures of one size too
)
DINOV2 = EncoderFamily(
    "dinov2",
    "DINOv2",
    "Dinov2Model",
    TABLE,
    prefix=(CLS,),
    config={"use_mask_token": False},
    sizes="processed",
)

ENCODERS = {
    family.model_type: family
    for family in (
        VIT,
        EncoderFamily(  # the distilled ones; others are ViTs, by their config.json too
            "deit", "DeiT", "DeiTModel", TABLE, prefix=(CLS, "embeddings.distillation_token"), **NO_POOLER
        ),
        EncoderFamily(
            "beit", "BEiT", "BeitModel", prefix=(CLS,), config={"use_mask_token": False}, sizes="fixed", **NO_POOLER
        ),
        DINOV2,
        EncoderFamily(
            "dinov2_with_registers",
            "DINOv2 with registers",
            "Dinov2WithRegistersModel",
            TABLE,
            prefix=(CLS, REGISTERS),
            spare=("embeddings.mask_token",),
            sizes="processed",
        ),
        EncoderFamily(
            "dinov3_vit",
            "DINOv3",
            "DINOv3ViTModel",
            prefix=(CLS, REGISTERS),
            config=dict.fromkeys(  # in training they move positions by chance that has no address
                ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
            ),
            spare=("embeddings.mask_token",),
            sizes="processed",
        ),
        EncoderFamily(
            "clip_vision_model",
            "CLIP",
            "CLIPVisionModel",
            "embeddings.position_embedding.weight",
            prefix=("embeddings.class_embedding",),
            spare=("post_layernorm",),  # of the pooled state alone
            joint="clip",
        ),
        SIGLIP,
        EncoderFamily(
            "swin",
            "Swin",
            "SwinModel",
            arguments={"add_pooling_layer": False},
            needs={"use_absolute_embeddings": False},
            sizes="processed",
            compiles=False,  # minutes, for windows that are cut and shifted in Python
        ),
    )
}
JOINT = {family.joint: family.model_type for family in ENCODERS.values() if family.joint}  # with towers of text
FROM_SCRATCH = {"vit": VIT, "siglip": SIGLIP, "dinov2": DINOV2}  # families of encoders with random weights


def one_of(names: Iterable[str]) -> str:
    """Names as a sentence has them: "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def family_of(encoder: Any) -> EncoderFamily:
    """The entry of an encoder."""
    return ENCODERS[encoder.config.model_type]


def picture_size(config: Any) -> tuple[int, int]:
    """(height, width) in pixels of the pictures that an encoder takes; a configuration may give one for both."""
    return _pair(config.image_size)


def patch_grid(config: Any, size: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of the patches of a picture of `size`, (height, width) in pixels."""
    high, wide = _strides(config)
    return size[0] // high, size[1] // wide


def patches_in(config: Any, size: Sequence[int]) -> int:
    """How many patches a picture of `size` has."""
    rows, columns = patch_grid(config, size)
    return rows * columns


def _strides(config: Any) -> tuple[int, int]:
    """(height, width) in pixels of what one of the encoder's last hidden states is of."""
    high, wide = _pair(config.patch_size)
    halvings = len(getattr(config, "depths", [1])) - 1  # between the stages of a Swin
    return high * 2**halvings, wide * 2**halvings


def _pair(one_or_two: int | Sequence[int]) -> tuple[int, int]:
    return (one_or_two, one_or_two) if isinstance(one_or_two, int) else (one_or_two[0], one_or_two[1])


# Pillow's numbers, which processors store.
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def picture_format_of(processor: Any) -> PictureFormat:
    """What transformers' image processor says that it does with a picture, at the size that it says.

    Raises:
        ValueError: of a setting that has no meaning here, in words.
    """
    from captioning.data.batch import PictureFormat

    does = {
        step: bool(getattr(processor, f"do_{step}", False)) for step in ("resize", "center_crop", "pad", "thumbnail")
    }
    for step in ("pad", "thumbnail"):
        if does[step]:
            raise ValueError(f"do_{step}=true")
    shortest, whole = _resizing(processor) if does["resize"] else (None, None)
    size = whole or (shortest, shortest)
    if does["center_crop"]:
        size = (processor.crop_size["height"], processor.crop_size["width"])
    elif shortest and hasattr(processor, "crop_pct"):
        size, shortest = (shortest, shortest), int(shortest / processor.crop_pct)  # a ConvNeXT's
    height, width = size
    if not height or not width:
        raise ValueError("neither do_resize nor do_center_crop")
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    # Its statistics are of bytes times this factor, usually 1/255; ours are of values in 0..1.
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    if not scale or not all(_of_channels(std, 1)):
        raise ValueError(f"image_std={std} and rescale_factor={processor.rescale_factor}")
    return PictureFormat(
        size=(height, width),
        mean=_of_channels(mean, scale),
        std=_of_channels(std, scale),
        resample=_filter(getattr(processor, "resample", None)),
        resize_shortest=shortest,
        resize_whole=None if whole == size else whole,
        resizes=does["resize"],
    )


def _resizing(processor: Any) -> tuple[int | None, tuple[int, int] | None]:
    """The shorter side after resizing, or the (height, width) that the whole picture is squeezed into."""
    given = {name: value for name, value in dict(processor.size).items() if value}
    if given.keys() == {"shortest_edge"}:
        shortest = given["shortest_edge"]
        squeezes = hasattr(processor, "crop_pct") and shortest >= 384  # a ConvNeXT's
        return (None, (shortest, shortest)) if squeezes else (shortest, None)
    if given.keys() == {"height", "width"}:
        return None, (given["height"], given["width"])
    raise ValueError(f"size={given}")


def _filter(resample: object) -> str:
    if resample is None:
        return "bilinear"  # as the processors have it
    if not isinstance(resample, int) or int(resample) not in RESAMPLING:
        raise ValueError(f"resample={resample}")
    return RESAMPLING[int(resample)]


def _of_channels(values: float | Sequence[float], scale: float) -> tuple[float, float, float]:
    every = [values] * 3 if isinstance(values, int | float) else values
    if not isinstance(every, list | tuple) or len(every) != 3:
        raise ValueError(f"image_mean or image_std {values}, where each of three channels needs one")
    red, green, blue = (value / scale for value in every)
    return red, green, blue


def resized(picture_format: PictureFormat, size: tuple[int, int]) -> PictureFormat:
    """The same format for pictures of (height, width) pixels; where the middle is cut out, the same part of it."""
    shortest, whole = picture_format.resize_shortest, picture_format.resize_whole
    if shortest is not None:
        shortest = round(shortest * min(size) / min(picture_format.size))
    if whole is not None:
        high, wide = (round(w * new / old) for w, new, old in zip(whole, size, picture_format.size, strict=True))
        whole = high, wide
    return replace(picture_format, size=size, resize_shortest=shortest, resize_whole=whole)


def processor_of(picture_format: PictureFormat) -> Any:
    """transformers' image processor that does the same."""
    from transformers import CLIPImageProcessor, DeiTImageProcessor, ViTImageProcessor

    height, width = picture_format.size
    size = {"height": height, "width": width}
    common: dict[str, Any] = {
        "image_mean": list(picture_format.mean),
        "image_std": list(picture_format.std),
        "resample": {name: number for number, name in RESAMPLING.items()}[picture_format.resample],
    }
    if picture_format.resize_shortest is not None:
        return CLIPImageProcessor(size={"shortest_edge": picture_format.resize_shortest}, crop_size=size, **common)
    if picture_format.resize_whole is not None:
        high, wide = picture_format.resize_whole
        return DeiTImageProcessor(size={"height": high, "width": wide}, crop_size=size, **common)
    if not picture_format.resizes:
        return DeiTImageProcessor(do_resize=False, crop_size=size, **common)
    return ViTImageProcessor(size=size, **common)
