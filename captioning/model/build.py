"""Ways to a captioner: from pretrained halves, from scratch, from its description, from weights that were found.

`conf/model` names the first two; `fine_tuned` makes one of the last ready to be trained on.
"""

import logging
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderConfig

from captioning.data.batch import PictureFormat
from captioning.data.tokenizer import CaptionTokenizer
from captioning.errors import UserError, require_whole
from captioning.model.captioner import ImageCaptioner, group_of
from captioning.model.encoders import ENCODERS, FROM_SCRATCH, family_of, picture_size, resized
from captioning.model.huggingface import (
    compose,
    joined,
    load_config,
    load_model,
    load_picture_format,
    load_weights,
    quick_activation,
)
from captioning.runs import read_checkpoint
from captioning.weights import HuggingFaceModel

log = logging.getLogger(__name__)


def check_sizes(**sizes: object) -> None:
    """Pixels, tokens, widths, layers and heads: whole numbers of at least 1."""
    for name, value in sizes.items():
        require_whole(f"model.{name}", value)


def check_multiples(**sizes: tuple[int, str, int]) -> None:
    """`name=(value, of, part)`: the value is a multiple of model.`of`, which is `part`."""
    for name, (value, of, part) in sizes.items():
        if value % part:
            raise UserError(f"model.{name}={value} must be a multiple of model.{of}={part}")


def check_positive(**values: object) -> None:
    """Standard deviations, of weights or pixels."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not value > 0:
            raise UserError(f"model.{name}={value} must be a number above 0")


def check_dropouts(**values: object) -> None:
    """Probabilities of being dropped."""
    for name, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise UserError(f"model.{name}={value} must be a number from 0, which switches it off, to below 1")


def switched(captioner: ImageCaptioner, gradient_checkpointing: bool, compile: bool) -> ImageCaptioner:
    """The same captioner, its activations recomputed in the backward pass, or its halves compiled, or both.

    Raises:
        UserError: if there is no compiler.
    """
    halves: tuple[Any, Any] = (captioner.network.encoder, captioner.network.decoder.transformer)
    if gradient_checkpointing:
        for half in halves:  # by its newer name where transformers has it
            enable = getattr(half, "activation_checkpointing_enable", None) or half.gradient_checkpointing_enable
            enable({"use_reentrant": False})
    if compile:
        _require_compiler()
        # In place, so that the names of the weights stay as they are.
        for half in halves:
            half.compile(dynamic=True)
    return captioner


def _require_compiler() -> None:
    """torch.compile writes C++ and has it compiled at the first step; without a compiler it fails there, at length."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
    if sys.platform != "win32" and shutil.which(compiler) is None:
        raise UserError(
            f"model.compile=true needs a C++ compiler and {compiler} is not on this machine; install it, "
            "name another in the environment variable CXX, or set model.compile=false"
        )


NEW = "cross_attention"  # the group that no checkpoint has pretrained
POSITION_SPREAD = 0.7  # standard deviation of a new encoder's position embeddings


