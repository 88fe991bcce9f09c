"""A training run from its configuration: `train(config)` puts the parts together, fits, tests the best weights."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer
from tqdm.contrib.logging import logging_redirect_tqdm

from captioning.cli import built, quiet_libraries, resumable
from captioning.config import TrainConfig, WandbConfig, data_set_of, require_loggers
from captioning.data.datamodule import CaptionDataModule
from captioning.data.datasets import SOURCES
from captioning.errors import UserError
from captioning.evaluation.scoring import Seen
from captioning.files import readable
from captioning.machine import for_training, machine_of, packed_multiple
from captioning.metrics import METRICS, choosable
from captioning.model.build import Vocabulary, fine_tuned, load_captioner, new_captioner
from captioning.model.captioner import ImageCaptioner
from captioning.model.cpu import keep_freed_memory
from captioning.model.generation import Decoding, decoding_of
from captioning.prediction.strips import draw_heat_maps
from captioning.randomness import addressed_seed
from captioning.runs import (
    LAST,
    is_first_rank,
    is_run,
    keep_composition,
    keep_end,
    last_checkpoint,
    owned,
    settings_in,
    tidy,
)
from captioning.training.callbacks import AddressedDropout, AveragedWeights, CaptionScores, EncodeOnce, SkippedSteps
from captioning.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, Saving, StopEarly
from captioning.training.curves import Curves
from captioning.training.loggers import log_config, run_loggers
from captioning.training.module import CaptioningModule
from captioning.training.ranks import check_strategy, one_fate, require_accelerator
from captioning.training.reports import Forecast, MetricRows, ResultsTable, progress_reports
from captioning.training.resume import (
    changes_of,
    refuse_fewer_epochs,
    refuse_other_architecture,
    refuse_other_settings,
    settings_of,
)
from captioning.training.scst import CiderReward, SelfCriticalModule
from captioning.training.stages import FEW_STEPS, ApplyStages, StageSchedule
from captioning.training.verdict import Guessing, Verdict
from captioning.training.wandb import ModelArtifacts, SampleTable, wandb_runs
from captioning.weights import HuggingFaceModel, find_weights

log = logging.getLogger(__name__)

AUTO_ENCODER_CACHE = "data/encoder_cache"
LEFT_BEHIND = {  # in a run's folder, where there is such a thing
    "table": "results.md",
    "curves": "curves.png",
    "checkpoints": "checkpoints",
    "profile": "fit-profile.txt",
}


@dataclass
class Run:
    """What `train` leaves behind in memory, for tests and notebooks."""

    metrics: dict[str, float]
    trainer: L.Trainer
    module: CaptioningModule
    datamodule: CaptionDataModule
    run_dir: Path


def train(config: TrainConfig, overrides: Sequence[str] | None = None) -> Run:
    """Put the parts together, fit, and test the best checkpoint; the run's folder is this process's own meanwhile.

    A run can be resumed by `train.py` where the `overrides` are known that its configuration was composed with.
    """
    run_dir = Path(config.run_dir)
    keep = partial(_keep_composition, config, overrides)
    with owned(run_dir, resumes=config.resume is not None):
        if config.resume is None:
            keep()
        return _train(config, run_dir, last_checkpoint(run_dir) if config.resume else None, keep)


def _train(config: TrainConfig, run_dir: Path, last: Path | None, keep_composition: Callable[[], None]) -> Run:
    weights = _first_weights(config, last)
    require_loggers(config.logger.values())
    require_accelerator(config.trainer.accelerator)
    quiet_libraries()
    config = for_training(config, settings_in(last))
    L.seed_everything(config.seed, workers=True, verbose=False)
    check_strategy(built(config.trainer, "trainer", logger=False))  # what it objects to is met before data and weights

    schedule = StageSchedule(config.stage)
    decoding = built(config.decoding, "decoding")
    captioner, datamodule = model_and_data(config, weights)
    decoding = decoding_of(captioner, datamodule.tokenizer, decoding)
    module = module_of(config, captioner, datamodule)
    settings = settings_of(config, datamodule.splits["train"].image_ids)
    loggers = run_loggers(run_dir, [built(one, "logger") for one in config.logger.values()], continues=last is not None)
    ours, checkpoints = callbacks_of(config, schedule, datamodule, decoding), checkpoints_of(config, settings)
    trainer: L.Trainer = built(
        config.trainer,
        "trainer",
        logger=loggers,
        callbacks=[*ours, *users_callbacks(config), *averages_of(config), *checkpoints],
        plugins=[AtomicCheckpointIO(), *(built(one, "trainer.plugins") for one in config.trainer.plugins)],
        default_root_dir=str(run_dir),
        use_distributed_sampler=False,  # EpochBatches deals the rows out to the ranks
    )
    steps_per_epoch = check_limits(trainer, datamodule)
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    if last:
        refuse_other_settings(last, settings | {"processes": trainer.world_size})
        refuse_other_architecture(last, captioner.description(), datamodule.tokenizer.to_json())
        refuse_fewer_epochs(last, config.trainer.max_epochs)
    if trainer.is_global_zero:
        tidy(run_dir)
    if config.resume:  # now it is known that it can go on with these overrides
        keep_composition()
    log.info("run folder: %s", readable(run_dir))
    if trainer.is_global_zero:
        say_what_does_not_fit(config, schedule, steps_per_epoch)

    with wandb_runs(loggers, run_dir), resumable(run_dir), one_fate(trainer, run_dir), logging_redirect_tqdm():
        if config.trainer.enable_autolog_hparams:
            log_config(loggers, config.plain())
        trainer.fit(module, datamodule=datamodule, ckpt_path=last, weights_only=True)
        metrics = _numbers(trainer)
        if best := _best(trainer):
            metrics[f"best/{best.monitor}"] = _score(best)
        if best and "test" in datamodule.splits:
            path = best.best_model_path
            trainer.test(module, datamodule=datamodule, ckpt_path=path, verbose=False, weights_only=True)
            metrics |= _numbers(trainer)
    if trainer.is_global_zero:
        if ended_by := _ended_by(trainer, config):
            keep_end(run_dir, *ended_by)
        _say_where(metrics, run_dir)
    return Run(metrics, trainer, module, datamodule, run_dir)


def _first_weights(config: TrainConfig, last: Path | None) -> Path | HuggingFaceModel | None:
    """Where the first weights come from; None draws them. A resumed run has them in its own checkpoint."""
    if config.model.init_from is None:
        return None
    return find_weights(last or config.model.init_from, "model.init_from", config.allow_pickle)


def _keep_composition(config: TrainConfig, overrides: Sequence[str] | None) -> None:
    """Let the next `resume` start from the overrides of this command."""
    if overrides is not None and is_first_rank():
        if config.resume and (changes := changes_of(Path(config.run_dir), config)):
            log.info("changed, for the next resume too: %s", "; ".join(changes))
        keep_composition(Path(config.run_dir), config, overrides)


def _ended_by(trainer: L.Trainer, config: TrainConfig) -> tuple[str, Any] | None:
    """The key that made an end of the run, and its value; None where there is nothing to resume, or it is not known."""
    if not is_run(Path(config.run_dir)) or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    if any(isinstance(one, StopEarly) and one.wait_count >= one.patience for one in trainer.callbacks):  # type: ignore[attr-defined]
        return "early_stopping_epochs", config.early_stopping_epochs
    if 0 < trainer.max_steps <= trainer.global_step:
        return "trainer.max_steps", trainer.max_steps
    time = config.trainer.max_time
    if time and any(isinstance(one, Timer) and (one.time_remaining() or 0) < 0 for one in trainer.callbacks):  # type: ignore[attr-defined]
        return "trainer.max_time", time
    has_ended = trainer.current_epoch == trainer.max_epochs and trainer.is_last_batch
    return ("trainer.max_epochs", trainer.max_epochs) if has_ended else None


def _best(trainer: L.Trainer) -> BestCheckpoint | None:
    """The callback that has kept a best checkpoint, where one has."""
    kept = (one for one in trainer.checkpoint_callbacks if isinstance(one, BestCheckpoint) and one.best_model_path)
    return next(kept, None)


def _score(best: BestCheckpoint) -> float:
    assert best.best_model_score is not None
    return float(best.best_model_score)


def _say_where(metrics: dict[str, float], run_dir: Path) -> None:
    """A run's last words: its numbers, and where everything is."""
    last = [metric.name for metric in METRICS if metric.last_words and metric.name in metrics]
    named = [name for name in metrics if name.startswith("best/")] + last
    log.info("%s", ", ".join(f"{name.replace('best/', 'best ')} {metrics[name]:.4g}" for name in named))
    for what, path in LEFT_BEHIND.items():
        if (run_dir / path).exists():
            log.info("%s: %s", what, readable(run_dir / path))


