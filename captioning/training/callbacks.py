"""What is measured, shown and kept in bounds while a run trains.

What is measured and shown while a run trains.

From the sums of a step to the rows of the loggers, and through checkpoints without a gap or a doubled row.

Dropout's masks, addressed like all that is random: a function of the seed and the place in the run.

The encoder cache's side of training: the frozen encoder, handed to the data before the first batch is made.

Steps whose loss or gradient was not finite: `CaptioningModule` skips them, here they are told and limited.

The same few validation pictures, captioned anew after each validation, for people to look at.

During training, the scores of the captions that the model makes: what perplexity can't tell.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
import wandb
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from captioning.data.batch import CaptionBatch, FrozenEncoder
from captioning.data.records import ImageId
from captioning.errors import UserError
from captioning.evaluation.scoring import score
from captioning.files import readable, write_atomically
from captioning.metrics import METRICS, caption_scores, in_reading_order
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Caption, Decoding, generate, generate_from
from captioning.training.loggers import MetricsCsv
from captioning.training.module import CaptioningModule, TokenAverage, in_eval_mode

log = logging.getLogger(__name__)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with the numbers that matter under short names, and without exponents."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Also where the run resumes in mid-epoch, for which Lightning starts no epoch."""
        super().on_train_start()
        self.on_train_epoch_start(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the line, so that what is said next has one of its own."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, int | str | float | dict]:
        """The metrics to show behind the bar."""
        metrics = trainer.callback_metrics
        shown = [(*metric.bar, metrics[metric.name]) for metric in METRICS if metric.bar and metric.name in metrics]
        return {label: f"{float(value):.{decimals}f}" for label, decimals, value in shown}


class KnownFloor(L.Callback):
    """Logs the lowest perplexity that any model can reach on the validation split, where that is known (shapes)."""

    def __init__(self, floor: float):
        self._floor = floor

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("val/perplexity_floor", self._floor, logger=False, rank_zero_only=True)


class ResultsTable(L.Callback):
    """Keeps `results.md`, the run's losses and perplexities by epoch, up to date in the run folder.

    Stands after `MetricRows` and before the checkpoints in the list of callbacks: it reads the one's metrics, and
    its rows go into the other, so that a resumed run has them all.
    """

    def __init__(self, run_dir: Path):
        self._path = run_dir / "results.md"
        self._columns = [metric for metric in in_reading_order() if metric.column]
        self._rows: dict[int, list[float]] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        self._rows[trainer.current_epoch] = [float(metrics.get(one.name, math.nan)) for one in self._columns]
        try:
            write_atomically(self._path, self._table())
        except OSError as error:  # the next epoch writes all of it
            log.warning("results.md could not be written: %s", error.strerror or error)

    def _table(self) -> str:
        logged = [not all(map(math.isnan, column)) for column in zip(*self._rows.values(), strict=True)]
        shown = [i for i, metric in enumerate(self._columns) if metric.official is None or logged[i]]
        lines = [["Epoch", *(str(self._columns[i].column) for i in shown)], ["---:"] * (len(shown) + 1)]
        for epoch, values in self._rows.items():  # an epoch may not be validated
            lines.append([str(epoch), *("-" if math.isnan(values[i]) else f"{values[i]:.4f}" for i in shown)])
        return f"| {' | '.join(lines[0])} |\n|{'|'.join(lines[1])}|\n" + "".join(
            f"| {' | '.join(line)} |\n" for line in lines[2:]
        )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows, "columns": [metric.name for metric in self._columns]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The rows, whose columns may be others by now."""
        now = [metric.name for metric in self._columns]
        before = state_dict.get("columns", now)
        rows = {epoch: dict(zip(before, row, strict=False)) for epoch, row in state_dict["rows"].items()}
        self._rows = {epoch: [row.get(name, math.nan) for name in now] for epoch, row in rows.items()}


SAVED_AS = "metric_rows"  # in a checkpoint


class MetricRows(L.Callback):
    """The one place from which metrics reach the loggers, as rows: one per logged step, one per epoch, one per test.

    A step's row holds what the module makes of all steps since the row before, loss and perplexity exact to the token,
    with rates, gradient norm and speed. An epoch's row holds the whole epoch's, under the same names with `_epoch`, and
    the validation's. Steps are counted from 1: step n is the state after n optimizer steps.

    A checkpoint holds the sums so far and the number of rows, so that a resumed run's rows go on where its were.
    """

    def __init__(self) -> None:
        self._window, self._epoch = TokenAverage(), TokenAverage()
        self._captions = 0
        self._seconds, self._running_since = 0.0, 0.0  # of training since the last row; 0 while it stands still
        self._logged_step = 0
        self._metrics_so_far: dict[str, float] = {}  # of the epoch that a resumed run is in

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        pl_module.on_train_loss.append(self._add)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._running_since = time.perf_counter()
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._metrics_so_far.items()})

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the sums, those of all ranks together."""
        checkpoint[SAVED_AS] = {
            "window": _over_ranks(trainer, self._window.totals()),
            "epoch": _over_ranks(trainer, self._epoch.totals()),
            "captions": self._captions,
            "seconds": self._seconds_trained(),
            "logged_step": self._logged_step,
            "metrics": _evaluated(trainer, "val/"),
            "rows": sum(logger.rows for logger in trainer.loggers if isinstance(logger, MetricsCsv)),
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the sums over, and drop the rows that the run logged after this checkpoint."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        saved = checkpoint[SAVED_AS]
        for average, totals in ((self._window, saved["window"]), (self._epoch, saved["epoch"])):
            if trainer.is_global_zero:  # the other ranks begin at nothing: these are the sums of all
                average.reset(totals[0], int(totals[1]))
        self._captions, self._seconds = saved["captions"], saved["seconds"]
        self._logged_step, self._metrics_so_far = saved["logged_step"], saved["metrics"]
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.keep(saved["rows"])

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch.reset()
        self._start_window()
        for name in [name for name in trainer.callback_metrics if name.startswith("val/")]:
            del trainer.callback_metrics[name]  # an epoch without a validation must not show the last one's

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: CaptionBatch, batch_idx: int
    ) -> None:
        self._captions += batch.caption_count * trainer.world_size
        step = trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        if step != self._logged_step and (step % every == 0 or trainer.is_last_batch):
            self._logged_step = step
            self._log_window(trainer, pl_module)
            self._start_window()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seconds, self._running_since = self._seconds_trained(), 0.0  # validation is not training speed

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._running_since = time.perf_counter()
        if not trainer.sanity_checking and not trainer.is_last_batch:  # in mid-epoch: trainer.val_check_interval
            _to_loggers(trainer, _epoch_and(trainer, _evaluated(trainer, "val/")))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule)
        metrics = pl_module.training_metrics(*_over_ranks(trainer, self._epoch.totals()))
        whole = {f"{name}_epoch": value for name, value in metrics.items()}
        pl_module.log_dict(whole, logger=False, rank_zero_only=True)
        _to_loggers(trainer, _epoch_and(trainer, {**whole, **_evaluated(trainer, "val/")}))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _to_loggers(trainer, _evaluated(trainer, "test/"))

    def _add(self, nats: Tensor, tokens: Tensor) -> None:
        self._window.add(nats, tokens)
        self._epoch.add(nats, tokens)

    def _start_window(self) -> None:
        self._window.reset()
        self._captions, self._seconds, self._running_since = 0, 0.0, time.perf_counter()

    def _seconds_trained(self) -> float:
        return self._seconds + (time.perf_counter() - self._running_since if self._running_since else 0.0)

    def _log_window(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, CaptioningModule) and pl_module.gradient_norm is not None
        metrics = pl_module.training_metrics(*_over_ranks(trainer, self._window.totals()))
        shown = {**metrics, "captions_per_second": self._captions / self._seconds_trained()}
        pl_module.log_dict(shown, prog_bar=True, logger=False, rank_zero_only=True)
        rates = {f"lr/{group['name']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        state = {
            "gradient_norm": float(pl_module.gradient_norm),
            "trainable_parameters": pl_module.captioner.trainable_count(),
        }
        _to_loggers(trainer, _epoch_and(trainer, {**shown, **rates, **state}))