def from_pretrained(
    *,
    encoder: str,
    decoder: str,
    image_size: int | None,
    dropout: float,
    attention_dropout: float,
    gradient_checkpointing: bool,
    compile: bool,
    allow_pickle: bool,
    vocab_size: int,
    bos_token_id: int,
    eos_token_id: int,
) -> ImageCaptioner:
    """A pretrained encoder and a pretrained GPT-2, joined by new cross-attention layers.

    Args:
        encoder: hub name or local folder of one of `ENCODERS`.
        decoder: hub name or local folder of a GPT-2.
        image_size: pixels; other than the checkpoint's, its position embeddings are interpolated. None keeps it.
        dropout: of the decoder's embeddings and residual branches.
        attention_dropout: of the decoder's attention weights.
        gradient_checkpointing: recompute activations in the backward pass, to save memory.
        compile: `torch.compile` both halves.
        allow_pickle: see `load_weights`.
        vocab_size, bos_token_id, eos_token_id: the data's tokenizer, which the decoder must have been trained with.

    Raises:
        UserError: if a checkpoint cannot be had, is of another architecture, or lacks weights.
    """
    check_dropouts(dropout=dropout, attention_dropout=attention_dropout)
    if image_size is not None:
        check_sizes(image_size=image_size)
    encoder_config = load_config(encoder, ENCODERS, "model.encoder")
    decoder_config = load_config(decoder, [GPT2Config.model_type], "model.decoder")
    if decoder_config.vocab_size != vocab_size:
        raise UserError(
            f"model.decoder={decoder} has {decoder_config.vocab_size} tokens and the data's tokenizer {vocab_size}; "
            f"set data.tokenizer to the decoder's own, such as data.tokenizer={decoder}"
        )
    quick_activation(decoder_config)
    decoder_config.update(
        {
            "add_cross_attention": True,
            "embd_pdrop": dropout,
            "resid_pdrop": dropout,
            "attn_pdrop": attention_dropout,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
        }
    )
    family = ENCODERS[encoder_config.model_type]
    encoder_config.update(family.config)
    encoded = load_weights(
        family.model, encoder, encoder_config, "model.encoder", allow_pickle=allow_pickle, **family.arguments
    )
    gpt2 = load_weights(
        GPT2LMHeadModel,
        decoder,
        decoder_config,
        "model.decoder",
        may_be_new=lambda name: group_of(name) == NEW,
        allow_pickle=allow_pickle,
    )
    picture_format = load_picture_format(encoder, encoder_config, "model.encoder")
    captioner = ImageCaptioner(joined(encoded, gpt2), picture_format)
    log.info("new, in no checkpoint: %s", ", ".join(_layers_together(n for n, _ in captioner.parameters_of(NEW))))
    if image_size is not None:
        captioner = _changed(captioner, image_size)
    return switched(captioner, gradient_checkpointing, compile)


def from_scratch(
    *,
    image_size: int,
    patch_size: int,
    encoder_width: int,
    encoder_layers: int,
    encoder_heads: int,
    decoder_width: int,
    decoder_layers: int,
    decoder_heads: int,
    max_positions: int,
    initializer_range: float,
    pixel_mean: float,
    pixel_std: float,
    dropout: float,
    attention_dropout: float,
    gradient_checkpointing: bool,
    compile: bool,
    vocab_size: int,
    bos_token_id: int,
    eos_token_id: int,
) -> ImageCaptioner:
    """A small captioner with random weights; widths, layers and heads as named, sizes in pixels and tokens.

    `initializer_range` is the standard deviation of new matrices: transformers' 0.02 is meant for widths of 768, and
    narrow models learn faster from more. `pixel_mean` and `pixel_std` are of all three channels, for values in 0..1.

    Raises:
        UserError: for what `checks.py` refuses.
    """
    check_sizes(
        image_size=image_size,
        patch_size=patch_size,
        encoder_width=encoder_width,
        encoder_layers=encoder_layers,
        encoder_heads=encoder_heads,
        decoder_width=decoder_width,
        decoder_layers=decoder_layers,
        decoder_heads=decoder_heads,
        max_positions=max_positions,
    )
    check_multiples(
        encoder_width=(encoder_width, "encoder_heads", encoder_heads),
        decoder_width=(decoder_width, "decoder_heads", decoder_heads),
        image_size=(image_size, "patch_size", patch_size),
    )
    check_positive(initializer_range=initializer_range, pixel_std=pixel_std)
    check_dropouts(dropout=dropout, attention_dropout=attention_dropout)
    encoder_config = AutoConfig.for_model(
        FROM_SCRATCH.model_type,
        hidden_size=encoder_width,
        num_hidden_layers=encoder_layers,
        num_attention_heads=encoder_heads,
        intermediate_size=4 * encoder_width,
        image_size=image_size,
        patch_size=patch_size,
        initializer_range=initializer_range,
    )
    decoder_config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=decoder_width,
        n_layer=decoder_layers,
        n_head=decoder_heads,
        n_positions=max_positions,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        attn_pdrop=attention_dropout,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function in one kernel
        add_cross_attention=True,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        initializer_range=initializer_range,
    )
    encoder = FROM_SCRATCH.model(encoder_config, **FROM_SCRATCH.arguments)
    decoder = GPT2LMHeadModel(decoder_config)
    # Beside what a patch shows, a position of the usual spread is too faint to be learned in minutes.
    nn.init.normal_(encoder.get_parameter(FROM_SCRATCH.positions), std=POSITION_SPREAD)
    picture_format = PictureFormat((image_size, image_size), mean=(pixel_mean,) * 3, std=(pixel_std,) * 3)
    captioner = ImageCaptioner(joined(encoder, decoder), picture_format)
    return switched(captioner, gradient_checkpointing, compile)


