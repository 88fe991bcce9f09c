"""A training run from its configuration: `train(config)` puts the parts together, fits, tests the best weights."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm.contrib.logging import logging_redirect_tqdm

from captioning.cli import built, plain, quiet_libraries, resumable, whole
from captioning.config import TrainConfig, checked
from captioning.data.datamodule import CaptionDataModule
from captioning.errors import UserError
from captioning.files import readable
from captioning.metrics import METRICS, check_best_by, chosen_by
from captioning.model.build import Vocabulary, fine_tuned, load_captioner, new_captioner
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Decoding, require_room
from captioning.prediction.heat_maps import draw_heat_maps
from captioning.randomness import addressed_seed
from captioning.runs import (
    LAST,
    keep_composition,
    last_checkpoint,
    refuse_fewer_epochs,
    refuse_other_architecture,
    refuse_other_settings,
    settings_of,
    tidy,
)
from captioning.training.callbacks import AddressedDropout, CaptionScores, EncodeOnce, SkippedSteps
from captioning.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, Saving, StopEarly
from captioning.training.curves import Curves
from captioning.training.loggers import log_config, run_loggers
from captioning.training.module import CaptioningModule
from captioning.training.ranks import check_strategy, one_fate
from captioning.training.reports import KnownFloor, MetricRows, ResultsTable, progress_reports
from captioning.training.scst import CiderReward, SelfCriticalModule, check_sampling
from captioning.training.stages import ApplyStages, StageSchedule
from captioning.training.wandb import SampleTable, wandb_runs
from captioning.weights import HuggingFaceModel, find_weights

log = logging.getLogger(__name__)

AUTO_ENCODER_CACHE = "data/encoder_cache"
WHOLE_NUMBERS = {  # and the least that each may be
    "seed": 0,
    "trainer.max_epochs": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "sample_pictures": 0,
    "scores.pictures": 0,
    "scores.every_n_epochs": 1,
}
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


def train(cfg: DictConfig) -> Run:
    """Put the parts together, fit, and test the best checkpoint."""
    run_dir = Path(cfg.run_dir)
    last = last_checkpoint(run_dir) if cfg.resume else None
    weights = _first_weights(cfg, last)
    quiet_libraries()
    for key, least in WHOLE_NUMBERS.items():
        whole(cfg, key, least)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    schedule = StageSchedule(**plain(cfg.stage, "phases", "learning_rates", "warmup_steps", "decay"))
    check_stage(cfg)
    decoding = built(cfg.decoding, "decoding")
    captioner, datamodule = model_and_data(cfg, schedule, weights)
    require_room(captioner, decoding)
    module = module_of(cfg, captioner, datamodule)
    settings = settings_of(cfg, datamodule.splits["train"].image_ids)
    loggers = run_loggers(run_dir, [built(one, "logger") for one in cfg.logger.values()], continues=last is not None)
    trainer: L.Trainer = built(
        cfg.trainer,
        "trainer",
        logger=loggers,
        callbacks=[*callbacks_of(cfg, schedule, datamodule, decoding), *checkpoints_of(cfg, settings)],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(run_dir),
        use_distributed_sampler=False,  # EpochBatches deals the rows out to the ranks
    )
    check_strategy(trainer)
    if last:
        refuse_other_settings(last, settings | {"processes": trainer.world_size})
        refuse_other_architecture(last, **module.checkpoint_extras)
        refuse_fewer_epochs(last, cfg.trainer.max_epochs)
    _take_folder(cfg, trainer)

    with wandb_runs(loggers, run_dir), resumable(run_dir), one_fate(trainer, run_dir), logging_redirect_tqdm():
        log_config(loggers, plain(cfg))
        trainer.fit(module, datamodule=datamodule, ckpt_path=last, weights_only=True)
        metrics = _numbers(trainer)
        if best := _best(trainer):
            metrics[f"best/{best.monitor}"] = _score(best)
        if best and "test" in datamodule.splits:
            path = best.best_model_path
            trainer.test(module, datamodule=datamodule, ckpt_path=path, verbose=False, weights_only=True)
            metrics |= _numbers(trainer)
    if trainer.is_global_zero:
        _say_where(metrics, run_dir)
    return Run(metrics, trainer, module, datamodule, run_dir)


def _first_weights(cfg: DictConfig, last: Path | None) -> Path | HuggingFaceModel | None:
    """Where the first weights come from; None draws them. A resumed run has them in its own checkpoint."""
    if cfg.model.init_from is None:
        return None
    return find_weights(last or str(cfg.model.init_from), "model.init_from", cfg.allow_pickle)


def _take_folder(cfg: DictConfig, trainer: L.Trainer) -> None:
    """From here on the run goes on: what a killed one left is removed, and its overrides are kept for `resume`."""
    run_dir = Path(cfg.run_dir)
    if trainer.is_global_zero:
        tidy(run_dir)
    if cfg.resume and HydraConfig.initialized():
        keep_composition(run_dir, cfg, HydraConfig.get().overrides.task)
    log.info("run folder: %s", readable(run_dir))


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


def check_stage(cfg: DictConfig) -> None:
    """Raise UserError for what a stage cannot do, before any data is read."""
    check_best_by(cfg.stage.best_by, cfg.scores.pictures, cfg.scores.every_n_epochs, cfg.trainer.max_epochs)
    if cfg.stage.self_critical is not None:
        check_sampling(**plain(cfg.stage.self_critical))
        if cfg.model.init_from is None and not cfg.resume:
            raise UserError(
                "self-critical training (stage=scst) goes on from a trained model; say which with "
                "model.init_from=RUN_DIR, a run of train.py with another stage"
            )


def model_and_data(
    cfg: DictConfig, schedule: StageSchedule, weights: Path | HuggingFaceModel | None
) -> tuple[ImageCaptioner, CaptionDataModule]:
    """Each fitted to the other: the tokenizer decides the vocabulary, the encoder how pictures must look."""
    datamodule: CaptionDataModule = built(cfg.data, "data")
    if cfg.encoder_cache is not None:
        schedule.require_frozen_encoder(f"encoder_cache={cfg.encoder_cache}")
        datamodule.require_unaugmented(f"encoder_cache={cfg.encoder_cache}")
    model = checked(cfg, TrainConfig).model
    if weights:
        trained, tokenizer = load_captioner(weights)
        captioner = fine_tuned(trained, model)
    else:
        tokenizer = datamodule.new_tokenizer()
        captioner = new_captioner(model, Vocabulary.of(tokenizer))
    datamodule.connect(tokenizer, captioner.picture_format, captioner.max_positions)
    return captioner, datamodule


def module_of(cfg: DictConfig, captioner: ImageCaptioner, datamodule: CaptionDataModule) -> CaptioningModule:
    """What one step is: cross-entropy, or with `stage=scst` the reward of the model's own captions."""
    tokenizer = datamodule.tokenizer
    extras = {"description": captioner.description(), "tokenizer": tokenizer.to_json()}
    settings = {**plain(cfg.optimizer), "checkpoint_extras": extras}
    if cfg.stage.self_critical is None:
        return CaptioningModule(captioner, **settings)
    reward = CiderReward(datamodule.references("train"))
    settings |= plain(cfg.stage.self_critical)
    return SelfCriticalModule(captioner, reward=reward, decode=tokenizer.decode, seed=cfg.seed, **settings)


