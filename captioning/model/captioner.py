"""The captioner: an encoder whose output GPT-2 attends to, trained on rows of several captions per encoded picture.

Letters: B rows (one picture each), P encoded patches (prefix tokens included), S packed tokens of a row, N labelled
positions of the batch, D decoder width, V vocabulary, H and W picture height and width.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import VisionEncoderDecoderModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from captioning.data.batch import CaptionBatch, PictureFormat
from captioning.model.encoders import family_of, patch_grid, picture_size
from captioning.model.loss import summed_cross_entropy, summed_nats


class LossSum(NamedTuple):
    """A batch's loss before any division, so that batches, ranks and epochs add up exactly."""

    nats: Tensor  # () float32, the sum of -log p(label)
    tokens: Tensor  # () int64, how many labels


class ImageCaptioner(nn.Module):
    """transformers' `VisionEncoderDecoderModel`, fed with packed rows.

    The layers are the library's, so weights move in and out of its ecosystem unchanged; what is ours is the order of
    work: one encoding a picture however many captions it has, and vocabulary logits only where there is a label.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    compiled = False  # whether its layers are, see `build.switched`
    lora: dict[str, Any] | None = None  # the keys of `model.lora` while there are adapters, see lora.py

    def __init__(self, network: VisionEncoderDecoderModel, picture_format: PictureFormat):
        super().__init__()
        self.network = network
        self.picture_format = picture_format
        # Constants of the checkpoint's processor: on the model's device, but not weights.
        mean, std = torch.tensor(picture_format.mean), torch.tensor(picture_format.std)
        self.register_buffer("pixel_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(3, 1, 1), persistent=False)
        self._rows_before: dict[str, int] = {}  # of each half's last training step

    @property
    def max_positions(self) -> int:
        """The longest caption, BOS included, that the decoder has positions for."""
        return self.network.decoder.config.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self.network.decoder.config.vocab_size

    @property
    def end_of_text(self) -> tuple[int, int]:
        """The ids of BOS and EOS."""
        config = self.network.decoder.config
        return config.bos_token_id, config.eos_token_id

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) uint8 to what the decoder attends to, (B, P, D)."""
        return in_autocast(self.project(self.encoder_states(pixel_values)))

    def encoder_states(self, pixel_values: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) uint8 to the encoder's last hidden states, (B, P, encoder width).

        Normalisation happens here, on the device, so that a quarter of the bytes travel. With the encoder frozen no
        autograd state is kept: nothing in it requires a gradient.
        """
        pixels = (pixel_values.float() / 255 - self.pixel_mean) / self.pixel_std
        with self._compiled_for("encoder", len(pixels)):
            return self.network.encoder(pixel_values=pixels).last_hidden_state

    def project(self, encoder_states: Tensor) -> Tensor:
        """The encoder's states at the decoder's width, (B, P, D), where the widths differ."""
        projection: nn.Module | None = getattr(self.network, "enc_to_dec_proj", None)
        return encoder_states if projection is None else projection(encoder_states)

    def attended(self, batch: CaptionBatch) -> Tensor:
        """What the batch's captions attend to, (B, P, D): its pictures encoded now, or before now."""
        if batch.encoder_hidden_states is not None:
            states = in_autocast(batch.encoder_hidden_states, otherwise=self.network.dtype)
            return in_autocast(self.project(states))
        assert batch.pixel_values is not None
        return self.encode(batch.pixel_values)

    def hidden_states(self, batch: CaptionBatch, attended: Tensor) -> Tensor:
        """The decoder's last hidden states (B, S, D); every caption sees its own past and its row's `attended`."""
        gpt2: Any = self.network.decoder.transformer
        with self._compiled_for("decoder", len(batch)):
            return gpt2(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=same_caption_causal_mask(batch.caption_index),
                encoder_hidden_states=attended,
                use_cache=False,
            ).last_hidden_state

    def loss(self, batch: CaptionBatch, smoothing: float = 0.0) -> LossSum:
        """Cross-entropy summed over the labelled positions; padding never reaches the vocabulary projection."""
        return self.loss_from(self.attended(batch), batch, smoothing=smoothing)

    def loss_from(
        self, attended: Tensor, batch: CaptionBatch, label_weights: Tensor | None = None, smoothing: float = 0.0
    ) -> LossSum:
        """`loss`, of pictures that are encoded already: `attended` (B, P, D) is what `attended(batch)` gives.

        Each label's nats are multiplied by its `label_weights` (B, S) float32, where these are given; with gradients,
        a share of each label is spread over the vocabulary, see `summed_cross_entropy`.
        """
        hidden = self.hidden_states(batch, attended).flatten(0, 1).index_select(0, batch.labelled)  # (N, D)
        projection, labels = self.network.decoder.lm_head, batch.labels.flatten().index_select(0, batch.labelled)
        tokens = torch.full((), len(labels), device=labels.device)
        if not torch.is_grad_enabled() and label_weights is None:
            return LossSum(summed_nats(hidden, projection, labels), tokens)
        weights = None if label_weights is None else label_weights.flatten().index_select(0, batch.labelled)
        return LossSum(summed_cross_entropy(hidden, projection.weight, labels, weights, smoothing), tokens)

    def eagerly(self) -> AbstractContextManager:
        """Inside it compiled layers run as they are written: for shapes that are met once, such as a token a step."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def _compiled_for(self, part: str, rows: int) -> AbstractContextManager:
        """Inside it the layers of a part run compiled where they take a training step of as many rows as the last one.

        An epoch's last batch, which is smaller, and a validation are not worth the seconds that compiling takes.
        """
        again = torch.is_grad_enabled() and self._rows_before.get(part) == rows
        if torch.is_grad_enabled():
            self._rows_before[part] = rows
        return nullcontext() if again else self.eagerly()

    def parameters_of(self, group: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The named parameters of one of `GROUPS`; together the groups hold each parameter once."""
        return ((name, p) for name, p in self.network.named_parameters() if group_of(name) == group)

    def encoder_depth(self, name: str) -> tuple[int, int]:
        """The layer that an encoder's parameter or module of this name is in, and how many there are.

        Layers count from 1; 0 is what comes before them, and one more than there are what comes behind.
        """
        layers = [n for n, module in self.network.named_modules() if is_layer(n, module)]
        for number, layer in enumerate(layers, 1):
            if name == layer or name.startswith(f"{layer}."):
                return number, len(layers)
        return (0 if "embedding" in name else len(layers) + 1), len(layers)

    def is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay is for it: matrices, not biases, norms, prefix tokens and positions (as in timm)."""
        vectors = {f"encoder.{inside}" for inside in family_of(self.network.encoder).undecayed}
        no_maps = ("wpe", "relative_position_bias_table")
        return parameter.ndim >= 2 and name not in vectors and not any(table in name for table in no_maps)

    def maps_in(self, name: str) -> int:
        """How many matrices lie side by side in a parameter: GPT-2 has queries', keys' and values' in one.

        The embedding of patches, (D, channels, height, width), is one too. Other embeddings, and the projection to the
        vocabulary that shares weights with one, are none.
        """
        owner, _, kind = name.rpartition(".")
        layer = self.network.get_submodule(owner)
        is_map = isinstance(layer, nn.Linear | nn.Conv2d | Conv1D) and layer is not self.network.decoder.lm_head
        if kind != "weight" or not is_map:
            return 0
        first, second, *_ = self.network.get_parameter(name).shape
        return second // first if owner.endswith("c_attn") else 1

    def set_trainable(self, groups: Collection[str]) -> None:
        """Let exactly `groups` train: the rest needs no gradient and is in eval mode, its dropout off.

        Of a half with adapters these alone train.

        A module that holds both frozen and trained parts is in training mode, since gradient checkpointing asks it;
        it has no dropout of its own.
        """
        adapted = self.lora["targets"] if self.lora else ()
        for name, parameter in self.network.named_parameters():
            group = group_of(name)
            parameter.requires_grad_(group in groups and (group not in adapted or is_adapter(name)))
            if not parameter.requires_grad:
                parameter.grad = None
        for name, module in self.network.named_modules():
            module.training = group_of(name) in groups or any(p.requires_grad for p in module.parameters())
        self.training = any(p.requires_grad for p in self.parameters())

    @property
    def prefix_tokens(self) -> int:
        """How many of the P have no place in the picture; they come first."""
        return family_of(self.network.encoder).prefix_tokens(self.network.encoder)

    def patch_grid(self, size: Sequence[int]) -> tuple[int, int]:
        """(rows, columns) of the other P, for a picture of (H, W)."""
        return patch_grid(self.network.encoder.config, size)

    def encoder_shape(self) -> tuple[int, int]:
        """(P, encoder width) of one picture's encoder states."""
        config: Any = self.network.encoder.config
        rows, columns = self.patch_grid(picture_size(config))
        return self.prefix_tokens + rows * columns, config.hidden_size

    def encoder_fingerprint(self) -> str:
        """A digest of the encoder's weights and architecture, the same wherever they were loaded from."""
        config = {k: v for k, v in self.network.encoder.config.to_dict().items() if k != "_name_or_path"}
        digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode())
        for name, weight in self.network.encoder.state_dict().items():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def trainable_count(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def description(self) -> dict[str, Any]:
        """Plain containers from which `build.from_description` makes the same architecture; saved with the weights."""
        found = {"network": self.network.config.to_dict(), "picture_format": asdict(self.picture_format)}
        return found if self.lora is None else found | {"lora": self.lora}


def in_autocast(states: Tensor, otherwise: torch.dtype | None = None) -> Tensor:
    """The same numbers in the type that autocast multiplies in; without it in another, if one is given.

    Of what several layers multiply, such as the encoded picture: autocast would cast it anew for each.
    """
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else otherwise or states.dtype)


