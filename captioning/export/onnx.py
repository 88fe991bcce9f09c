"""A captioner as two ONNX graphs, in the layout of transformers.js: `encoder_model.onnx`, `decoder_model_merged.onnx`.

The encoder's graph ends at the decoder's width. The decoder's takes any number of tokens, with the keys and values of
none or some before them, so it serves the first step and all others; it also says where it looks. Both are made by
`torch.onnx.export` from transformers' own classes with plain attention, and are held against them before they count.

Letters: B pictures, P encoded patches, D decoder width, T new tokens, N tokens before them, V vocabulary.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache, EncoderDecoderCache, VisionEncoderDecoderModel

from captioning.errors import UserError
from captioning.files import write_atomically
from captioning.model.encoders import picture_size

log = logging.getLogger(__name__)

ENCODER, DECODER = "encoder_model", "decoder_model_merged"  # the names that transformers.js looks for
QUANTIZED = "_quantized"  # what it appends for dtype q8
LARGEST = 2**31 - 2**24  # bytes of weights: a file of ONNX holds less than 2 GB, and those of more lie beside it
BESIDE = "_data"  # what transformers.js appends to the name of a graph whose weights do
CLOSE = 1e-4  # by how much logits may differ from torch's, relative to the largest where that is above 1
LOOKS = "cross_attention"  # the decoder's extra output


class EncoderHalf(nn.Module):
    """Normalised pictures (B, 3, H, W) to what the decoder attends to, (B, P, D)."""

    def __init__(self, network: VisionEncoderDecoderModel):
        super().__init__()
        self.encoder = network.encoder
        self.projection = getattr(network, "enc_to_dec_proj", None) or nn.Identity()

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(self.encoder(pixel_values=pixel_values).last_hidden_state)


class DecoderHalf(nn.Module):
    """Tokens (B, T), encoded pictures (B, P, D) and each layer's past (B, heads, N, D / heads) to logits (B, T, V).

    After the logits come each layer's keys and values, (B, heads, N + T, D / heads), and how much each patch was
    attended to, (B, T, P), the mean of all heads and layers.
    """

    def __init__(self, decoder: Any):
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        config = self.decoder.config
        own = DynamicCache(config=config)
        for i, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
            own.update(keys, values, i)
        before, new = past[0].shape[2], input_ids.shape[1]
        position = torch.arange(new) + before
        hidden = position[:, None] < torch.arange(new + before)  # (T, N + T), true for what comes later
        cache = EncoderDecoderCache(own, DynamicCache(config=config))
        with _weights_of(self.decoder) as weights:
            logits = self.decoder(
                input_ids=input_ids,
                encoder_hidden_states=encoder_hidden_states,
                past_key_values=cache,
                attention_mask=(hidden * torch.finfo(torch.float32).min)[None, None],
                position_ids=position[None],
                use_cache=True,
            ).logits
        layers: list[Any] = cache.self_attention_cache.layers
        kept = [states for layer in layers for states in (layer.keys, layer.values)]
        return logits, *kept, torch.stack(weights).mean((0, 2))


@contextmanager
def _weights_of(decoder: Any) -> Iterator[list[Tensor]]:
    """A list that fills with each layer's cross-attention weights (B, heads, T, P)."""
    weights: list[Tensor] = []
    hooks = [
        block.crossattention.register_forward_hook(lambda _, __, output: weights.append(output[1]))
        for block in decoder.transformer.h
    ]
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()


