"""Weights in and out of the Hugging Face ecosystem, checked: every one is loaded or listed as new.

Pretrained weights in, checked: every weight is loaded or listed as new, and nothing is fetched in silence.

Also what another picture size changes of them.

Whole captioners in and out of transformers' format: a folder or hub name of its `VisionEncoderDecoderModel`.
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
    CLIPImageProcessor,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)
from transformers.utils import logging as transformers_logging

from captioning.data.batch import PictureFormat
from captioning.errors import UserError
from captioning.hub import out_of_reach
from captioning.model.captioner import ImageCaptioner

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


POOLER = "encoder.pooler."  # a ViT's layer for classification, which captions don't need
# Of a checkpoint's generation settings, those that `decoding` decides instead.
OVERRULED = (
    *("max_length", "max_new_tokens", "min_length", "num_beams", "early_stopping", "length_penalty"),
    *("no_repeat_ngram_size", "repetition_penalty", "do_sample", "temperature", "top_k", "top_p"),
)


def load_model(name: str, key: str, allow_pickle: bool = False) -> ImageCaptioner:
    """The captioner, in eval mode, of a `VisionEncoderDecoderModel` with its own picture format and special tokens.

    `allow_pickle` is `load_weights`'s. BOS, from which captions start, and EOS are those that its `generate` would use,
    and become its decoder's.

    Raises:
        UserError: if weights, configuration or processor cannot be had, do not fit together, or name no BOS or EOS.
    """
    config = load_config(name, VisionEncoderDecoderConfig, key)
    quick_activation(config.decoder)
    network = load_weights(
        VisionEncoderDecoderModel,
        name,
        config,
        key,
        may_be_new=lambda weight: weight.startswith(POOLER),
        allow_pickle=allow_pickle,
    )
    network.encoder.pooler = None
    _take_special_tokens(network, name, key)
    picture_format = resized(load_picture_format(name, config.encoder, key), picture_size(config.encoder))
    return ImageCaptioner(network, picture_format).eval()


def _take_special_tokens(network: VisionEncoderDecoderModel, name: str, key: str) -> None:
    config: Any = network.config
    settings: Any = network.generation_config
    start = settings.decoder_start_token_id
    found = {
        "decoder_start_token_id": settings.bos_token_id if start is None else start,
        "eos_token_id": settings.eos_token_id,
    }
    bos, eos = (_one_token(token, what, name, key) for what, token in found.items())
    pad = settings.pad_token_id
    for part in (config, config.decoder, settings):
        part.bos_token_id, part.eos_token_id, part.pad_token_id = bos, eos, eos if pad is None else pad
    config.decoder_start_token_id = settings.decoder_start_token_id = bos
    defaults = GenerationConfig()
    overruled = {
        k: value for k in OVERRULED if (value := getattr(settings, k, None)) not in (None, getattr(defaults, k, None))
    }
    if overruled:
        log.info("%s: decoding=... decides, not its own %s", key, ", ".join(f"{k}={v}" for k, v in overruled.items()))


def _one_token(token: int | list[int] | None, what: str, name: str, key: str) -> int:
    among = sorted(set(token)) if isinstance(token, list) else [token]
    if among == [None]:
        raise UserError(f"{key}={name} names no {what} in its generation_config.json or config.json; add it there")
    if len(among) != 1 or among[0] is None:
        raise UserError(
            f"{key}={name} has {what}={token}; captions have one beginning and one end, so leave one number in its "
            "generation_config.json"
        )
    return among[0]


def save_model(captioner: ImageCaptioner, folder: Path, generation: dict[str, Any]) -> None:
    """Write weights (safetensors), configuration, generation settings and image processor, for transformers to load.

    `generation` holds keys of transformers' `GenerationConfig`; BOS, EOS and padding are the captioner's own.
    """
    network = _with_pooler(captioner)
    config: Any = captioner.network.config
    bos, eos, pad = config.decoder.bos_token_id, config.decoder.eos_token_id, config.pad_token_id
    network.generation_config = GenerationConfig(
        decoder_start_token_id=bos, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, **generation
    )
    network.save_pretrained(folder)
    for file in folder.iterdir():  # safetensors gives the file to its owner alone
        file.chmod(file.stat().st_mode | (folder / "config.json").stat().st_mode)
    _image_processor(captioner.picture_format).save_pretrained(folder)


def _with_pooler(captioner: ImageCaptioner) -> VisionEncoderDecoderModel:
    """The network with the pooler that transformers would otherwise miss, of zeros: its output goes nowhere."""
    config: Any = captioner.network.config
    network: Any = compose(config.encoder, config.decoder)
    network.encoder.pooler = ViTModel(config.encoder).pooler
    for weight in network.encoder.pooler.parameters():
        nn.init.zeros_(weight)
    network.load_state_dict(captioner.network.state_dict(), strict=False)
    return network.eval()


def _image_processor(picture_format: PictureFormat) -> Any:
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


def compose(encoder_config: ViTConfig, decoder_config: GPT2Config) -> VisionEncoderDecoderModel:
    """A `VisionEncoderDecoderModel` of this architecture with random weights."""
    return joined(ViTModel(encoder_config, add_pooling_layer=False), GPT2LMHeadModel(decoder_config))


def joined(encoder: ViTModel, decoder: GPT2LMHeadModel) -> VisionEncoderDecoderModel:
    """Both halves as one `VisionEncoderDecoderModel`, with the settings that its `generate` reads."""
    network = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    config = decoder.config
    for settings in (network.config, network.generation_config):
        settings.decoder_start_token_id = config.bos_token_id
        settings.bos_token_id = config.bos_token_id
        settings.eos_token_id = config.eos_token_id
        # unused by us; generate() fills finished captions with it
        settings.pad_token_id = config.eos_token_id if config.pad_token_id is None else config.pad_token_id
    return network
