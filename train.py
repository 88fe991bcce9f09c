"""Train a captioner: `python train.py data=coco stage=full`, with any override of `conf/train.yaml` and its groups."""

from __future__ import annotations

import copy
import logging
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from captioning.commands import built, one_sentence_errors, plain, quiet_libraries, resumable, whole
from captioning.data.layouts import recognise
from captioning.files import readable
from captioning.overrides import prepared_arguments
from captioning.run_folder import LAST, keep_composition
from captioning.weights import HuggingFaceModel, find_weights

if TYPE_CHECKING:
    import lightning as L

    from captioning.data.datamodule import CaptionDataModule
    from captioning.data.tokenizer import CaptionTokenizer
    from captioning.model.captioner import ImageCaptioner
    from captioning.model.generation import Decoding
    from captioning.training.checkpointing import RunCheckpoint
    from captioning.training.module import CaptioningModule
    from captioning.training.stages import StageSchedule

log = logging.getLogger("train")

CONF = Path(__file__).parent / "conf"
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
SHOWN = ("val/perplexity_floor", "test/perplexity")  # in a run's last words, beside what is best


@dataclass
class Run:
    """What `train` leaves behind in memory, for tests and notebooks."""

    metrics: dict[str, float]
    trainer: L.Trainer
    module: CaptioningModule
    datamodule: CaptionDataModule
    run_dir: Path


def train(cfg: DictConfig) -> Run:
    """Compose, fit, and test the best checkpoint."""
    if cfg.data.get("root"):  # photographs; shapes are drawn
        recognise(cfg.data.dataset, Path(str(cfg.data.root)).expanduser(), cfg.data.layout)
    run_dir = Path(cfg.run_dir)
    last = run_dir / LAST if cfg.resume else None
    fine_tunes = cfg.model.init_from is not None
    # A resumed run has in its own checkpoint what it took from there.
    weights = find_weights(last or str(cfg.model.init_from), "model.init_from") if fine_tunes else None

    # Imported here, as in the functions below, since they take seconds: mistakes so far are answered before.
    import lightning as L
    from tqdm.contrib.logging import logging_redirect_tqdm

    from captioning.checkpoint import refuse_fewer_epochs, refuse_other_architecture
    from captioning.model.generation import require_room
    from captioning.training.checkpointing import AtomicCheckpointIO
    from captioning.training.loggers import MetricsCsv, log_config, wandb_runs
    from captioning.training.stages import StageSchedule, check_strategy

    quiet_libraries()
    for key, least in WHOLE_NUMBERS.items():
        whole(cfg, key, least)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    schedule = StageSchedule(**plain(cfg.stage, "phases", "learning_rates", "warmup_steps", "decay"))
    decoding = built(cfg.decoding, "decoding")
    captioner, datamodule = _model_and_data(cfg, schedule, weights)
    require_room(captioner, decoding)
    module = _module(cfg, captioner, datamodule)
    if last:
        refuse_other_architecture(last, **module.checkpoint_extras)
        refuse_fewer_epochs(last, cfg.trainer.max_epochs)

    loggers = [MetricsCsv(run_dir), *(built(logger, "logger") for logger in cfg.logger.values())]
    checkpoints = _checkpoints(cfg)
    trainer: L.Trainer = built(
        cfg.trainer,
        "trainer",
        logger=loggers,
        callbacks=[*_callbacks(cfg, schedule, datamodule, decoding), *checkpoints],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(run_dir),
        use_distributed_sampler=False,  # EpochBatches deals the rows out to the ranks
    )
    check_strategy(trainer)
    if cfg.resume and HydraConfig.initialized():
        keep_composition(run_dir, cfg, HydraConfig.get().overrides.task)
    log.info("run folder: %s", readable(run_dir))
    with wandb_runs(loggers, run_dir), resumable(run_dir), logging_redirect_tqdm():
        log_config(loggers, plain(cfg))
        trainer.fit(module, datamodule=datamodule, ckpt_path=last, weights_only=True)
        metrics = _numbers(trainer)
        best = checkpoints[0] if checkpoints and checkpoints[0].best_model_path else None
        if best:
            assert best.best_model_score is not None
            metrics[f"best/{cfg.stage.best_by}"] = float(best.best_model_score)
        if best and "test" in datamodule.splits:
            path = best.best_model_path
            trainer.test(module, datamodule=datamodule, ckpt_path=path, verbose=False, weights_only=True)
            metrics |= _numbers(trainer)
    _say_where(metrics, run_dir)
    return Run(metrics, trainer, module, datamodule, run_dir)


def _model_and_data(
    cfg: DictConfig, schedule: StageSchedule, weights: Path | HuggingFaceModel | None
) -> tuple[ImageCaptioner, CaptionDataModule]:
    """Each fitted to the other: the tokenizer decides the vocabulary, the encoder how pictures must look."""
    start = _fine_tuned(cfg, weights) if weights else None  # before the data: drawn pictures are of its size
    datamodule: CaptionDataModule = built(cfg.data, "data")
    if start:
        datamodule.use_tokenizer(start[1])
    if cfg.encoder_cache is not None:
        folder = AUTO_ENCODER_CACHE if cfg.encoder_cache == "auto" else str(cfg.encoder_cache)
        schedule.require_frozen_encoder(f"encoder_cache={cfg.encoder_cache}")
        datamodule.plan_encoder_cache(folder, cfg.encoder_cache_dtype)
    datamodule.setup()  # bad data is met here, before any weight is loaded
    captioner = start[0] if start else _new_captioner(cfg, datamodule.tokenizer)
    datamodule.fit_to(captioner.picture_format, captioner.max_positions)
    return captioner, datamodule