def write_onnx(model: Path, folder: Path, opset: int) -> float:
    """Write both graphs of a folder of transformers' and hold them against it; by how much logits differ at most.

    Args:
        model: the folder, of a `VisionEncoderDecoderModel` with a GPT-2.
        folder: where `encoder_model.onnx` and `decoder_model_merged.onnx` go; it is made.
        opset: the version of ONNX's operators.

    Raises:
        UserError: if torch can't export a half, ONNX Runtime doesn't take it, or it computes something else.
    """
    network: Any = VisionEncoderDecoderModel.from_pretrained(model, attn_implementation="eager").eval()
    network.requires_grad_(False)
    config, size = network.config.decoder, picture_size(network.config.encoder)
    folder.mkdir()
    # by the name batch_size transformers.js knows how many rows an empty past has
    batch, new, before = Dim("batch_size"), Dim("sequence_length", min=1), Dim("past_sequence_length", min=0)
    pixels = torch.randn(2, 3, *size)
    encoder, decoder = EncoderHalf(network).eval(), DecoderHalf(network.decoder).eval()
    with torch.no_grad():
        attended = encoder(pixels)
    _write(
        encoder, (pixels,), ["pixel_values"], ["last_hidden_state"], ({0: batch},), folder / f"{ENCODER}.onnx", opset
    )
    names = [f"{i}.{which}" for i in range(config.num_hidden_layers) for which in ("key", "value")]
    inputs = ["input_ids", "encoder_hidden_states", *(f"past_key_values.{name}" for name in names)]
    outputs = ["logits", *(f"present.{name}" for name in names), LOOKS]
    shapes = ({0: batch, 1: new}, {0: batch}, [{0: batch, 2: before} for _ in names])
    given = (torch.zeros(2, 2, dtype=torch.long), attended, _past(config, 2, 3))
    _write(decoder, given, inputs, outputs, shapes, folder / f"{DECODER}.onnx", opset)
    tell_of_weights_beside(model, folder)
    return largest_difference(encoder, decoder, folder, size)


def tell_of_weights_beside(model: Path, graphs: Path) -> None:
    """Write into `config.json` which graphs have their weights beside them; transformers.js reads it there."""
    beside = {path.name.removesuffix(BESIDE): True for path in sorted(graphs.glob(f"*.onnx{BESIDE}"))}
    if beside:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config["transformers.js_config"] = {"use_external_data_format": beside}
        write_atomically(model / "config.json", json.dumps(config, indent=2) + "\n")


def _bytes_of(part: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in part.parameters())


def _past(config: Any, rows: int, tokens: int) -> list[Tensor]:
    """Random keys and values (B, heads, N, D / heads) of each layer."""
    shape = rows, config.num_attention_heads, tokens, config.hidden_size // config.num_attention_heads
    return [torch.randn(shape) for _ in range(2 * config.num_hidden_layers)]


def _write(
    part: nn.Module, given: tuple, inputs: list[str], outputs: list[str], shapes: tuple, path: Path, opset: int
) -> None:
    half: Any = part.encoder if isinstance(part, EncoderHalf) else part.decoder
    try:
        with warnings.catch_warnings(), errors_alone("torch.onnx", "onnxscript", "onnx_ir"):
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                *(part, given),
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=shapes,
                verbose=False,
            )
        if _bytes_of(part) > LARGEST:
            import onnx_ir  # of captioning[onnx], as what torch exports with

            onnx_ir.save(program.model, path, external_data=f"{path.name}{BESIDE}")
        else:
            program.save(path, external_data=False)
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
        cause: BaseException = error  # the innermost: the outer ones give advice to those who write exporters
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:200]
        raise UserError(
            f"onnx=true: torch {torch.__version__} can't export the {half.config.model_type}: {reason}; leave "
            "onnx=true out"
        ) from error


