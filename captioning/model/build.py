"""Ways to a captioner: new, of pretrained halves, from its description, or from weights that were found.

`conf/model` names the first two; `fine_tuned` makes one of the others ready to be trained on.
"""

import logging
import os
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import get_method
from torch import nn
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from captioning.config import ModelConfig, OwnModelConfig, PretrainedModelConfig, TinyModelConfig
from captioning.data.batch import PictureFormat
from captioning.data.tokenizer import CaptionTokenizer
from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner, group_of, is_layer
from captioning.model.encoders import ENCODERS, FROM_SCRATCH, EncoderFamily, family_of, picture_size, resized
from captioning.model.huggingface import (
    GPT2_NEEDED,
    captioner_of,
    compose,
    joined,
    layers_together,
    load_config,
    load_encoder_config,
    load_model,
    load_picture_format,
    load_weights,
    of_size,
    quick_activation,
)
from captioning.model.lora import merged, with_adapters
from captioning.runs import AVERAGE, read_checkpoint
from captioning.weights import DECODERS, HuggingFaceModel

log = logging.getLogger(__name__)

NEW = "cross_attention"  # the group that no checkpoint has pretrained
MOST_GRAPHS = 64  # of a layer's code
POSITION_SPREAD = 0.7  # standard deviation of a new encoder's position embeddings
WEIGHTS = "captioner."  # the captioner's name in the LightningModule, and so in its state dict


# Rows of its embeddings that a decoder may have beyond the tokens, as where 50,257 are rounded up to 50,264.
SPARE_ROWS = 1024


class Vocabulary(NamedTuple):
    """What a model must know of the data's tokenizer."""

    vocab_size: int
    bos_token_id: int
    eos_token_id: int
    added_tokens: int = 0  # of vocab_size, behind those that the tokenizer was trained with

    @classmethod
    def of(cls, tokenizer: CaptionTokenizer) -> "Vocabulary":
        """A tokenizer's."""
        ends = tokenizer.bos_token_id, tokenizer.eos_token_id
        return cls(tokenizer.vocab_size, *ends, tokenizer.added_tokens)

    def for_model(self) -> dict[str, int]:
        """By the names of a model's configuration."""
        return {name: number for name, number in self._asdict().items() if name != "added_tokens"}


def new_captioner(config: ModelConfig | OwnModelConfig, vocabulary: Vocabulary) -> ImageCaptioner:
    """What `conf/model` describes. A user's own `_target_` gets its own keys and the vocabulary's as arguments."""
    if isinstance(config, TinyModelConfig):
        return from_scratch(config, vocabulary)
    if isinstance(config, PretrainedModelConfig):
        return from_pretrained(config, vocabulary)
    own = config.model_dump(exclude={"target", "init_from"})
    try:
        captioner: ImageCaptioner = get_method(config.target)(**own, **vocabulary.for_model())
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"model cannot be set up so: {' '.join(str(error).split())}") from error
    return captioner


def from_scratch(config: TinyModelConfig, vocabulary: Vocabulary) -> ImageCaptioner:
    """A small captioner with random weights.

    `initializer_range` is the standard deviation of new matrices: transformers' 0.02 is meant for widths of 768, and
    narrow models learn faster from more.
    """
    family = FROM_SCRATCH[config.encoder_family]
    keys = {
        "hidden_size": config.encoder_width,
        "num_hidden_layers": config.encoder_layers,
        "num_attention_heads": config.encoder_heads,
        "intermediate_size": 4 * config.encoder_width,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "initializer_range": config.initializer_range,
    }
    known = AutoConfig.for_model(family.model_type)  # a DINOv2's intermediate size follows from its width
    keys = {key: value for key, value in keys.items() if hasattr(known, key)}
    encoder_config = AutoConfig.for_model(family.model_type, **keys, **family.config)
    decoder_config = GPT2Config(
        n_embd=config.decoder_width,
        n_layer=config.decoder_layers,
        n_head=config.decoder_heads,
        n_positions=config.max_positions,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function in one kernel
        initializer_range=config.initializer_range,
        **_of_the_decoder(config, vocabulary),
    )
    encoder = family.made(encoder_config)
    if "initializer_range" not in keys:
        _redraw(encoder, family, config.initializer_range)
    decoder = GPT2LMHeadModel(decoder_config)
    # Beside what a patch shows, a position of the usual spread is too faint to be learned in minutes.
    nn.init.normal_(encoder.get_parameter(family.positions or ""), std=POSITION_SPREAD)
    size, mean, std = (config.image_size,) * 2, (config.pixel_mean,) * 3, (config.pixel_std,) * 3
    captioner = captioner_of(joined(encoder, decoder), PictureFormat(size, mean, std))
    return switched(captioner, **_switches(config))


def _redraw(encoder: Any, family: EncoderFamily, spread: float) -> None:
    """Matrices of this standard deviation, where the library draws them its own way (SigLIP's)."""
    for name, parameter in encoder.named_parameters():
        if parameter.ndim >= 2 and name not in family.undecayed:
            nn.init.normal_(parameter, std=spread)


