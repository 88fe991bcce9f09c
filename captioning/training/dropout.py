"""Dropout's masks, addressed like all that is random: a function of the seed and the place in the run."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch


class AddressedDropout(L.Callback):
    """Seeds torch's generators for each batch, so that no checkpoint needs their state.

    Args:
        seed_of: the seed for (epoch, batch of the epoch, rank).
    """

    def __init__(self, seed_of: Callable[[int, int, int], int]):
        self._seed_of = seed_of

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        torch.manual_seed(self._seed_of(trainer.current_epoch, batch_idx, trainer.global_rank))