@contextmanager
def errors_alone(*names: str) -> Iterator[None]:
    """Inside it the loggers of these names, "" for the root, log errors alone."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@torch.inference_mode()
def largest_difference(encoder: EncoderHalf, decoder: DecoderHalf, folder: Path, size: tuple[int, int]) -> float:
    """The largest difference of logits of random pictures and tokens, as a first step and as later ones."""
    graphs = OnnxCaptioner(folder)
    config, worst = decoder.decoder.config, 0.0
    for rows, new, before in ((1, 1, 0), (2, 3, 0), (1, 1, 4)):
        pixels, past = torch.randn(rows, 3, *size), _past(config, rows, before)
        ids = torch.randint(config.vocab_size, (rows, new))
        expected = decoder(ids, encoder(pixels), past)
        found = graphs.step(ids.numpy(), graphs.encode(pixels.numpy()), [states.numpy() for states in past])
        for theirs, ours in zip(found, expected, strict=True):
            scale = max(1.0, float(ours.abs().max()))
            worst = max(worst, float(np.abs(theirs - ours.numpy()).max()) / scale)
    if not worst <= CLOSE:
        raise UserError(
            f"onnx=true: ONNX Runtime's logits differ by {worst:.1e} from torch's, more than {CLOSE}; leave onnx=true "
            "out, and report it with the model's config.json"
        )
    return worst


class OnnxCaptioner:
    """The two graphs of a folder under ONNX Runtime, on the CPU: what transformers.js does with them, in Python.

    Args:
        folder: where the graphs lie.
        suffix: of their names, `_quantized` for those in int8.

    Raises:
        UserError: if ONNX Runtime doesn't take one.
    """

    def __init__(self, folder: Path, suffix: str = ""):
        self._encoder, self._decoder = (_session(folder / f"{name}{suffix}.onnx") for name in (ENCODER, DECODER))
        self._names = [given.name for given in self._decoder.get_inputs()]
        self._past = [given.shape for given in self._decoder.get_inputs()[2:]]

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        """Normalised pictures (B, 3, H, W) float32 to what the decoder attends to, (B, P, D)."""
        return self._encoder.run(None, {"pixel_values": pixel_values})[0]

    def step(self, ids: np.ndarray, attended: np.ndarray, past: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Tokens (B, T) int64 to logits (B, T, V), each layer's keys and values, and where it looked (B, T, P)."""
        return self._decoder.run(None, dict(zip(self._names, (ids, attended, *past), strict=True)))

    def no_past(self, rows: int) -> list[np.ndarray]:
        """Each layer's keys and values before the first step, (B, heads, 0, D / heads)."""
        return [np.zeros((rows, heads, 0, width), np.float32) for _, heads, _, width in self._past]

    def greedy(self, pixel_values: np.ndarray, bos: int, eos: int, max_new_tokens: int) -> list[list[int]]:
        """The likeliest token after the likeliest token of each picture, EOS and what follows it left out."""
        attended, rows = self.encode(pixel_values), len(pixel_values)
        past = self.no_past(rows)
        chosen, ended = np.full((rows, 1), bos), np.zeros(rows, bool)
        for _ in range(max_new_tokens):
            logits, *past, _ = self.step(chosen[:, -1:], attended, past)
            chosen = np.concatenate([chosen, logits[:, -1].argmax(-1)[:, None]], 1)
            ended |= chosen[:, -1] == eos
            if ended.all():
                break
        rows_of_ids = [row[1:].tolist() for row in chosen]
        return [row[: row.index(eos)] if eos in row else row for row in rows_of_ids]


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes have no common base
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} doesn't take {path.name}: {reason}; choose an older onnx_opset, "
            "such as 18, or install a newer onnxruntime"
        ) from error


ONNX = """
## Use with ONNX Runtime or transformers.js

`onnx/` holds the model as transformers.js 4 expects it:

```js
import {{ pipeline }} from "@huggingface/transformers";

const captioner = await pipeline("image-to-text", "{name}", {{ dtype: "fp32" }});
console.log(await captioner("photo.jpg"));
```

Logits agree with torch's to {close:.0e}. transformers.js 4 has no beam search: whatever `num_beams` says, its captions
are greedy.
"""


def with_onnx(folder: Path, name: str, opset: int) -> str:
    """Add the graphs to a folder of transformers'; what its card says of them, by the name `name`."""
    worst = write_onnx(folder, folder / "onnx", opset)
    log.info("onnx: logits within %.1e of torch's", worst)
    log.info("onnx: transformers.js has no beam search; its captions are greedy, whatever num_beams says")
    return ONNX.format(name=name, close=CLOSE)