def from_pretrained(config: PretrainedModelConfig, vocabulary: Vocabulary) -> ImageCaptioner:
    """A pretrained encoder and a pretrained GPT-2, joined by new cross-attention layers.

    Raises:
        UserError: if a checkpoint is not available, is of another architecture or vocabulary, or lacks weights.
    """
    first = HuggingFaceModel(config.encoder, "model.encoder", config.allow_pickle)
    second = HuggingFaceModel(config.decoder, "model.decoder", config.allow_pickle)
    encoder_config, decoder_config = load_encoder_config(first), load_config(second, DECODERS, GPT2_NEEDED)
    rows, tokens = decoder_config.vocab_size, vocabulary.vocab_size
    if not tokens - vocabulary.added_tokens <= rows <= tokens + SPARE_ROWS:
        raise UserError(
            f"model.decoder={second.name} has {rows} tokens and the data's tokenizer {tokens}; set data.tokenizer to "
            f"the one that the decoder was trained with, such as data.tokenizer={second.name}"
        )
    decoder_config.update(_of_the_decoder(config, vocabulary._replace(vocab_size=rows)))
    family = ENCODERS[encoder_config.model_type]
    encoder = load_weights(family.model, first, encoder_config, may_be_new=family.is_spare, **family.arguments)
    quick_activation(decoder_config)
    decoder = load_weights(GPT2LMHeadModel, second, decoder_config, may_be_new=lambda name: group_of(name) == NEW)
    if tokens > rows:
        _add_rows(decoder, tokens)
    picture_format = load_picture_format(first, encoder_config)
    if config.image_size is not None:
        picture_format = resized(picture_format, (config.image_size, config.image_size))
    network = of_size(joined(family.without_spare(encoder), decoder), picture_format.size)
    captioner = captioner_of(network, picture_format)
    log.info("new, in no checkpoint: %s", ", ".join(layers_together(n for n, _ in captioner.parameters_of(NEW))))
    return switched(_adapted(captioner, config), **_switches(config))


def _add_rows(decoder: GPT2LMHeadModel, tokens: int) -> None:
    """Room for added tokens, each as likely as the others are on average (Hewitt 2021)."""
    embeddings: Any = decoder.get_input_embeddings().weight
    rows, mean = len(embeddings), embeddings.detach().mean(0)
    resized: Any = decoder.resize_token_embeddings(tokens, mean_resizing=False)
    with torch.no_grad():
        resized.weight[rows:] = mean
    log.info("the decoder has %d new rows, for tokens that were added to its tokenizer", tokens - rows)