def callbacks_of(
    cfg: DictConfig, schedule: StageSchedule, datamodule: CaptionDataModule, decoding: Decoding
) -> list[L.Callback]:
    """In the order in which they want to be called: what is measured comes before what shows or keeps it."""
    tokenizer, run_dir = datamodule.tokenizer, Path(cfg.run_dir)
    dropout = AddressedDropout(partial(addressed_seed, cfg.seed, "dropout"))
    skipped = SkippedSteps(whole(cfg, "max_skipped_steps", 0), run_dir / LAST)
    callbacks: list[L.Callback] = [
        *(ApplyStages(schedule), dropout),
        *(MetricRows(), skipped, ResultsTable(run_dir), Curves(run_dir)),
    ]
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks.append(progress_reports())
    if cfg.encoder_cache is not None:
        folder = AUTO_ENCODER_CACHE if cfg.encoder_cache == "auto" else str(cfg.encoder_cache)
        callbacks.append(EncodeOnce(Path(folder), cfg.encoder_cache_dtype))
    if datamodule.perplexity_floor is not None:
        callbacks.append(KnownFloor(datamodule.perplexity_floor))
    if cfg.scores.pictures:
        scores = CaptionScores(
            partial(datamodule.whole_pictures, "val", cfg.scores.pictures),
            datamodule.references("val"),
            decoding,
            tokenizer.decode,
            every_n_epochs=cfg.scores.every_n_epochs,
            before_training=cfg.stage.self_critical is not None,
        )
        callbacks.append(scores)
    if cfg.sample_pictures:
        draw = partial(draw_heat_maps, tokenizer=tokenizer)
        callbacks.append(SampleTable(*datamodule.samples(cfg.sample_pictures), decoding, tokenizer.decode, draw))
    if cfg.early_stopping_epochs is not None:
        callbacks.append(StopEarly("val/perplexity", patience=whole(cfg, "early_stopping_epochs", 1)))
    return callbacks


def checkpoints_of(cfg: DictConfig, settings: dict[str, Any]) -> list[L.Callback]:
    """The best by `stage.best_by` and the last, unless `trainer.enable_checkpointing=false`."""
    best_by, keys = cfg.stage.best_by, cfg.checkpoints
    every_n_steps = None if keys.every_n_steps is None else whole(cfg, "checkpoints.every_n_steps", 1)
    saving, path = Saving(keys.on_error), Path(cfg.run_dir) / LAST
    last = LastCheckpoint(path, saving, settings, every_n_steps, keys.every_minutes)
    if not cfg.trainer.get("enable_checkpointing", True):
        return []
    metric = chosen_by(best_by)
    mode = "max" if metric.larger_is_better else "min"
    every_n_epochs = cfg.scores.every_n_epochs if metric.official else 1
    best = BestCheckpoint(saving, dirpath=path.parent, monitor=best_by, mode=mode, every_n_epochs=every_n_epochs)
    return [best, last]
