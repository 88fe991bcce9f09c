"""Train a captioner: `python train.py data=coco stage=full`, with any override of `conf/train.yaml` and its groups."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from captioning.commands import built, one_sentence_errors, plain, quiet_libraries, resumable, whole
from captioning.data.layouts import recognise
from captioning.files import readable
from captioning.overrides import prepared_arguments
from captioning.run_folder import keep_composition

if TYPE_CHECKING:
    import lightning as L

    from captioning.data.datamodule import CaptionDataModule
    from captioning.training.module import CaptioningModule

log = logging.getLogger("train")

CONF = Path(__file__).parent / "conf"
AUTO_ENCODER_CACHE = "data/encoder_cache"
WHOLE_NUMBERS = {  # and the least that each may be
    "seed": 0,
    "trainer.max_epochs": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "sample_pictures": 0,
}
SHOWN = {  # in a run's last words
    "best/val/perplexity": "best val/perplexity",
    "val/perplexity_floor": "val/perplexity_floor",
    "test/perplexity": "test/perplexity",
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
    """Compose, fit, and test the best checkpoint."""
    if cfg.data.get("root"):  # photographs; shapes are drawn
        recognise(cfg.data.dataset, Path(str(cfg.data.root)).expanduser(), cfg.data.layout)

    # Imported here, since they take seconds: help, a typo or a wrong path is answered before.
    import lightning as L
    from lightning.pytorch.callbacks import EarlyStopping
    from tqdm.contrib.logging import logging_redirect_tqdm

    from captioning.checkpoint import refuse_fewer_epochs, refuse_other_architecture
    from captioning.model.generation import require_room
    from captioning.prediction.heat_maps import draw_heat_maps
    from captioning.training.callbacks import KnownFloor, MetricRows, ProgressBar, ResultsTable
    from captioning.training.checkpointing import AtomicCheckpointIO, checkpoint_callbacks
    from captioning.training.curves import Curves
    from captioning.training.frozen_encoder import EncodeOnce
    from captioning.training.loggers import MetricsCsv, log_config, wandb_runs
    from captioning.training.module import CaptioningModule
    from captioning.training.samples import SampleTable
    from captioning.training.stages import ApplyStages, StageSchedule, check_strategy

    quiet_libraries()
    run_dir = Path(cfg.run_dir)
    for key, least in WHOLE_NUMBERS.items():
        whole(cfg, key, least)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    schedule = StageSchedule(**plain(cfg.stage, "phases", "learning_rates", "warmup_steps", "decay"))
    decoding = built(cfg.decoding, "decoding")
    datamodule: CaptionDataModule = built(cfg.data, "data")
    if cfg.encoder_cache is not None:
        folder = AUTO_ENCODER_CACHE if cfg.encoder_cache == "auto" else str(cfg.encoder_cache)
        schedule.require_frozen_encoder(f"encoder_cache={cfg.encoder_cache}")
        datamodule.plan_encoder_cache(folder, cfg.encoder_cache_dtype)
    datamodule.setup()  # bad data is met here, before any weight is loaded
    tokenizer = datamodule.tokenizer
    captioner = built(
        cfg.model,
        "model",
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    datamodule.fit_to(captioner.picture_format, captioner.max_positions)
    require_room(captioner, decoding)
    extras = {"description": captioner.description(), "tokenizer": tokenizer.to_json()}
    last = run_dir / "checkpoints" / "last.ckpt" if cfg.resume else None
    if last:
        refuse_other_architecture(last, **extras)
        refuse_fewer_epochs(last, cfg.trainer.max_epochs)
    module = CaptioningModule(captioner, **plain(cfg.optimizer), checkpoint_extras=extras)

    loggers = [MetricsCsv(run_dir), *(built(logger, "logger") for logger in cfg.logger.values())]
    callbacks = [ApplyStages(schedule), MetricRows(), ResultsTable(run_dir), Curves(run_dir)]
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks.append(ProgressBar())
    if cfg.encoder_cache is not None:
        callbacks.append(EncodeOnce())
    if datamodule.perplexity_floor is not None:
        callbacks.append(KnownFloor(datamodule.perplexity_floor))
    if cfg.sample_pictures:
        draw = partial(draw_heat_maps, tokenizer=tokenizer)
        callbacks.append(SampleTable(*datamodule.samples(cfg.sample_pictures), decoding, tokenizer.decode, draw))
    if cfg.early_stopping_epochs is not None:
        callbacks.append(EarlyStopping("val/perplexity", patience=whole(cfg, "early_stopping_epochs", 1)))
    checkpoints = checkpoint_callbacks(run_dir) if cfg.trainer.get("enable_checkpointing", True) else []
    trainer: L.Trainer = built(
        cfg.trainer,
        "trainer",
        logger=loggers,
        callbacks=[*callbacks, *checkpoints],
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
            metrics["best/val/perplexity"] = float(best.best_model_score)
        if best and "test" in datamodule.splits:
            path = best.best_model_path
            trainer.test(module, datamodule=datamodule, ckpt_path=path, verbose=False, weights_only=True)
            metrics |= _numbers(trainer)
    log.info("%s", ", ".join(f"{words} {metrics[name]:.4g}" for name, words in SHOWN.items() if name in metrics))
    for what, path in LEFT_BEHIND.items():
        if (run_dir / path).exists():
            log.info("%s: %s", what, readable(run_dir / path))
    return Run(metrics, trainer, module, datamodule, run_dir)


def _numbers(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """One run, or one job of a multirun; returns the best `val/perplexity`, which a sweeper minimises."""
    with one_sentence_errors():
        cfg.run_dir = HydraConfig.get().runtime.output_dir  # each job of a multirun has its own
        return train(cfg).metrics.get("best/val/perplexity", math.nan)  # none with trainer.limit_val_batches=0


if __name__ == "__main__":
    with one_sentence_errors():
        sys.argv[1:] = prepared_arguments(sys.argv[1:], CONF, "train")
    main()