def _of_the_decoder(config: ModelConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """What makes a GPT-2 the decoder of a captioner, in its own configuration."""
    return {"add_cross_attention": True, **_dropout(config), **vocabulary.for_model()}


def _dropout(config: Any) -> dict[str, float]:
    return {"embd_pdrop": config.dropout, "resid_pdrop": config.dropout, "attn_pdrop": config.attention_dropout}


def _switches(config: Any) -> dict[str, Any]:
    return {
        "gradient_checkpointing": config.gradient_checkpointing,
        "compile": config.compile is True,
        "stochastic_depth": config.stochastic_depth,
    }


def switched(
    captioner: ImageCaptioner, *, gradient_checkpointing: bool, compile: bool, stochastic_depth: float = 0.0
) -> ImageCaptioner:
    """The same captioner, its activations recomputed in the backward pass, or its layers compiled, or both.

    Neither changes a number; `stochastic_depth` does, in training, see `skip_layers`. Each layer is compiled by itself:
    all of a half are one piece of code, so that this takes seconds, and minutes for a half as a whole. What has another
    shape, of gradients that are wanted or of mode, is compiled anew: three stages and their validations come to
    `MOST_GRAPHS` at most, and past torch's own limit of 8 a layer would run uncompiled from there on.

    Raises:
        UserError: if there is no compiler.
    """
    if stochastic_depth:
        skip_layers(captioner, stochastic_depth)
    if gradient_checkpointing:
        halves: tuple[Any, Any] = (captioner.network.encoder, captioner.network.decoder.transformer)
        for half in halves:  # by its newer name where transformers has it
            enable = getattr(half, "activation_checkpointing_enable", None) or half.gradient_checkpointing_enable
            enable({"use_reentrant": False})
    if compile:
        _require_compiler()
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        family = family_of(captioner.network.encoder)
        if not family.compiles:
            log.info(
                "model.compile=true: the decoder's layers alone, since torch takes minutes for a %s's", family.name
            )
        for layer in (captioner.network if family.compiles else captioner.network.decoder).modules():
            if isinstance(layer, GradientCheckpointingLayer):  # transformers' mark of one
                layer.compile()  # in place, so that the names of the weights stay as they are
        captioner.compiled = True
    return captioner


def skip_layers(captioner: ImageCaptioner, most: float) -> None:
    """Stochastic depth (Huang et al. 2016): in training a picture skips an encoder layer, the last with this chance.

    Of the layers before it the chance is in proportion to their depth. What a layer adds is scaled up where it is kept,
    so that nothing changes in evaluation.
    """
    for name, layer in captioner.network.named_modules():
        if is_layer(name, layer):
            number, layers = captioner.encoder_depth(name)
            layer.register_forward_hook(partial(_perhaps_skipped, kept=1 - most * number / layers))


def _perhaps_skipped(layer: torch.nn.Module, given: tuple[Any, ...], output: Any, *, kept: float) -> Any:
    if not (layer.training and torch.is_grad_enabled()):
        return output
    states, *others = output if isinstance(output, tuple) else (output,)
    before = given[0]  # (B, P, D)
    if before.shape != states.shape:  # a stage of Swin's, between whose layers resolutions change
        return output
    scale = torch.empty(len(before), *[1] * (before.ndim - 1), device=before.device).bernoulli_(kept) / kept
    states = before + (states - before) * scale.to(states.dtype)
    return (states, *others) if isinstance(output, tuple) else states


def _require_compiler() -> None:
    """torch.compile writes C++ and has it compiled at the first step; without a compiler it fails there, at length."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
    if sys.platform != "win32" and shutil.which(compiler) is None:
        raise UserError(
            f"model.compile=true needs a C++ compiler and {compiler} is not on this machine; install it, "
            "name another in the environment variable CXX, or set model.compile=false"
        )


def from_description(description: dict[str, Any]) -> ImageCaptioner:
    """A captioner with random weights of the architecture in `ImageCaptioner.description`."""
    config: Any = VisionEncoderDecoderConfig.from_dict(description["network"])
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in description["picture_format"].items()
    }
    captioner = captioner_of(compose(config.encoder, config.decoder), PictureFormat(**fields))
    return with_adapters(captioner, description["lora"]) if "lora" in description else captioner


def fine_tuned(captioner: ImageCaptioner, config: ModelConfig | OwnModelConfig) -> ImageCaptioner:
    """The same architecture and weights, in training mode, with the configuration's dropouts and switches.

    Where it is one of pretrained halves, with its image size too, unless that is null; the sizes of `model=tiny` don't
    count. The captioner is left as it was.

    Raises:
        UserError: for an image size that patches do not tile.
    """
    image_size = None if isinstance(config, TinyModelConfig) else getattr(config, "image_size", None)
    return switched(_adapted(_changed(captioner, image_size, **_dropout(config)), config), **_switches(config))


def _adapted(captioner: ImageCaptioner, config: Any) -> ImageCaptioner:
    """The same captioner, with adapters if `model.lora` asks for them."""
    return with_adapters(captioner, config.lora.plain()) if config.lora.rank else captioner


def _changed(captioner: ImageCaptioner, image_size: int | None, **decoder: float) -> ImageCaptioner:
    """The same weights for pictures of another size, and with these values in the decoder's configuration."""
    description, state = captioner.description(), captioner.state_dict()
    description["network"]["decoder"] |= decoder
    encoder: Any = captioner.network.encoder
    if image_size is not None and (image_size, image_size) != picture_size(encoder.config):
        size = (image_size, image_size)
        for name, weight in family_of(encoder).weights_for(encoder, size).items():
            state[f"network.encoder.{name}"] = weight
        description["network"]["encoder"]["image_size"] = image_size
        description["picture_format"] = asdict(resized(captioner.picture_format, size))
    changed = from_description(description)
    changed.load_state_dict(state)
    return changed


def load_captioner(weights: Path | HuggingFaceModel, *, merge: bool = True) -> tuple[ImageCaptioner, CaptionTokenizer]:
    """The captioner, in eval mode on the CPU, and its tokenizer, from what `find_weights` found.

    Adapters are merged into the weights that they stand beside, unless `merge` is false.

    Raises:
        UserError: if the file is not one of ours, or transformers' model is not whole.
    """
    if isinstance(weights, HuggingFaceModel):
        return _of_transformers(weights)
    captioner, tokenizer = _of_ours(weights)
    return (merged(captioner) if merge else captioner).eval(), tokenizer


def _of_ours(checkpoint: Path) -> tuple[ImageCaptioner, CaptionTokenizer]:
    contents = read_checkpoint(checkpoint)
    try:
        captioner = from_description(contents["captioner"]["description"])
        tokenizer = CaptionTokenizer.from_json(contents["captioner"]["tokenizer"])
    except Exception as error:  # of a damaged tokenizer the library raises a bare Exception
        raise UserError(f"checkpoint {checkpoint} describes no captioner; give one that train.py wrote") from error
    weights = contents["state_dict"] | contents.get(AVERAGE, {}).get("weights", {})  # a run's captions are by these
    state = {k.removeprefix(WEIGHTS): v for k, v in weights.items() if k.startswith(WEIGHTS)}
    try:
        captioner.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {checkpoint} holds weights that do not fit its own description of the model"
        ) from error
    return captioner, tokenizer


def _of_transformers(weights: HuggingFaceModel) -> tuple[ImageCaptioner, CaptionTokenizer]:
    name, key = weights.name, weights.key
    captioner = load_model(weights)
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