class _LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return in_autocast(super().forward(x))


def cast_norms_once(network: nn.Module) -> None:
    """Let the network's layer norms give what autocast multiplies in from now on; only their class changes.

    Autocast computes them in float32, and each product behind one, such as queries and keys, would cast it again.
    """
    for module in network.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = _LayerNorm


def group_of(name: str) -> str:
    """The group of a parameter or module of the network, by its name.

    `cross_attention` is what no checkpoint has pretrained: the cross-attention blocks, their norms, and the
    projection between different widths.
    """
    if "crossattention" in name or "ln_cross_attn" in name or name.startswith("enc_to_dec_proj"):
        return "cross_attention"
    return "encoder" if name.startswith("encoder") else "decoder"


def is_layer(name: str, module: nn.Module) -> bool:
    """Whether a module of the network is a layer of the encoder, which transformers marks."""
    return name.startswith("encoder.") and isinstance(module, GradientCheckpointingLayer)


def is_adapter(name: str) -> bool:
    """Whether a parameter of the network is LoRA's, by its name."""
    return ".lora_" in name


def same_caption_causal_mask(caption_index: Tensor) -> Tensor:
    """(B, 1, S, S) boolean, true where position s may attend to position t: the same caption, and not later.

    Padding attends to padding, so no row of the softmax is empty.
    """
    same = caption_index[:, :, None] == caption_index[:, None, :]
    return same.tril()[:, None]
