"""Steps whose loss or gradient was not finite: `CaptioningModule` skips them, here they are told and limited."""

import logging
from pathlib import Path

import lightning as L

from captioning.batch import CaptionBatch
from captioning.errors import UserError
from captioning.files import readable
from captioning.training.module import CaptioningModule

log = logging.getLogger(__name__)


class SkippedSteps(L.Callback):
    """Warns of skipped steps with their count, and ends a run that has more of them than it may have.

    It looks as often as a step is logged, so that a GPU need not be waited for in between. Stands before the
    checkpoints in the list of callbacks.

    Args:
        most: skipped steps of a whole run.
        checkpoint: from which the run can go on once it was ended.
    """

    def __init__(self, most: int, checkpoint: Path):
        self._most, self._checkpoint = most, checkpoint
        self._told = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        self._told = int(pl_module.skipped_steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: CaptionBatch, batch_idx: int
    ) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        if trainer.global_step % every == 0 or trainer.is_last_batch:
            assert isinstance(pl_module, CaptioningModule)
            self._tell(int(pl_module.skipped_steps), trainer)

    def _tell(self, skipped: int, trainer: L.Trainer) -> None:
        new, self._told = skipped - self._told, skipped
        if not new:
            return
        found = f"by step {trainer.global_step} the loss or its gradient was not finite in {new} more steps"
        if skipped > self._most:
            raise UserError(
                f"{found}, {skipped} in all, more than max_skipped_steps={self._most}; "
                f"none of them changed a weight, and {self._kept()}"
            )
        if trainer.is_global_zero:
            log.warning("%s, which were skipped: %d of at most %d of this run", found, skipped, self._most)

    def _kept(self) -> str:
        if not self._checkpoint.is_file():
            return "no checkpoint was written yet; lower stage.learning_rates, and look at the data"
        return (
            f"the last good checkpoint is {readable(self._checkpoint)}; "
            "lower stage.learning_rates, or allow more, as you resume"
        )
