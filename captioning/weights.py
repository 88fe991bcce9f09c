"""Where a captioner's weights lie: a run, a `.ckpt` file, a folder or hub name of transformers. Found without torch."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from captioning.errors import UserError
from captioning.hub import could_be_hub_name, fetched_file
from captioning.model.encoders import ENCODERS, JOINT, one_of
from captioning.runs import checkpoint_file

EXAMPLE = "nlpconnect/vit-gpt2-image-captioning"
DECODERS = ("gpt2",)  # by transformers' names, as ENCODERS are
HALVES = {"encoder": tuple(ENCODERS), "decoder": DECODERS}
FILES = "config.json, model.safetensors, preprocessor_config.json and the tokenizer's files"
# What model.init_from leaves to the configuration; all else of the model comes from there.
STILL_FREE = ("init_from", "dropout", "attention_dropout", "stochastic_depth", "gradient_checkpointing", "compile")


@dataclass(frozen=True)
class HuggingFaceModel:
    """A model of transformers, and the key that named it."""

    name: str  # hub name or local folder
    key: str
    allow_pickle: bool = False  # whether its weights may come in a pickle

    def __str__(self) -> str:
        return f"{self.key}={self.name}"


def find_weights(given: str | Path, key: str = "checkpoint", allow_pickle: bool = False) -> Path | HuggingFaceModel:
    """What is meant by the value of `key`: a checkpoint file of ours, or a model of transformers.

    Looks at the disk first and then, if the value could be a name there, asks the hub for its `config.json`.

    Raises:
        UserError: if it is neither, or a model of another architecture.
    """
    path = Path(given)
    if path.is_dir() and (path / "config.json").is_file() and not (path / "checkpoints").is_dir():
        config = path / "config.json"
    elif not path.exists() and could_be_hub_name(str(given)):
        config = _fetched_config(str(given), key)
    else:
        return checkpoint_file(given, key)
    _require_known_halves(_read(config, given, key), given, key)
    return HuggingFaceModel(str(given), key, allow_pickle)


def weight_files(folder: Path) -> list[Path]:
    """All files of weights in a folder of transformers, shards and pickles too, with the tables of the shards."""
    patterns = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def stamp_of(weights: Path | HuggingFaceModel) -> object:
    """By what weights on this disk are known again without being read, for each file; None of those on the hub."""
    files = [weights] if isinstance(weights, Path) else weight_files(Path(weights.name))
    stamps = [_stamp(file) for file in files if file.is_file()]
    return stamps[0] if len(stamps) == 1 else stamps or None


def _stamp(file: Path) -> dict[str, object]:
    status = file.stat()
    changed = datetime.fromtimestamp(status.st_mtime, UTC).isoformat()
    return {"file": file.name, "bytes": status.st_size, "changed": changed}


def refuse_overruled(config: DictConfig, given: Iterable[str]) -> None:
    """Raise UserError if the keys `given` on the command line hold one that `model.init_from` decides."""
    start = config.model.get("init_from")
    if start is None:
        return
    free = {f"model.{name}" for name in STILL_FREE}
    if "encoder" in config.model:  # pretrained: its position embeddings can be interpolated
        free.add("model.image_size")
    for key in given:
        if key == "data.tokenizer" or (key.startswith("model.") and key not in free):
            raise UserError(f"{key} comes from model.init_from={start}; leave one of the two out")


def _fetched_config(name: str, key: str) -> Path:
    try:
        return fetched_file(name, "config.json")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}={name} is not there, could not be fetched from the Hugging Face hub either, and is not in its "
            "local cache; check the name and the network, or give a run folder of train.py, a .ckpt file, or a local "
            f"folder that holds {FILES}"
        ) from error


def _read(config: Path, given: str | Path, key: str) -> dict[str, Any]:
    try:
        contents = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={given} has a config.json that can't be read; give an undamaged model") from error
    return contents if isinstance(contents, dict) else {}


def _require_known_halves(config: dict[str, Any], given: str | Path, key: str) -> None:
    encoders = one_of(family.name for family in ENCODERS.values())
    way_out = f"give a VisionEncoderDecoderModel of a {encoders} and a GPT-2, such as {EXAMPLE}"
    kind = config.get("model_type")
    for half, known in HALVES.items():
        if kind in known or (half == "encoder" and kind in JOINT):
            or_train = f", or train with model.{half}={given}" if key.startswith("model.") else ""
            raise UserError(f"{key}={given} is a {kind} model alone, half a captioner; {way_out}{or_train}")
    if kind != "vision-encoder-decoder":
        raise UserError(f"{key}={given} is a {kind} model, by its config.json; {way_out}")
    for half, known in HALVES.items():
        part = config.get(half)
        found = part.get("model_type") if isinstance(part, dict) else None
        if found not in known:
            raise UserError(f"{key}={given} has a {found} as its {half}, and a {one_of(known)} is needed; {way_out}")
