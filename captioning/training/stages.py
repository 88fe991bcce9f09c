"""What trains when, and how fast: a pure function of the phases and the position in the run.

Nothing here is remembered between calls, so a run that resumes, at whatever moment and however extended, gets exactly
what it would have had. `ApplyStages` is the callback that applies it.
"""

import logging
import math
from dataclasses import dataclass

import lightning as L
from lightning.pytorch.strategies import DDPStrategy

from captioning.config import GROUPS, PhaseConfig, StageConfig
from captioning.data.batch import CaptionBatch
from captioning.training.lightning_internals import wrap_anew
from captioning.training.module import CaptioningModule

log = logging.getLogger(__name__)

WARMUP_PART = 10  # a warm-up is a tenth of a run at most
LEAST_PEAK = 0.3  # of a group's rate, below which its share of a run is not what its stage means
FEW_STEPS = 300


@dataclass(frozen=True)
class Position:
    """Where a run is: `step` of `total_steps` optimizer steps, `steps_per_epoch` of them an epoch."""

    step: int
    steps_per_epoch: int
    total_steps: int


class StageSchedule:
    """The phases of a run with the warm-up of each group and the decay of all (`conf/stage`)."""

    def __init__(self, stage: StageConfig):
        self.phases = stage.phases
        self.learning_rates: dict[str, float] = stage.learning_rates.plain()
        self.warmup_steps = stage.warmup_steps
        self.decay = stage.decay

    def phase(self, epoch: int) -> PhaseConfig:
        """The phase that `epoch` is in."""
        return [phase for phase in self.phases if phase.from_epoch <= epoch][-1]

    def trainable(self, epoch: int) -> tuple[str, ...]:
        """The groups that train in `epoch`, in the order of `GROUPS`."""
        return tuple(group for group in GROUPS if group in self.phase(epoch).train)

    def learning_rate(self, group: str, position: Position) -> float:
        """The rate of `group` for the step that comes next; 0 while the group is frozen."""
        epoch = position.step // position.steps_per_epoch
        if group not in self.phase(epoch).train:
            return 0.0
        steps_trained = position.step - self._start_epoch(group, epoch) * position.steps_per_epoch
        warmup = min(1.0, (steps_trained + 1) / (self.warmup(position.total_steps) + 1))
        return self.learning_rates[group] * warmup * self._decayed(position.step / max(1, position.total_steps))

    def warmup(self, total_steps: int) -> int:
        """Steps of a group's warm-up in a run of so many: a tenth of them at most."""
        return min(self.warmup_steps, total_steps // WARMUP_PART)

    def remarks(self, steps_per_epoch: int, total_steps: int) -> tuple[list[str], list[str]]:
        """What a run of so many optimizer steps does otherwise than its stage says, and what of it does not fit."""
        said, wrong = [], []
        if (warmup := self.warmup(total_steps)) < self.warmup_steps:
            said.append(
                f"stage.warmup_steps={self.warmup_steps} is {warmup} in this run: a tenth of its {total_steps} steps"
            )
        epochs = max(1, math.ceil(total_steps / steps_per_epoch))
        for group in GROUPS:
            start = next((phase.from_epoch for phase in self.phases if group in phase.train), None)
            if start is None:
                continue
            if start >= epochs:
                wrong.append(f"{group} would train from epoch {start}, counted from 0: the run ends before")
                continue
            steps = range(start * steps_per_epoch, total_steps)
            seen = steps[:: max(1, len(steps) // 100)]
            highest = max(self.learning_rate(group, Position(step, steps_per_epoch, total_steps)) for step in seen)
            if highest < LEAST_PEAK * (peak := self.learning_rates[group]):
                wrong.append(
                    f"{group} trains from epoch {start} of {epochs}, where warm-up and decay leave it {highest:.1e} of "
                    f"stage.learning_rates.{group}={peak:.1e} at most"
                )
        if wrong:
            wrong[-1] += "; give the run more epochs (trainer.max_epochs), or take stage=together"
        return said, wrong

    def _start_epoch(self, group: str, epoch: int) -> int:
        """The epoch in which `group`, training in `epoch`, was last switched on."""
        start = epoch
        for phase in reversed([phase for phase in self.phases if phase.from_epoch <= epoch]):
            if group not in phase.train:
                break
            start = phase.from_epoch
        return start

    def _decayed(self, done: float) -> float:
        done = min(1.0, done)
        if self.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1 - done if self.decay == "linear" else 1.0


class ApplyStages(L.Callback):
    """Sets what trains at every start and every epoch, and the rates before every step.

    Lightning's own `BaseFinetuning` is not used: it freezes again on resume (issue 21901) and its param groups come
    and go, which loses synchrony under DDP (issue 20340).
    """

    def __init__(self, schedule: StageSchedule):
        self._schedule = schedule
        self._applied: tuple[str, ...] = ()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Here too, since Lightning calls no epoch start for an epoch that it resumes in the middle."""
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._apply(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: CaptionBatch, batch_idx: int
    ) -> None:
        position = position_of(trainer, batch_idx)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self._schedule.learning_rate(group["name"], position) * group.get("rate_scale", 1.0)

    def _apply(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        groups = self._schedule.trainable(trainer.current_epoch)
        pl_module.captioner.set_trainable(groups)
        if groups != self._applied and isinstance(trainer.strategy, DDPStrategy):
            wrap_anew(trainer.strategy, pl_module)
        if groups != self._applied and trainer.is_global_zero:
            count = pl_module.captioner.trainable_count()
            log.info("epoch %d: training %s, %s parameters", trainer.current_epoch, ", ".join(groups), f"{count:,}")
        self._applied = groups


def position_of(trainer: L.Trainer, batch_idx: int) -> Position:
    """Where the trainer is, in optimizer steps, before batch `batch_idx` of its epoch.

    By the epoch, not by the steps taken: a run may resume with another batch size, and so other epochs' lengths.
    """
    accumulated = trainer.accumulate_grad_batches
    steps_per_epoch = max(1, math.ceil(trainer.num_training_batches / accumulated))
    step = trainer.current_epoch * steps_per_epoch + batch_idx // accumulated
    return Position(step, steps_per_epoch, int(trainer.estimated_stepping_batches))
