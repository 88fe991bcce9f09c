"""What a run does beside its steps: seeds for dropout, the encoder cache, averaged weights, a limit on skipped steps,
caption scores.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from captioning.data.batch import CaptionBatch
from captioning.data.encoder_cache import FrozenEncoder
from captioning.data.records import ImageId
from captioning.errors import UserError
from captioning.evaluation.scoring import Seen, score, variety_of
from captioning.files import readable
from captioning.metrics import caption_scores
from captioning.model.generation import Decoding, generate_from
from captioning.runs import AVERAGE
from captioning.training.module import CaptioningModule, in_eval_mode

log = logging.getLogger(__name__)


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


class EncodeOnce(L.Callback):
    """Has the data module encode every picture with the encoder that the run will keep, and no step run it again.

    At the start of a fit the weights are on their device and a resumed run's are loaded; loaders are made later.

    Args:
        folder: of all caches.
        stored_as: the number format that the encoder's outputs are kept in, `bfloat16` or `float32`.
    """

    def __init__(self, folder: Path, stored_as: str):
        self._folder, self._stored_as = folder, stored_as

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        captioner, precision = pl_module.captioner, trainer.precision_plugin

        @torch.inference_mode()
        def encode(pixel_values: Tensor) -> Tensor:
            with precision.forward_context():
                return captioner.encoder_states(pixel_values.to(pl_module.device))

        captioner.network.encoder.eval()  # as it is in every step of the run
        key = f"{captioner.encoder_fingerprint()} {precision.precision}"
        frozen = FrozenEncoder(key, captioner.encoder_shape(), encode)
        trainer.datamodule.encode(frozen, self._folder, self._stored_as)  # type: ignore[attr-defined]


class AveragedWeights(L.Callback):
    """Averages the weights that train exponentially, over the steps; validations and tests are by the average.

    It is what torch's `AveragedModel` is, updated with the first weights and after each step n with a decay of
    min(decay, (1 + n) / (10 + n)), so that a short run's average is not one of its random beginning. What trains only
    from a later stage joins it then: until there, its average is the weight itself.

    In a checkpoint it has a key of its own, and `state_dict` has the weights that training goes on with, also where
    that is written within a validation. Lightning's `EMAWeightAveraging` exchanges the two there (its issue 21724).

    It must be the last callback but those that save: what others do with the model in a validation is by the average.

    Args:
        decay: of the average at each step, below 1.
    """

    def __init__(self, decay: float):
        self._decay = decay
        self.steps = 0
        self.averages: dict[str, Tensor] = {}  # float32, by the parameter's name in the LightningModule
        self._in_training: dict[str, Tensor] = {}  # the weights themselves, while the average is in their place
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.averages = {name: average.to(pl_module.device) for name, average in self.averages.items()}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: CaptionBatch, batch_idx: int
    ) -> None:
        self._step = trainer.global_step
        for name, weight in pl_module.named_parameters():
            if weight.requires_grad and name not in self.averages:
                self.averages[name] = weight.detach().to(torch.float32, copy=True)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:  # the gradients of a step are being accumulated
            return
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        weights = [pl_module.get_parameter(name).float() for name in self.averages]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @torch.no_grad()
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, average in self.averages.items():
            weight = pl_module.get_parameter(name)
            self._in_training[name] = weight.clone()
            weight.copy_(average)

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, weight in self._in_training.items():
            pl_module.get_parameter(name).copy_(weight)
        self._in_training.clear()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """By the average, which was loaded with the weights; it stays in their place."""
        self.on_validation_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        saved, names = checkpoint["state_dict"], _names_of(pl_module)  # tied weights have several
        checkpoint[AVERAGE] = {
            "steps": self.steps,
            "weights": {also: average for name, average in self.averages.items() for also in names[name]},
        }
        checkpoint["state_dict"] = saved | {
            also: weight for name, weight in self._in_training.items() for also in names[name]
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint without an average begins one."""
        found = checkpoint.get(AVERAGE, {"steps": 0, "weights": {}})
        self.steps, weights = found["steps"], found["weights"]
        self.averages = {name: weights[name] for name, _ in pl_module.named_parameters() if name in weights}
        self._in_training.clear()


