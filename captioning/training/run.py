"""From the configuration of a run to the parts that `train.py` puts together.

Imports stand inside the functions, since they take seconds and a mistake in the configuration is answered before.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, open_dict

from captioning.cli import built, plain, whole
from captioning.errors import UserError
from captioning.runs import LAST
from captioning.weights import HuggingFaceModel

if TYPE_CHECKING:
    import lightning as L

    from captioning.data.datamodule import CaptionDataModule
    from captioning.data.tokenizer import CaptionTokenizer
    from captioning.model.captioner import ImageCaptioner
    from captioning.model.generation import Decoding
    from captioning.training.checkpoints import BestCheckpoint, LastCheckpoint
    from captioning.training.module import CaptioningModule
    from captioning.training.stages import StageSchedule

AUTO_ENCODER_CACHE = "data/encoder_cache"


def check_stage(cfg: DictConfig) -> None:
    """Raise UserError for what a stage cannot do, before any data is read."""
    from captioning.training.callbacks import check_best_by
    from captioning.training.scst import check_sampling

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


def module_of(cfg: DictConfig, captioner: ImageCaptioner, datamodule: CaptionDataModule) -> CaptioningModule:
    """What one step is: cross-entropy, or with `stage=scst` the reward of the model's own captions."""
    from captioning.training.module import CaptioningModule
    from captioning.training.scst import CiderReward, SelfCriticalModule

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
    from captioning.prediction.heat_maps import draw_heat_maps
    from captioning.randomness import addressed_seed
    from captioning.training.callbacks import (
        AddressedDropout,
        CaptionScores,
        EncodeOnce,
        KnownFloor,
        MetricRows,
        ProgressBar,
        ResultsTable,
        SampleTable,
        SkippedSteps,
    )
    from captioning.training.checkpoints import StopEarly
    from captioning.training.curves import Curves
    from captioning.training.stages import ApplyStages

    tokenizer, run_dir = datamodule.tokenizer, Path(cfg.run_dir)
    dropout = AddressedDropout(partial(addressed_seed, cfg.seed, "dropout"))
    skipped = SkippedSteps(whole(cfg, "max_skipped_steps", 0), run_dir / LAST)
    callbacks: list[L.Callback] = [
        *(ApplyStages(schedule), dropout),
        *(MetricRows(), skipped, ResultsTable(run_dir), Curves(run_dir)),
    ]
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks.append(ProgressBar())
    if cfg.encoder_cache is not None:
        callbacks.append(EncodeOnce())
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


def checkpoints_of(cfg: DictConfig) -> tuple[BestCheckpoint, LastCheckpoint] | None:
    """The best by `stage.best_by` and the last, unless `trainer.enable_checkpointing=false`."""
    from captioning.training.checkpoints import BestCheckpoint, LastCheckpoint, Saving

    best_by, keys = cfg.stage.best_by, cfg.checkpoints
    every_n_steps = None if keys.every_n_steps is None else whole(cfg, "checkpoints.every_n_steps", 1)
    saving, path = Saving(keys.on_error), Path(cfg.run_dir) / LAST
    last = LastCheckpoint(path, saving, every_n_steps, keys.every_minutes)
    if not cfg.trainer.get("enable_checkpointing", True):
        return None
    mode, every_n_epochs = ("min", 1) if best_by == "val/perplexity" else ("max", cfg.scores.every_n_epochs)
    best = BestCheckpoint(saving, dirpath=path.parent, monitor=best_by, mode=mode, every_n_epochs=every_n_epochs)
    return best, last


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
    from captioning.model.build import fine_tuned, load_captioner

    captioner, tokenizer = load_captioner(weights)
    switches = plain(cfg.model, "dropout", "attention_dropout", "gradient_checkpointing", "compile")
    # In model=tiny it is one of the sizes, all of which come with the weights.
    image_size = cfg.model.image_size if "encoder" in cfg.model else None
    captioner = fine_tuned(captioner, image_size=image_size, **switches)
    cfg.model.image_size = max(captioner.picture_format.size)
    return captioner, tokenizer
