"""Reading checkpoints: as data, never as code, and refused in one sentence when they are not ours."""

import pickle
from pathlib import Path
from typing import Any

from captioning.errors import UserError


def checkpoint_file(checkpoint: str | Path, key: str = "checkpoint") -> Path:
    """The file meant by a run folder (its best, or else its last) or by a file's own path; `key` named it.

    Raises:
        UserError: if there is none.
    """
    path = Path(checkpoint)
    candidates = [path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    try:
        found = next((candidate for candidate in (path, *candidates) if candidate.is_file()), None)
    except OSError as error:
        raise UserError(f"{key}={checkpoint} can't be looked at: {error.strerror}; check the path") from error
    if found:
        return found
    names = " or ".join(str(candidate.relative_to(path)) for candidate in candidates)
    problem = f"holds no {names}, and no config.json of transformers" if path.is_dir() else "is not there"
    raise UserError(
        f"{key}={checkpoint} {problem}; give a run folder of train.py, a .ckpt file, or a VisionEncoderDecoderModel's "
        "folder or OWNER/NAME on the Hugging Face hub"
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that `train.py` wrote, on the CPU, its tensors mapped from the file and read when used.

    Raises:
        UserError: if the file is damaged, holds anything but tensors and plain containers, or is no captioner's.
    """
    import torch  # here, since it takes seconds and a wrong path is answered without it

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} holds more than tensors and plain containers, or is no checkpoint at all; it was not "
            "loaded, since that could run code. Give a checkpoint that train.py wrote"
        ) from error
    except PermissionError as error:
        raise UserError(f"checkpoint {path} may not be read; check its permissions") from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise UserError(f"checkpoint {path} is damaged or is no checkpoint; give another one") from error
    ours = isinstance(checkpoint, dict) and isinstance(checkpoint.get("captioner"), dict) and "state_dict" in checkpoint
    if not ours or not {"description", "tokenizer"} <= checkpoint["captioner"].keys():
        raise UserError(f"checkpoint {path} is of another program or architecture; give one that train.py wrote")
    return checkpoint


def refuse_other_architecture(path: Path, description: dict[str, Any], tokenizer: str) -> None:
    """Raise UserError if the checkpoint at `path` is not of the described model or its tokenizer is another."""
    saved = read_checkpoint(path)["captioner"]
    if differing := sorted(_differences(saved["description"], description)):
        raise UserError(
            f"checkpoint {path} is of another architecture ({'; '.join(differing[:3])}); "
            "leave the model as it was, or start a new run"
        )
    if saved["tokenizer"] != tokenizer:
        raise UserError(f"checkpoint {path} was trained with another tokenizer; leave data.tokenizer as it was")


def refuse_fewer_epochs(path: Path, max_epochs: int) -> None:
    """Raise UserError if the run of the checkpoint at `path` has more epochs behind it than `max_epochs`."""
    done = read_checkpoint(path)["epoch"] + 1
    if max_epochs < done:
        raise UserError(
            f"trainer.max_epochs={max_epochs} is fewer than the {done} epochs that {path} has behind it; "
            "give at least as many, or leave it out"
        )


# What may differ between two descriptions of one architecture: the library's version, and what shapes no weight.
SHAPES_NO_WEIGHT = ("pdrop", "dropout", "version", "name_or_path", "dtype", "use_cache", "attn_implementation")


def _differences(saved: Any, now: Any, key: str = "") -> list[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        keys = (saved.keys() | now.keys()) - {k for k in saved.keys() | now.keys() if _shapes_no_weight(k)}
        return [d for k in keys for d in _differences(saved.get(k), now.get(k), f"{key}.{k}" if key else k)]
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        saved, now = list(saved), list(now)
    return [] if saved == now else [f"{key} was {saved} and is {now}"]


def _shapes_no_weight(key: object) -> bool:
    return any(part in str(key) for part in SHAPES_NO_WEIGHT)