def _module(cfg: DictConfig, captioner: ImageCaptioner, datamodule: CaptionDataModule) -> CaptioningModule:
    """What one step is: cross-entropy, or with `stage=scst` the reward of the model's own captions."""
    from captioning.training.module import CaptioningModule
    from captioning.training.self_critical import CiderReward, SelfCriticalModule

    tokenizer = datamodule.tokenizer
    extras = {"description": captioner.description(), "tokenizer": tokenizer.to_json()}
    settings = {**plain(cfg.optimizer), "checkpoint_extras": extras}
    if cfg.stage.self_critical is None:
        return CaptioningModule(captioner, **settings)
    reward = CiderReward(datamodule.references("train"))
    settings |= plain(cfg.stage.self_critical)
    return SelfCriticalModule(captioner, reward=reward, decode=tokenizer.decode, seed=cfg.seed, **settings)


def _callbacks(
    cfg: DictConfig, schedule: StageSchedule, datamodule: CaptionDataModule, decoding: Decoding
) -> list[L.Callback]:
    """In the order in which they want to be called: what is measured comes before what shows or keeps it."""
    from lightning.pytorch.callbacks import EarlyStopping

    from captioning.training.callbacks import KnownFloor, MetricRows, ProgressBar, ResultsTable
    from captioning.training.frozen_encoder import EncodeOnce
    from captioning.training.loggers import SampleTable
    from captioning.training.scores import CaptionScores
    from captioning.training.stages import ApplyStages

    decode = datamodule.tokenizer.decode
    callbacks: list[L.Callback] = [ApplyStages(schedule), MetricRows(), ResultsTable(Path(cfg.run_dir))]
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks.append(ProgressBar())
    if cfg.encoder_cache is not None:
        callbacks.append(EncodeOnce())
    if datamodule.perplexity_floor is not None:
        callbacks.append(KnownFloor(datamodule.perplexity_floor))
    if cfg.scores.pictures:
        batches = partial(datamodule.whole_pictures, "val", cfg.scores.pictures)
        every_n_epochs, first = cfg.scores.every_n_epochs, cfg.stage.self_critical is not None
        callbacks.append(
            CaptionScores(
                batches,
                datamodule.references("val"),
                decoding,
                decode,
                every_n_epochs=every_n_epochs,
                before_training=first,
            )
        )
    if cfg.sample_pictures:
        callbacks.append(SampleTable(*datamodule.samples(cfg.sample_pictures), decoding, decode))
    if cfg.early_stopping_epochs is not None:
        callbacks.append(EarlyStopping("val/perplexity", patience=whole(cfg, "early_stopping_epochs", 1)))
    return callbacks


def _checkpoints(cfg: DictConfig) -> list[RunCheckpoint]:
    """The best and the last, unless `trainer.enable_checkpointing=false`."""
    from captioning.training.checkpointing import checkpoint_callbacks
    from captioning.training.scores import check_best_by

    best_by = cfg.stage.best_by
    check_best_by(best_by, bool(cfg.scores.pictures))
    if not cfg.trainer.get("enable_checkpointing", True):
        return []
    every_n_epochs = 1 if best_by == "val/perplexity" else cfg.scores.every_n_epochs
    return checkpoint_callbacks(Path(cfg.run_dir), best_by, every_n_epochs)


def _say_where(metrics: dict[str, float], run_dir: Path) -> None:
    """A run's last words: its numbers, and where everything is."""
    shown = {name: value for name, value in metrics.items() if name in SHOWN or name.startswith("best/")}
    log.info("%s", ", ".join(f"{name.replace('best/', 'best ')} {value:.4g}" for name, value in shown.items()))
    for what, path in (("table", "results.md"), ("checkpoints", "checkpoints"), ("profile", "fit-profile.txt")):
        if (run_dir / path).exists():
            log.info("%s: %s", what, readable(run_dir / path))


def _new_captioner(cfg: DictConfig, tokenizer: CaptionTokenizer) -> ImageCaptioner:
    model = copy.deepcopy(cfg.model)
    with open_dict(model):
        del model.init_from
    return built(
        model,
        "model",
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _fine_tuned(cfg: DictConfig, weights: Path | HuggingFaceModel) -> tuple[ImageCaptioner, CaptionTokenizer]:
    """These weights, ready to be trained, and their tokenizer; the configuration then says which pictures they take."""
    from captioning.model.finetuning import fine_tuned
    from captioning.prediction.loading import load_captioner

    captioner, tokenizer = load_captioner(weights)
    switches = plain(cfg.model, "dropout", "attention_dropout", "gradient_checkpointing", "compile")
    # In model=tiny it is one of the sizes, all of which come with the weights.
    image_size = cfg.model.image_size if "encoder" in cfg.model else None
    captioner = fine_tuned(captioner, image_size=image_size, **switches)
    cfg.model.image_size = max(captioner.picture_format.size)
    return captioner, tokenizer


def _numbers(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """One run, or one job of a multirun; returns the best `stage.best_by`, for a sweeper to minimise or maximise."""
    with one_sentence_errors():
        cfg.run_dir = HydraConfig.get().runtime.output_dir  # each job of a multirun has its own
        return train(cfg).metrics.get(f"best/{cfg.stage.best_by}", math.nan)  # none with trainer.limit_val_batches=0


if __name__ == "__main__":
    with one_sentence_errors():
        sys.argv[1:] = prepared_arguments(sys.argv[1:], CONF, "train")
    main()