def _numbers(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def model_and_data(
    config: TrainConfig, weights: Path | HuggingFaceModel | None
) -> tuple[ImageCaptioner, CaptionDataModule]:
    """Each fitted to the other: the tokenizer decides the vocabulary, the encoder how pictures must look."""
    datamodule: CaptionDataModule = built(config.data, "data")
    if weights:
        trained, tokenizer = load_captioner(weights)
        captioner = fine_tuned(trained, config.model)
    else:
        tokenizer = datamodule.new_tokenizer()
        log.info("making the model")
        captioner = new_captioner(config.model, Vocabulary.of(tokenizer))
    of_model = tokenizer, captioner.picture_format, captioner.max_positions
    datamodule.connect(*of_model, packed_multiple=packed_multiple(config))
    return captioner, datamodule


def module_of(config: TrainConfig, captioner: ImageCaptioner, datamodule: CaptionDataModule) -> CaptioningModule:
    """What one step is: cross-entropy, or with `stage=scst` the reward of the model's own captions."""
    tokenizer = datamodule.tokenizer
    extras = {
        "description": captioner.description(),
        "tokenizer": tokenizer.to_json(),
        "data": data_set_of(config.data.plain()),
    }
    common = {
        "optimizer": built(config.optimizer, "optimizer", _partial_=True),
        "checkpoint_extras": extras,
        "encoder_layer_decay": config.stage.encoder_layer_decay,
    }
    if config.stage.self_critical is None:
        return CaptioningModule(captioner, label_smoothing=config.stage.label_smoothing, **common)
    reward = CiderReward(datamodule.references("train"))
    own = config.stage.self_critical.plain()
    return SelfCriticalModule(captioner, reward=reward, decode=tokenizer.decode, seed=config.seed, **own, **common)


def callbacks_of(
    config: TrainConfig, schedule: StageSchedule, datamodule: CaptionDataModule, decoding: Decoding
) -> list[L.Callback]:
    """In the order in which Lightning calls them, checkpoints last: what is measured before what shows or keeps it."""
    tokenizer, run_dir = datamodule.tokenizer, Path(config.run_dir)
    dropout = AddressedDropout(partial(addressed_seed, config.seed, "dropout"))
    skipped = SkippedSteps(config.max_skipped_steps, run_dir / LAST)
    scores = caption_scores_of(config, datamodule, decoding) if config.scores.pictures else None
    verdict = Verdict(
        Guessing.of(datamodule.tokens["train"].target_counts(tokenizer.vocab_size)),
        scores,
        datamodule.references("val"),
        datamodule.perplexity_floor,
        getattr(SOURCES.get(getattr(config.data, "dataset", "")), "published", ""),
    )
    callbacks: list[L.Callback] = [
        ApplyStages(schedule),  # a batch is computed with what trains now,
        dropout,  # and with masks of its own
        MetricRows(),  # the metrics of a step or an epoch, which all behind it read
        skipped,  # ends a run before a checkpoint is taken of it
        *([scores] if scores else []),  # writes the captions
        verdict,  # of them and the metrics
        ResultsTable(run_dir, verdict.notes),  # its rows go into the checkpoint of the same epoch
        Curves(run_dir),  # draws the rows that MetricRows has logged
    ]
    if config.trainer.enable_progress_bar is not False:
        callbacks.append(Forecast())
        callbacks.append(progress_reports(20 if machine_of(config.trainer).kind == "cuda" else 1))
    if config.encoder_cache is not None:
        folder = AUTO_ENCODER_CACHE if config.encoder_cache == "auto" else config.encoder_cache
        callbacks.append(EncodeOnce(Path(folder), config.encoder_cache_dtype))
    of_wandb = [one for one in config.logger.values() if isinstance(one, WandbConfig)]
    if any(one.log_model or one.watch for one in of_wandb):
        callbacks.append(ModelArtifacts((run_dir / LAST).parent))
    if config.sample_pictures:
        draw = partial(draw_heat_maps, tokenizer=tokenizer)
        callbacks.append(SampleTable(*datamodule.samples(config.sample_pictures), decoding, tokenizer.decode, draw))
    if config.early_stopping_epochs is not None:
        callbacks.append(StopEarly("val/perplexity", patience=config.early_stopping_epochs))
    return callbacks


def caption_scores_of(config: TrainConfig, datamodule: CaptionDataModule, decoding: Decoding) -> CaptionScores:
    """The callback that captions validation pictures and scores them."""
    training = datamodule.splits["train"]
    return CaptionScores(
        partial(datamodule.whole_pictures, "val", config.scores.pictures),
        datamodule.references("val"),
        decoding,
        datamodule.tokenizer.decode,
        training.captions if len(training) <= Seen.MOST_PICTURES else None,
        every_n_epochs=config.scores.every_n_epochs,
        before_training=config.stage.self_critical is not None,
    )


NOT_TAKEN = {  # callbacks of Lightning that would not do here what they do elsewhere
    "GradientAccumulationScheduler": "learning rates and resumed runs count in steps of one size; set "
    "trainer.accumulate_grad_batches, which a run that goes on from a whole epoch may change",
    "StochasticWeightAveraging": "it sets learning rates of its own, where stage.learning_rates and stage.decay do",
    "WeightAveraging": "it tests best.ckpt with other weights than it was chosen by, those before averaging; "
    "ema_decay=0.999 averages, and tests and captions by the average",
    "BaseFinetuning": "stage.phases says what trains when; choose stage=... or set them",
    "LearningRateFinder": "it tries rates that stage.learning_rates overrules; sweep them with -m",
    "BatchSizeFinder": "data.batch_size=auto chooses it",
}


def users_callbacks(config: TrainConfig) -> list[L.Callback]:
    """Those of the group `callbacks`, and of `trainer.callbacks`; raises UserError for what is none."""
    named = {f"callbacks.{name}": one for name, one in config.callbacks.items()}
    named |= {f"trainer.callbacks[{place}]": one for place, one in enumerate(config.trainer.callbacks)}
    made = {key: built(one, key) for key, one in named.items()}
    for key, one in made.items():
        if not isinstance(one, L.Callback):
            raise UserError(f"{key} is a {type(one).__name__}, and no lightning.Callback; name the class of one")
        for kind in type(one).__mro__:
            if kind.__module__.startswith("lightning.") and kind.__name__ in NOT_TAKEN:
                raise UserError(f"{key} is a {kind.__name__}, which is not taken: {NOT_TAKEN[kind.__name__]}")
    return list(made.values())


def check_limits(trainer: L.Trainer, datamodule: CaptionDataModule) -> int:
    """The optimizer steps of an epoch.

    Raises:
        UserError: for limits that Lightning would object to, at a test's after the whole training.
    """
    datamodule.trainer = trainer  # batches are those of its rank; Lightning says so too, later
    loaders = {"train": datamodule.train_dataloader, "val": datamodule.val_dataloader}
    if "test" in datamodule.splits:
        loaders["test"] = datamodule.test_dataloader
    for split, loader in loaders.items():
        if len(datamodule.splits[split]) < trainer.world_size or not len(loader()):
            raise UserError(
                f"{split} has {len(datamodule.splits[split])} pictures, too few for a batch of each of "
                f"{trainer.world_size} processes; take fewer (trainer.devices), lower data.batch_size, or add pictures"
            )
        limit = getattr(trainer, f"limit_{split}_batches")
        if 0 < limit < 1 and int(limit * len(loader())) == 0:
            raise UserError(
                f"trainer.limit_{split}_batches={limit} is less than one of the {len(loader())} batches of {split}; "
                f"give a larger part, or a number of batches: trainer.limit_{split}_batches=1"
            )
    limit, batches = trainer.limit_train_batches, len(loaders["train"]())
    batches = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    every, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch or 1
    if trainer.limit_val_batches and (isinstance(every, int) or trainer.max_steps > 0):
        if isinstance(every, int) and every > batches and trainer.check_val_every_n_epoch is not None:
            raise UserError(
                f"trainer.val_check_interval={every} is more than the {batches} batches of an epoch; lower it, or "
                "count batches over epochs with trainer.check_val_every_n_epoch=null"
            )
        first = (epochs - 1) * batches + (every if isinstance(every, int) else max(1, int(every * batches)))
        if 0 < trainer.max_steps * trainer.accumulate_grad_batches < first:
            words = "trainer.max_steps=%d ends the run before its first validation, after %d batches: it will have %s"
            log.warning(words, trainer.max_steps, first, "no best.ckpt and no test")
    return max(1, math.ceil(batches / trainer.accumulate_grad_batches))


def say_what_does_not_fit(config: TrainConfig, schedule: StageSchedule, steps_per_epoch: int) -> None:
    """Before a run begins: a warm-up that is cut, a phase that comes too late, and too few steps to learn in."""
    trainer, epochs = config.trainer, config.trainer.max_epochs
    steps = epochs * steps_per_epoch
    total = min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
    said, wrong = schedule.remarks(steps_per_epoch, total)
    for remark in said:
        log.info("%s", remark)
    for remark in wrong:
        log.warning("%s", remark)
    cut = trainer.limit_train_batches, trainer.fast_dev_run, config.data.overfit_images
    if steps < FEW_STEPS and not any(cut):  # else it is so on purpose
        log.warning(
            "this run has %d optimizer steps, %d in each of %d epochs: a model needs some hundred at least. More come "
            "of a larger trainer.max_epochs, a smaller data.batch_size (%s) or a larger data.fraction",
            *(steps, steps_per_epoch, epochs, config.data.batch_size),
        )


def averages_of(config: TrainConfig) -> list[L.Callback]:
    """That of the weights if there is to be one: behind all that looks at the model, and before what saves it."""
    return [] if config.ema_decay is None else [AveragedWeights(config.ema_decay)]


def checkpoints_of(config: TrainConfig, settings: dict[str, Any]) -> list[L.Callback]:
    """The best by `stage.best_by` and the last, unless `trainer.enable_checkpointing=false`."""
    best_by, keys = config.stage.best_by, config.checkpoints
    saving, path = Saving(keys.on_error), Path(config.run_dir) / LAST
    last = LastCheckpoint(path, saving, settings, keys.every_n_steps, keys.every_minutes)
    if config.trainer.enable_checkpointing is False:
        if any(getattr(one, "log_model", False) for one in config.logger.values()):
            raise UserError("logger.wandb.log_model needs trainer.enable_checkpointing=true; leave one of them out")
        log.warning("no checkpoints are written: this run cannot be resumed, nor its best weights be tested")
        return []
    metric = choosable()[best_by]
    mode = "max" if metric.larger_is_better else "min"
    every_n_epochs = config.scores.every_n_epochs if metric.official else 1
    best = BestCheckpoint(saving, dirpath=path.parent, monitor=best_by, mode=mode, every_n_epochs=every_n_epochs)
    return [best, last]