def _layers_together(names: Iterable[str]) -> list[str]:
    """Weights' names, those of all layers as one: `h.0.ln.bias`, `h.1.ln.bias` -> `h.*.ln.bias (2 layers)`."""
    counts = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return [f"{name} ({count} layers)" if "*" in name else name for name, count in counts.items()]


def from_description(description: dict[str, Any]) -> ImageCaptioner:
    """An untrained captioner of the architecture that `ImageCaptioner.description` told."""
    config: Any = VisionEncoderDecoderConfig.from_dict(description["network"])
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in description["picture_format"].items()
    }
    return ImageCaptioner(compose(config.encoder, config.decoder), PictureFormat(**fields))


def fine_tuned(
    captioner: ImageCaptioner,
    *,
    image_size: int | None,
    dropout: float,
    attention_dropout: float,
    gradient_checkpointing: bool,
    compile: bool,
) -> ImageCaptioner:
    """The same architecture and weights, in training mode, with these dropouts and switches.

    Args:
        captioner: whose weights these are; it is left as it was.
        image_size: pixels; other than the captioner's, its position embeddings are interpolated. None keeps it.
        dropout, attention_dropout, gradient_checkpointing, compile: as in `build.from_pretrained`.

    Raises:
        UserError: for an image size that patches do not tile, or a dropout that is no probability.
    """
    check_dropouts(dropout=dropout, attention_dropout=attention_dropout)
    if image_size is not None:
        check_sizes(image_size=image_size)
    trained = _changed(captioner, image_size, embd_pdrop=dropout, resid_pdrop=dropout, attn_pdrop=attention_dropout)
    return switched(trained, gradient_checkpointing, compile)


def _changed(captioner: ImageCaptioner, image_size: int | None, **decoder: float) -> ImageCaptioner:
    """The same weights for pictures of another size and with these values in the decoder's configuration."""
    description, state = captioner.description(), captioner.state_dict()
    description["network"]["decoder"] |= decoder
    encoder: Any = captioner.network.encoder
    if image_size is not None and (image_size, image_size) != picture_size(encoder.config):
        family = family_of(encoder)
        state[f"network.encoder.{family.positions}"] = family.interpolated_positions(encoder, image_size)
        description["network"]["encoder"]["image_size"] = image_size
        description["picture_format"] = asdict(resized(captioner.picture_format, (image_size, image_size)))
    changed = from_description(description)
    changed.load_state_dict(state)
    return changed


WEIGHTS = "captioner."  # the captioner's name in the LightningModule, and so in its state dict


def load_captioner(weights: Path | HuggingFaceModel) -> tuple[ImageCaptioner, CaptionTokenizer]:
    """The captioner, in eval mode on the CPU, and its tokenizer, from what `find_weights` found.

    Raises:
        UserError: if the file is not one of ours, or transformers' model is not whole.
    """
    if isinstance(weights, HuggingFaceModel):
        return _of_transformers(weights)
    contents = read_checkpoint(weights)
    try:
        captioner = from_description(contents["captioner"]["description"])
        tokenizer = CaptionTokenizer.from_json(contents["captioner"]["tokenizer"])
    except Exception as error:  # of a damaged tokenizer the library raises a bare Exception
        raise UserError(f"checkpoint {weights} describes no captioner; give one that train.py wrote") from error
    state = {k.removeprefix(WEIGHTS): v for k, v in contents["state_dict"].items() if k.startswith(WEIGHTS)}
    try:
        captioner.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {weights} holds weights that do not fit its own description of the model"
        ) from error
    return captioner.eval(), tokenizer


def _of_transformers(weights: HuggingFaceModel) -> tuple[ImageCaptioner, CaptionTokenizer]:
    name, key = weights.name, weights.key
    captioner = load_model(name, key, weights.allow_pickle)
    decoder = captioner.network.decoder.config
    tokenizer = CaptionTokenizer.of_model(
        name, key, bos_token_id=decoder.bos_token_id, eos_token_id=decoder.eos_token_id
    )
    if tokenizer.vocab_size > captioner.vocab_size:
        raise UserError(
            f"{key}={name} has a tokenizer of {tokenizer.vocab_size} tokens and a decoder of {captioner.vocab_size}; "
            "put the decoder's own tokenizer there"
        )
    return captioner, tokenizer