def _names_of(module: torch.nn.Module) -> dict[str, list[str]]:
    """Each parameter's names in the state dict, by the first of them."""
    names: dict[int, list[str]] = {}
    for name, weight in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return {those[0]: those for those in names.values()}


class SkippedSteps(L.Callback):
    """Warns of skipped steps with their count, and ends a run that has more of them than it may have.

    It looks as often as a step is logged, so that a GPU need not be waited for in between.

    Args:
        most: skipped steps of a whole run.
        checkpoint: from which the run can go on once it was ended.
    """

    def __init__(self, most: int, checkpoint: Path):
        self._most, self._checkpoint = most, checkpoint
        self._logged = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        self._logged = int(pl_module.skipped_steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: CaptionBatch, batch_idx: int
    ) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        if trainer.global_step % every == 0 or trainer.is_last_batch:
            assert isinstance(pl_module, CaptioningModule)
            self._tell(int(pl_module.skipped_steps), trainer)

    def _tell(self, skipped: int, trainer: L.Trainer) -> None:
        new, self._logged = skipped - self._logged, skipped
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


class CaptionScores(L.Callback):
    """After every n-th epoch, captions a fixed part of the validation pictures and logs their scores, such as CIDEr.

    And how varied they are: the share that differ, their words, and the share that no training caption equals.

    All ranks caption their share, exchange the captions and compute the same scores, so none waits for another.
    CIDEr's document frequencies are those of this part's references; it is comparable within a run.

    Args:
        batches: makes the loader of this rank's pictures, each with its image id.
        references: the captions of every validation picture.
        decoding: how captions are generated.
        decode: token ids to text.
        training: the captions of training, each picture's; None where they are too many to be looked through.
        every_n_epochs: 1 scores after each.
        before_training: also before the first step, since what is trained on has been trained before.
    """

    def __init__(
        self,
        batches: Callable[[], DataLoader],
        references: Mapping[ImageId, Sequence[str]],
        decoding: Decoding,
        decode: Callable[[Sequence[int]], str],
        training: Sequence[Sequence[str]] | None = None,
        *,
        every_n_epochs: int,
        before_training: bool,
    ):
        self._batches, self._references = batches, references
        self._decoding, self._decode = decoding, decode
        self._training = training
        self._seen: Seen | None = None  # of these, made at the first scores
        self._every_n_epochs, self._before_training = every_n_epochs, before_training
        self.captions: dict[ImageId, str] = {}  # the last that were scored

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._before_training and trainer.global_step == 0:
            with in_eval_mode(pl_module):
                metrics = self.scores(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics({"epoch": 0, **metrics}, step=0)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and (trainer.current_epoch + 1) % self._every_n_epochs == 0:
            metrics = self.scores(trainer, pl_module)
            pl_module.log_dict(metrics, logger=False, rank_zero_only=True)

    def scores(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        """The scores of the module's captions now, under the names they are logged by."""
        assert isinstance(pl_module, CaptioningModule)
        captioner = pl_module.captioner
        candidates: dict[ImageId, str] = {}
        for batch in self._batches():
            with trainer.precision_plugin.forward_context(), torch.inference_mode():
                attended = captioner.attended(batch.to(pl_module.device))
                captions = generate_from(captioner, attended, self._decoding)
            texts = [self._decode(caption.token_ids) for caption in captions]
            candidates |= dict(zip(batch.image_ids, texts, strict=True))
        self.captions = candidates = _of_all_ranks(candidates, trainer.world_size)
        found = score(candidates, {picture: self._references[picture] for picture in candidates}).corpus
        scores = {metric.name: found[official] for official, metric in caption_scores(with_java=False).items()}
        if self._training is not None:
            self._seen, self._training = Seen(text for texts in self._training for text in texts), None
        variety = variety_of(list(candidates.values()), self._seen)
        return scores | {f"val/{name}": figure for name, figure in variety.items()}


def _of_all_ranks(candidates: dict[ImageId, str], world_size: int) -> dict[ImageId, str]:
    """All captions, in an order that is the same on every rank."""
    if world_size == 1:
        return candidates
    gathered: list[dict[ImageId, str]] = [{} for _ in range(world_size)]
    torch.distributed.all_gather_object(gathered, candidates)
    return {picture: text for of_rank in gathered for picture, text in of_rank.items()}
