"""Whole captioners in and out of transformers' format: a folder or hub name of its `VisionEncoderDecoderModel`."""

import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
    ViTModel,
)

from captioning.batch import PictureFormat
from captioning.errors import UserError
from captioning.model.build import compose
from captioning.model.captioner import ImageCaptioner
from captioning.model.pretrained import (
    RESAMPLING,
    load_config,
    load_picture_format,
    load_weights,
    picture_size,
    quick_activation,
    resized,
)

log = logging.getLogger(__name__)

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