def _evaluated(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def _epoch_and(trainer: L.Trainer, metrics: dict[str, float]) -> dict[str, float]:
    return {"epoch": trainer.current_epoch, **metrics}


def _to_loggers(trainer: L.Trainer, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


def _over_ranks(trainer: L.Trainer, totals: tuple[float, int]) -> tuple[float, float]:
    """Sums over all ranks."""
    if trainer.world_size == 1:
        return totals
    device = trainer.strategy.root_device
    return tuple(
        trainer.strategy.reduce(torch.tensor(totals, dtype=torch.float64, device=device), reduce_op="sum").tolist()
    )


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


class SampleTable(L.Callback):
    """After each validation, logs a W&B table `val/samples`: pictures, their captions and the model's.

    And for the first few, as `val/heat_maps`, where the model looked as it chose each word.

    Args:
        pixel_values: (B, 3, H, W) uint8, the same pictures each time.
        captions: the references of each.
        decoding: how the model's are generated.
        decode: token ids to text.
        draw: a strip of heat maps; called with a captioner and the keywords `pixel_values` (3, H, W) uint8,
            `token_ids`, `ended` and `panel` (pixels). None draws none.
    """

    HEAT_MAPS = 4  # pictures; each takes, with a small model, about 12 milliseconds
    PANEL = 112  # pixels, the longer side of a heat map

    COLUMNS: ClassVar = ["image_id", "picture", "captions", "generated", "log_probability"]

    def __init__(
        self,
        pixel_values: torch.Tensor,
        image_ids: list,
        captions: list[list[str]],
        decoding: Decoding,
        decode: Any,
        draw: Callable[..., Any] | None = None,
    ):
        self._pixel_values, self._image_ids, self._captions = pixel_values, image_ids, captions
        self._decoding, self._decode, self._draw = decoding, decode, draw

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        assert isinstance(pl_module, CaptioningModule)
        with trainer.precision_plugin.forward_context():
            generated = generate(pl_module.captioner, self._pixel_values.to(pl_module.device), self._decoding)
        rows = zip(self._pixel_values, self._image_ids, self._captions, generated, strict=True)
        data = [
            [
                str(image_id),
                wandb.Image(pixels.permute(1, 2, 0).numpy()),
                "\n".join(references),
                self._decode(caption.token_ids),
                caption.log_probability,
            ]
            for pixels, image_id, references, caption in rows
        ]
        for logger in loggers:
            logger.log_table("val/samples", columns=self.COLUMNS, data=data, step=trainer.global_step)
        if self._draw is not None:
            self._log_heat_maps(loggers, pl_module.captioner, generated, trainer.global_step)

    def _log_heat_maps(
        self, loggers: list[WandbLogger], captioner: ImageCaptioner, generated: list[Caption], step: int
    ) -> None:
        assert self._draw is not None
        strips, texts = [], []
        for pixels, caption in list(zip(self._pixel_values, generated, strict=True))[: self.HEAT_MAPS]:
            ended = len(caption.token_ids) < self._decoding.max_new_tokens
            strips.append(
                self._draw(captioner, pixel_values=pixels, token_ids=caption.token_ids, ended=ended, panel=self.PANEL)
            )
            texts.append(self._decode(caption.token_ids))
        for logger in loggers:
            logger.log_image("val/heat_maps", strips, step=step, caption=texts)


class CaptionScores(L.Callback):
    """After every n-th epoch, captions a fixed part of the validation pictures and logs their scores, such as CIDEr.

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
        return {metric.name: found[official] for official, metric in caption_scores(with_java=False).items()}


def _of_all_ranks(candidates: dict[ImageId, str], world_size: int) -> dict[ImageId, str]:
    """All captions, in an order that is the same on every rank."""
    if world_size == 1:
        return candidates
    gathered: list[dict[ImageId, str]] = [{} for _ in range(world_size)]
    torch.distributed.all_gather_object(gathered, candidates)
    return {picture: text for of_rank in gathered for picture, text in of_rank.items()}
