"""Pretrained weights in, checked: every weight is loaded or listed as new, and nothing is fetched in silence.

Also what another picture size changes of them.
"""

import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)
from transformers.utils import logging as transformers_logging

from captioning.batch import PictureFormat
from captioning.errors import UserError
from captioning.hub import out_of_reach

log = logging.getLogger(__name__)

# Pillow's numbers, which processors store.
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def load_config(name: str, kind: type[PreTrainedConfig], key: str) -> Any:
    """The configuration of the checkpoint `name` (hub name or local folder).

    Raises:
        UserError: if it cannot be had, or describes another architecture than `kind`.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"{key}={name} must be a hub name or a local folder")
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=out_of_reach(), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unavailable(name, key, "config.json") from error
    if not isinstance(config, kind):
        raise UserError(f"{key}={name} is a {config.model_type} model; a {kind.model_type} model is needed here")
    return config


def load_weights(
    kind: type[PreTrainedModel],
    name: str,
    config: PreTrainedConfig,
    key: str,
    may_be_new: Callable[[str], bool] = lambda _: False,
    *,
    allow_pickle: bool,
    **arguments: Any,
) -> Any:
    """A model of class `kind` with the weights of checkpoint `name`.

    Every weight of the model comes from the checkpoint or satisfies `may_be_new`; weights that the checkpoint has
    beyond the model's (a pooler, a classifier) are logged. They are read from safetensors; with `allow_pickle` from
    PyTorch's own files too, but as data: what would run code is refused. Code that comes with a model never runs.

    Raises:
        UserError: if the weights cannot be had, or lack one, or hold one of another shape.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its load report says in a table what we check and log in a line
    try:
        loaded: Any = kind.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,  # also of half-precision files: trainer.precision says how to compute
            ignore_mismatched_sizes=True,  # reported in info, for one message on all that is wrong
            output_loading_info=True,
            local_files_only=out_of_reach(),
            use_safetensors=None if allow_pickle else True,
            weights_only=True,
            **arguments,
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{key}={name} holds a pickle with more than weights in it; it was not loaded, since that could run code. "
            "Name another checkpoint"
        ) from error
    except (OSError, SafetensorError) as error:
        if not allow_pickle and _lacks_safetensors(name):
            raise UserError(
                f"{key}={name} has no model.safetensors that can be had; weights in a pickle (pytorch_model.bin) are "
                "read with allow_pickle=true alone, as data: code in them does not run even so"
            ) from error
        raise _unavailable(name, key, "model.safetensors") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, info = loaded
    new = sorted(info["missing_keys"])
    lacking = [f"{weight} is missing" for weight in new if not may_be_new(weight)]
    misfits = [f"{weight} is {tuple(has)}, not {tuple(needs)}" for weight, has, needs in info["mismatched_keys"]]
    if wrong := lacking + sorted(misfits):
        raise UserError(
            f"{key}={name} does not hold the weights that its config.json promises ({len(wrong)} are wrong: "
            f"{'; '.join(wrong[:3])}); name an undamaged checkpoint in {key}"
        )
    log.info("%s: loaded %s", key, name)
    if unused := sorted(info["unexpected_keys"]):
        log.info("%s: not used from %s: %s", key, name, ", ".join(unused))
    return model


def _lacks_safetensors(name: str) -> bool:
    """Whether it is a folder without a file of safetensors but with one of PyTorch's own."""
    folder = Path(name)
    return (folder / "pytorch_model.bin").is_file() and not (folder / "model.safetensors").is_file()


def load_picture_format(name: str, config: ViTConfig, key: str) -> PictureFormat:
    """How the checkpoint's own processor prepares pictures: size, mean, std and filter.

    Raises:
        UserError: if the checkpoint has no `preprocessor_config.json`.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(name, local_files_only=out_of_reach(), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unavailable(name, key, "preprocessor_config.json") from error
    size = processor.size
    shortest = size.get("shortest_edge") if processor.do_resize else None
    final = processor.crop_size if getattr(processor, "do_center_crop", False) else size
    height, width = picture_size(config)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    # Its statistics are of bytes times this factor, usually 1/255; ours are of values in 0..1.
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    return PictureFormat(
        size=(final.get("height") or height, final.get("width") or width),
        mean=_of_channels(mean, scale),
        std=_of_channels(std, scale),
        resample=RESAMPLING[int(processor.resample)],
        resize_shortest=shortest,
    )


def _of_channels(values: Sequence[float], scale: float) -> tuple[float, float, float]:
    red, green, blue = (value / scale for value in values)
    return red, green, blue


def picture_size(config: ViTConfig) -> tuple[int, int]:
    """(height, width) of the pictures that a ViT takes, in pixels; a configuration may give one number for both."""
    size = config.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _unavailable(name: str, key: str, file: str) -> UserError:
    if Path(name).is_dir():
        damaged = ", which is damaged or cut short" if (Path(name) / file).is_file() else ""
        return UserError(f"{key}={name} is a folder without a readable {file}{damaged}; set {key} to one that has it")
    files = "config.json, model.safetensors" + (" and preprocessor_config.json" if key != "model.decoder" else "")
    return UserError(
        f"{key}={name} could not be fetched from the Hugging Face hub and is not in its local cache; "
        f"check the name and the network, or set {key} to a local folder that holds {files}"
    )


def quick_activation(config: GPT2Config) -> None:
    """Let a GPT-2 compute its activation in one kernel, not eight: the same function under another name."""
    if config.activation_function == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"


def interpolate_positions(encoder: ViTModel, image_size: int) -> None:
    """Resize a ViT to pictures of `image_size` pixels; its position embeddings are interpolated (bicubic), in place."""
    embeddings, config = encoder.embeddings, encoder.config
    patch_size: Any = config.patch_size
    if image_size < 1 or image_size % patch_size:
        raise UserError(f"model.image_size={image_size} must be a multiple of the patch size {patch_size}")
    patches = (image_size // patch_size) ** 2
    with torch.no_grad():
        as_if = torch.empty(1, patches + 1, config.hidden_size)
        positions = embeddings.interpolate_pos_encoding(as_if, image_size, image_size)
    embeddings.position_embeddings = nn.Parameter(positions.clone())
    embeddings.image_size = embeddings.patch_embeddings.image_size = (image_size, image_size)
    embeddings.patch_embeddings.num_patches = patches
    config.image_size = image_size


def resized(picture_format: PictureFormat, size: tuple[int, int]) -> PictureFormat:
    """The same format for pictures of (height, width) pixels; where the middle is cut out, the same part of it."""
    shortest = picture_format.resize_shortest
    if shortest is not None:
        shortest = round(shortest * min(size) / min(picture_format.size))
    return replace(picture_format, size=size, resize_shortest=shortest)
