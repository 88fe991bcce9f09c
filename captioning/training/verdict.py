"""A run judges itself: what guessing would reach, whether the model is better than that, and what it writes."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any, NamedTuple

import lightning as L
import numpy as np

from captioning.data.records import ImageId
from captioning.training.callbacks import CaptionScores

log = logging.getLogger(__name__)

SAMPLES = 3  # captions shown after each validation, the same pictures each time
MOSTLY = 0.5  # a caption of more than this share of the pictures is written for everything
LONGEST = 100  # letters of a caption that are shown
ALIKE = 0.1  # so many different captions, of the different references there are, are written by heart too
FEW = 10  # captions of which nothing is concluded
RISES = 2  # validations in a row that are worse, while training gets better, are no accident


def _number(value: float) -> str:
    """Four digits, and none behind the point of a large number; never an exponent."""
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"


class Guessing(NamedTuple):
    """Perplexities, of the training captions, of models that see neither picture nor context; both are exact."""

    unigram: float  # knows how frequent each token is
    uniform: float  # knows how many tokens there are

    @classmethod
    def of(cls, counts: np.ndarray) -> "Guessing":
        """Of the number of times that each token of the vocabulary is a target.

        >>> Guessing.of(np.array([2, 1, 1, 0]))  # doctest: +ELLIPSIS
        Guessing(unigram=2.828427124746..., uniform=4.0)
        """
        shares = counts[counts > 0] / counts.sum()
        return cls(math.exp(-float((shares * np.log(shares)).sum())), float(len(counts)))


class Verdict(L.Callback):
    """Logs with each validation what guessing would reach, and says how the model compares and what it writes.

    Args:
        guessing: perplexities to beat.
        scores: has the captions of the last validation; None where none are made.
        references: of every validation picture.
        floor: the lowest perplexity that any model can reach on validation, where that is known.
        published: a sentence on what is reached on this data set.
    """

    def __init__(
        self,
        guessing: Guessing,
        scores: CaptionScores | None = None,
        references: Mapping[ImageId, Sequence[str]] | None = None,
        floor: float | None = None,
        published: str = "",
    ):
        self._guessing, self._scores, self._references = guessing, scores, references or {}
        self._published = published
        self._known = {"val/perplexity_unigram": guessing.unigram, "val/perplexity_uniform": guessing.uniform}
        if floor is not None:
            self._known["val/perplexity_floor"] = floor
        self._losses: list[tuple[float, float]] = []  # of epochs, (training, validation)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        words = "perplexity of guessing: %s by how frequent each token of the training captions is, %s evenly"
        log.info(words, *map(_number, self._guessing))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log_dict(self._known, logger=False, rank_zero_only=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        train = trainer.callback_metrics.get("train/loss")
        self._compare(float(trainer.callback_metrics["val/perplexity"]), math.inf if train is None else math.exp(train))
        captions = self._scores.captions if self._scores else {}
        if len(captions) >= FEW:
            ((commonest, times),) = Counter(captions.values()).most_common(1)
            if times > MOSTLY * len(captions):
                words = "%d of %d validation captions are the same, %r: the model looks at no picture yet"
                log.warning(words, times, len(captions), shorten(commonest, LONGEST, placeholder=" ..."))
            else:
                self._say_if_few_differ(captions)
        for caption, reference in self._samples():
            log.info("  %s  (a reference: %s)", caption, reference)

    def _say_if_few_differ(self, captions: Mapping[ImageId, str]) -> None:
        """Of people's captions as many as there are of the model's: one of each picture."""
        written, by_people = len(set(captions.values())), len({self._references[picture][0] for picture in captions})
        if written < ALIKE * by_people:
            words = "the model writes %d different captions for %d pictures, for which people wrote %d: it tells %s"
            log.warning(words, written, len(captions), by_people, "pictures hardly apart yet")

    def _compare(self, perplexity: float, in_training: float) -> None:
        """Of validation, and of the last training step that was logged."""
        unigram = self._guessing.unigram
        if perplexity < unigram:
            words = "val/perplexity %s, %.3g times lower than by guessing"
            log.info(words, _number(perplexity), unigram / perplexity)
        elif in_training < unigram / 2:
            log.warning(
                "val/perplexity %s is no better than guessing by how frequent tokens are (%s), but of the training "
                "captions it is %s: these are learned by heart. More pictures help, or weights that have seen others: "
                "model.init_from=...",
                *map(_number, (perplexity, unigram, in_training)),
            )
        else:
            log.warning(
                "val/perplexity %s is no better than guessing by how frequent tokens are (%s): nothing is learned "
                "yet. More epochs, a shorter stage.warmup_steps or higher stage.learning_rates may help",
                *map(_number, (perplexity, unigram)),
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where training gets better and validation worse."""
        names = ("train/loss_epoch", "val/loss")
        if not all(name in trainer.callback_metrics for name in names):
            return
        train, val = (float(trainer.callback_metrics[name]) for name in names)
        self._losses = [*self._losses, (train, val)][-RISES - 1 :]
        pairs = list(zip(self._losses, self._losses[1:], strict=False))
        overfits = len(pairs) == RISES and all(new[0] < old[0] and new[1] > old[1] for old, new in pairs)
        if overfits and trainer.is_global_zero:
            log.warning(
                "val/loss has risen %d times in a row while training's fell: the model learns the training captions by "
                "heart. best.ckpt keeps the best; early_stopping_epochs=%d ends such a run",
                *(RISES, RISES),
            )

    def _samples(self) -> list[tuple[str, str]]:
        captions = self._scores.captions if self._scores else {}
        chosen = sorted(captions, key=str)[:SAMPLES]
        shown = {picture: shorten(captions[picture], LONGEST, placeholder=" ...") for picture in chosen}
        return [(shown[picture] or "(nothing)", self._references[picture][0]) for picture in chosen]

    def notes(self) -> str:
        """What stands under the table of `results.md`."""
        lines = [
            "",
            f"Guessing by how frequent each token is has a perplexity of {_number(self._guessing.unigram)}, guessing "
            f"evenly {_number(self._guessing.uniform)}.",
        ]
        if samples := self._samples():
            lines += ["", "Captions of the last validation:", ""]
            lines += [f"- {caption} (a reference: {reference})" for caption, reference in samples]
        if self._published:
            lines += ["", self._published]
        return "\n".join(lines) + "\n"

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses = [(train, val) for train, val in state_dict["losses"]]
