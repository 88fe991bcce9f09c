"""Captioners from pretrained checkpoints or from scratch: what `conf/model` instantiates."""

import logging
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from captioning.batch import PictureFormat
from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner, group_of
from captioning.model.checks import check_dropouts, check_multiples, check_positive, check_sizes
from captioning.model.pretrained import (
    interpolate_positions,
    load_config,
    load_picture_format,
    load_weights,
    picture_size,
    quick_activation,
    resized,
)
from captioning.model.switches import switched

log = logging.getLogger(__name__)

NEW = "cross_attention"  # the group that no checkpoint has pretrained
POSITION_SPREAD = 0.7  # standard deviation of a new ViT's position embeddings


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
    """A pretrained ViT and a pretrained GPT-2, joined by new cross-attention layers.

    Args:
        encoder: hub name or local folder of a ViT.
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
    encoder_config = load_config(encoder, ViTConfig, "model.encoder")
    decoder_config = load_config(decoder, GPT2Config, "model.decoder")
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
    vit = load_weights(
        ViTModel, encoder, encoder_config, "model.encoder", allow_pickle=allow_pickle, add_pooling_layer=False
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
    if image_size is not None and (image_size, image_size) != picture_size(encoder_config):
        interpolate_positions(vit, image_size)
    captioner = ImageCaptioner(joined(vit, gpt2), resized(picture_format, picture_size(vit.config)))
    log.info("new, in no checkpoint: %s", ", ".join(_layers_together(n for n, _ in captioner.parameters_of(NEW))))
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
    encoder_config = ViTConfig(
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
    encoder, decoder = ViTModel(encoder_config, add_pooling_layer=False), GPT2LMHeadModel(decoder_config)
    # Beside what a patch shows, a position of the usual spread is too faint to be learned in minutes.
    nn.init.normal_(encoder.embeddings.position_embeddings, std=POSITION_SPREAD)
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
