"""During training, the scores of the captions that the model makes: what perplexity can't tell."""

from collections.abc import Callable, Mapping, Sequence

import lightning as L
import torch
from torch.utils.data import DataLoader

from captioning.batch import ImageId
from captioning.errors import UserError
from captioning.evaluation.scoring import score
from captioning.model.generation import Decoding, generate_from
from captioning.training.module import CaptioningModule, in_eval_mode

LOGGED = {  # what the field calls them, and the name here
    "Bleu_1": "val/bleu_1",
    "Bleu_2": "val/bleu_2",
    "Bleu_3": "val/bleu_3",
    "Bleu_4": "val/bleu_4",
    "ROUGE_L": "val/rouge_l",
    "CIDEr": "val/cider",
}


class CaptionScores(L.Callback):
    """After every n-th epoch, captions a fixed part of the validation pictures and logs BLEU, ROUGE-L and CIDEr.

    All ranks caption their share, exchange the captions and compute the same scores, so none waits for another.
    CIDEr's document frequencies are those of this part's references; it is comparable within a run.

    Args:
        batches: makes the loader of this rank's pictures, each with its image id.
        references: the captions of every validation picture.
        decoding: how captions are generated.
        decode: token ids to text.
        every_n_epochs: 1 scores after each.
        before_training: also before the first step, since what is trained on has been trained before.
    """

    def __init__(
        self,
        batches: Callable[[], DataLoader],
        references: Mapping[ImageId, Sequence[str]],
        decoding: Decoding,
        decode: Callable[[Sequence[int]], str],
        *,
        every_n_epochs: int,
        before_training: bool,
    ):
        self._batches, self._references = batches, references
        self._decoding, self._decode = decoding, decode
        self._every_n_epochs, self._before_training = every_n_epochs, before_training

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
        candidates = _of_all_ranks(candidates, trainer.world_size)
        found = score(candidates, {picture: self._references[picture] for picture in candidates}).corpus
        return {name: found[official] for official, name in LOGGED.items()}


def _of_all_ranks(candidates: dict[ImageId, str], world_size: int) -> dict[ImageId, str]:
    """All captions, in an order that is the same on every rank."""
    if world_size == 1:
        return candidates
    gathered: list[dict[ImageId, str]] = [{} for _ in range(world_size)]
    torch.distributed.all_gather_object(gathered, candidates)
    return {picture: text for of_rank in gathered for picture, text in of_rank.items()}


def check_best_by(best_by: str, pictures: int, every_n_epochs: int, epochs: int) -> None:
    """Raise UserError unless checkpoints can be chosen by this metric, given what is scored and when."""
    known = ("val/perplexity", *LOGGED.values())
    if best_by not in known:
        raise UserError(f"stage.best_by={best_by} is none of {', '.join(known)}")
    if best_by == "val/perplexity":
        return
    if not pictures:
        raise UserError(f"stage.best_by={best_by} needs captions to score; set scores.pictures above 0")
    if every_n_epochs > epochs:
        raise UserError(
            f"stage.best_by={best_by} is never measured, with scores.every_n_epochs={every_n_epochs} and "
            f"trainer.max_epochs={epochs}; lower the first"
        )
