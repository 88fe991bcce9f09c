"""Drawn data and small random models that several test files share."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf
from PIL import Image
from small_runs import composition
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from captioning.cli import quoted
from captioning.config import PredictConfig, PretrainedModelConfig, TinyModelConfig
from captioning.data.batch import Row
from captioning.data.tokenizer import END_OF_TEXT, CaptionTokenizer
from captioning.model.build import Vocabulary, new_captioner
from captioning.model.captioner import ImageCaptioner
from captioning.prediction.plan import predict_config

CAPTIONS = [
    "A brown dog runs across the grass.",
    "Two children play with a ball, near the water!",
    "a man",
    "The woman in a red coat is riding a bicycle down a wet street at night.",
    "Several people are waiting for the bus",
    "A café's sign, half in the dark — nobody there.",
    "A cat sleeps on a chair.",
    "A plane flies over the sea .",
]


def trained_tokenizer() -> CaptionTokenizer:
    """A small BPE learned from `CAPTIONS`."""
    return CaptionTokenizer.train(CAPTIONS, vocab_size=300)


def small_captioner(vocab_size: int, *, spread: float = 0.15, end_of_text: int = 0, **changed: Any) -> ImageCaptioner:
    """16-pixel pictures, two layers a side, in eval mode; every weight is drawn with standard deviation `spread`.

    At the usual 0.02 attention is nearly uniform, and a wrong mask would hardly show.
    """
    sizes = {"image_size": 16, "encoder_width": 32, "encoder_layers": 2, "decoder_width": 32, "decoder_layers": 2}
    config = model_config("tiny", **{**sizes, "max_positions": 48, "initializer_range": 0.02} | changed)
    captioner = new_captioner(config, Vocabulary(vocab_size, end_of_text, end_of_text))
    randomise(captioner, spread)
    return captioner.eval()


def model_config(choice: str, **changed: Any) -> Any:
    """`conf/model/CHOICE.yaml` with some keys changed, as `build.new_captioner` takes it."""
    keys: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / f"{choice}.yaml"))
    if choice == "tiny":
        return TinyModelConfig(**keys | changed)
    return PretrainedModelConfig(**keys | {"allow_pickle": False} | changed)


def checkpoint_of(captioner: ImageCaptioner, tokenizer: CaptionTokenizer) -> dict[str, Any]:
    """What a training checkpoint holds of the model."""
    return {
        "state_dict": {f"captioner.{name}": value for name, value in captioner.state_dict().items()},
        "captioner": {"description": captioner.description(), "tokenizer": tokenizer.to_json()},
    }


def randomise(module: torch.nn.Module, spread: float, seed: int = 0) -> None:
    """Draw every weight anew; norms stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(float(is_norm) + spread * torch.randn(parameter.shape, generator=generator))


class Waits(TorchDispatchMode):
    """Counts, by name, where a GPU's values would be waited for: `tolist`, and what the dispatcher knows of."""

    OPERATORS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.counts: Counter[str] = Counter()
        original = Tensor.tolist

        def tolist(tensor: Tensor) -> list:
            self.counts["tolist"] += 1
            return original(tensor)

        monkeypatch.setattr(Tensor, "tolist", tolist)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += name in self.OPERATORS
        return func(*args, **kwargs or {})


def random_pictures(count: int, size: int = 16, seed: int = 0) -> Tensor:
    """(count, 3, size, size) uint8 noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def encoded_rows(tokenizer: CaptionTokenizer, captions: Sequence[Sequence[str]], size: int = 16) -> list[Row]:
    """A row for each list of captions, with a picture of noise."""
    pictures = random_pictures(len(captions), size)
    return [
        Row(number, picture, [np.array(ids) for ids in tokenizer.encode(texts)])
        for number, (picture, texts) in enumerate(zip(pictures, captions, strict=True))
    ]


class TwoColouredPictures:
    """`load` of a split: picture i is red on the left and blue on the right, its green channel is i."""

    def __init__(self, size: int = 16):
        self._size = size

    def __call__(self, i: int) -> Image.Image:
        pixels = np.zeros((self._size, self._size, 3), np.uint8)
        pixels[:, : self._size // 2, 0] = 255
        pixels[:, self._size // 2 :, 2] = 255
        pixels[:, :, 1] = i
        return Image.fromarray(pixels)

    def identity(self, i: int) -> str:
        return f"{self._size} {i}"


def own_megabytes(pid: int) -> float:
    """USS: the memory that a process shares with no other; Linux alone tells."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


def saved_model(folder: Path, *, own_tokens: bool = False, encoder_width: int = 32) -> Path:
    """A random `VisionEncoderDecoderModel` with processor and tokenizer, as transformers and the hub have them.

    Its special tokens are GPT-2's, or with `own_tokens` four of its own behind the vocabulary, in which the decoder
    has rows to spare. Its weights are so that some of its greedy captions of `noise_pictures` end.
    """
    backend = Tokenizer.from_str(trained_tokenizer().to_json())
    names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    if own_tokens:
        names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.save_pretrained(folder)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items() if "unk" not in name}
    encoder = ViTConfig(
        hidden_size=encoder_width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
        pooler_output_size=encoder_width,
    )
    vocabulary = len(tokenizer) + (6 if own_tokens else 0)
    decoder = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=48, add_cross_attention=True, **ids
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.update({**ids, "decoder_start_token_id": ids["bos_token_id"]})
    network = VisionEncoderDecoderModel(config)
    randomise(network, 0.3)
    _let_captions_end(network.eval(), ids["eos_token_id"])
    network.save_pretrained(folder)
    processor = ViTImageProcessor(
        size={"height": 16, "width": 16}, resample=3, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(folder)
    return folder


def _let_captions_end(network: VisionEncoderDecoderModel, eos_token_id: int) -> None:
    """Make EOS likelier, until some captions have it and others don't."""
    pixels = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    words: Any = network.get_input_embeddings().weight
    towards_end = words[eos_token_id].detach() / words[eos_token_id].square().sum()  # a logit more
    for _ in range(60):
        generated = network.generate(pixels, max_new_tokens=10, do_sample=False)
        if 2 < (generated[:, 1:] == eos_token_id).any(1).sum() < 12:
            return
        with torch.no_grad():
            network.decoder.transformer.ln_f.bias += 0.25 * towards_end
    raise AssertionError("all captions end or none does")


def noise_pictures(folder: Path, count: int = 6) -> list[Path]:
    """So many picture files of noise, larger than the models take."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(noise.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    return paths


def transformers_captions(model: Path, pictures: Sequence[Path], **settings: Any) -> list[str]:
    """What transformers makes of these pictures by itself; it resizes with Pillow, as we do."""
    network = VisionEncoderDecoderModel.from_pretrained(model).eval()
    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(model)
    pixels = processor([Image.open(path).convert("RGB") for path in pictures], return_tensors="pt").pixel_values
    generated = network.generate(pixels, **settings)
    return [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]


class Touches:
    """Unpickled as code would be, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def prediction(checkpoint: Path, pictures: Path, output: Path, *overrides: str) -> PredictConfig:
    """The configuration of a prediction of a folder, of few words, which reads it in this process."""
    given = {"checkpoint": checkpoint, "input": pictures, "output": output, "num_workers": 0}
    given["decoding.max_new_tokens"] = 8
    return predict_config(composition("predict", *(quoted(f"{k}={v}") for k, v in given.items()), *overrides))
