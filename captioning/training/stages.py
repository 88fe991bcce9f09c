"""What trains when, and how fast: a pure function of the phases and the position in the run.

Nothing here is remembered between calls, so a run that resumes, at whatever moment and however extended, gets exactly
what it would have had. `ApplyStages` is the callback that applies it.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import lightning as L
from lightning.pytorch.strategies import DDPStrategy

from captioning.data.batch import CaptionBatch
from captioning.errors import UserError
from captioning.model.captioner import GROUPS
from captioning.training.module import CaptioningModule

log = logging.getLogger(__name__)

DECAYS = ("cosine", "linear", "none")


@dataclass(frozen=True)
class Phase:
    """From epoch `from_epoch` on, exactly the groups in `train` train."""

    from_epoch: int
    train: frozenset[str]


@dataclass(frozen=True)
class Progress:
    """Where a run is: `step` of `total_steps` optimizer steps, `steps_per_epoch` of them an epoch."""

    step: int
    steps_per_epoch: int
    total_steps: int


class StageSchedule:
    """The phases of a run with the warm-up of each group and the decay of all (`conf/stage`).

    Args:
        phases: mappings with the keys of `Phase`; the first from epoch 0, each later than the one before it.
        learning_rates: each group's peak.
        warmup_steps: optimizer steps over which a group's rate grows from 0, counted from where the group starts to
            train.
        decay: of all rates over the whole run: `cosine` or `linear` to 0, or `none`.

    Raises:
        UserError: for phases out of order, an unknown group, or a rate that is not above 0.
    """

    def __init__(self, phases: Sequence[Mapping], learning_rates: Mapping[str, float], warmup_steps: int, decay: str):
        self.phases = [_phase(phase) for phase in phases or ()]
        self.learning_rates = dict(learning_rates)
        self.warmup_steps = warmup_steps
        self.decay = decay
        self._check()

    def _check(self) -> None:
        starts = [phase.from_epoch for phase in self.phases]
        if not starts or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
            raise UserError(f"stage.phases must start at from_epoch 0 and go on in increasing order, not {starts}")
        for phase in self.phases:
            if not phase.train or phase.train - set(GROUPS):
                named = ", ".join(sorted(phase.train)) or "nothing"
                raise UserError(
                    f"stage.phases trains {named} from epoch {phase.from_epoch}; "
                    f"it must name some of {', '.join(GROUPS)}"
                )
        for group in sorted(frozenset().union(*(phase.train for phase in self.phases))):
            rate = self.learning_rates.get(group)
            if not isinstance(rate, int | float) or not rate > 0:
                raise UserError(f"stage.learning_rates.{group}={rate} must be a number above 0")
        if self.decay not in DECAYS:
            raise UserError(f"stage.decay={self.decay} is none of {', '.join(DECAYS)}")
        if not isinstance(self.warmup_steps, int) or self.warmup_steps < 0:
            raise UserError(f"stage.warmup_steps={self.warmup_steps} must be a whole number of 0 or more")

    def require_frozen_encoder(self, because: str) -> None:
        """Raise UserError, which begins with `because`, if any phase trains the encoder."""
        starts = [phase.from_epoch for phase in self.phases if "encoder" in phase.train]
        if starts:
            raise UserError(
                f"{because} needs an encoder that stays as it is, and this stage trains it from epoch {starts[0]}; "
                "choose stage=cross_attention or stage=decoder, or leave encoder_cache=null"
            )

    def phase(self, epoch: int) -> Phase:
        """The phase that `epoch` is in."""
        return [phase for phase in self.phases if phase.from_epoch <= epoch][-1]

    def trainable(self, epoch: int) -> tuple[str, ...]:
        """The groups that train in `epoch`, in the order of `GROUPS`."""
        return tuple(group for group in GROUPS if group in self.phase(epoch).train)

    def learning_rate(self, group: str, progress: Progress) -> float:
        """The rate of `group` for the step that comes next; 0 while the group is frozen."""
        epoch = progress.step // progress.steps_per_epoch
        if group not in self.phase(epoch).train:
            return 0.0
        steps_trained = progress.step - self._start_epoch(group, epoch) * progress.steps_per_epoch
        warmup = min(1.0, (steps_trained + 1) / (self.warmup_steps + 1))
        return self.learning_rates[group] * warmup * self._decayed(progress.step / max(1, progress.total_steps))

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


def _phase(described: Mapping) -> Phase:
    try:
        epoch, groups = described["from_epoch"], described["train"]
    except (KeyError, TypeError) as error:
        raise UserError(f"stage.phases holds {described}, not {{from_epoch: 0, train: [cross_attention]}}") from error
    if not isinstance(epoch, int) or isinstance(groups, str) or not isinstance(groups, Sequence):
        raise UserError(f"stage.phases holds {described}; from_epoch is a whole number and train a list of groups")
    return Phase(epoch, frozenset(groups))


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
        progress = progress_of(trainer, batch_idx)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self._schedule.learning_rate(group["name"], progress)

    def _apply(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        groups = self._schedule.trainable(trainer.current_epoch)
        pl_module.captioner.set_trainable(groups)
        if groups != self._applied and isinstance(trainer.strategy, DDPStrategy):
            # Wrapped anew, DDP waits for the gradients of exactly these, and begins with the weights of rank 0.
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()
        if groups != self._applied and trainer.is_global_zero:
            count = pl_module.captioner.trainable_count()
            log.info("epoch %d: training %s, %s parameters", trainer.current_epoch, ", ".join(groups), f"{count:,}")
        self._applied = groups


def progress_of(trainer: L.Trainer, batch_idx: int) -> Progress:
    """Where the trainer is, in optimizer steps, before batch `batch_idx` of its epoch.

    Told by the epoch, not by the steps taken: a run may resume with another batch size, and so other epochs' lengths.
    """
    accumulated = trainer.accumulate_grad_batches
    steps_per_epoch = max(1, math.ceil(trainer.num_training_batches / accumulated))
    step = trainer.current_epoch * steps_per_epoch + batch_idx // accumulated
    return Progress(step, steps_per_epoch, int(trainer.estimated_stepping_batches))
