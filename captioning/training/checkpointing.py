"""Checkpoints: written whole or not at all, read as data and never as code."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from captioning.files import atomic_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves under a temporary name, syncs and renames; loads with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one file; until it is whole, the one that was there before stays."""
        with atomic_file(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Tensors and plain containers only; a file with anything else in it is refused."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, for a run folder that may have been moved: what it remembers by path, it finds in `dirpath`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the saved state over, its paths led into this run's folder."""
        here = {key: self._here(value) for key, value in state_dict.items() if key.endswith("_path")}
        best = {self._here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **here, "best_k_models": best, "dirpath": self.dirpath})

    def _here(self, path: str) -> str:
        assert self.dirpath is not None
        return str(Path(self.dirpath) / Path(path).name) if path else path


def checkpoint_callbacks(run_dir: Path, best_by: str, every_n_epochs: int) -> list[RunCheckpoint]:
    """`checkpoints/best.ckpt` and, at the end of every epoch, `checkpoints/last.ckpt`.

    Best is the lowest `val/perplexity`, or the highest of another metric; `best_by` is there every n epochs.
    """
    common: dict[str, Any] = {
        "dirpath": run_dir / "checkpoints",
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
    }
    mode = "min" if best_by == "val/perplexity" else "max"
    best = RunCheckpoint(filename="best", monitor=best_by, mode=mode, every_n_epochs=every_n_epochs, **common)
    last = RunCheckpoint(filename="last", save_on_train_epoch_end=True, every_n_epochs=1, **common)
    return [best, last]
