"""Train a captioner: `python train.py data=coco stage=full`, with any override of `conf/train.yaml` and its groups."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from captioning.cli import built, one_sentence_errors, plain, prepared_arguments, quiet_libraries, resumable, whole
from captioning.data.datasets import recognise
from captioning.files import readable
from captioning.runs import keep_composition, last_checkpoint, tidy
from captioning.training.run import callbacks_of, check_stage, checkpoints_of, model_and_data, module_of
from captioning.weights import find_weights

if TYPE_CHECKING:
    import lightning as L

    from captioning.data.datamodule import CaptionDataModule
    from captioning.training.module import CaptioningModule

log = logging.getLogger("train")

CONF = Path(__file__).parent / "conf"
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
    run_dir = Path(cfg.run_dir)
    last = last_checkpoint(run_dir) if cfg.resume else None
    fine_tunes = cfg.model.init_from is not None
    # A resumed run has in its own checkpoint what it took from there.
    start = last or str(cfg.model.init_from)
    weights = find_weights(start, "model.init_from", cfg.allow_pickle) if fine_tunes else None

    # Imported here, since they take seconds: help, a typo or a wrong path is answered before.
    import lightning as L
    from tqdm.contrib.logging import logging_redirect_tqdm

    from captioning.model.generation import require_room
    from captioning.runs import refuse_fewer_epochs, refuse_other_architecture, refuse_other_settings, settings_of
    from captioning.training.checkpoints import AtomicCheckpointIO
    from captioning.training.loggers import log_config, run_loggers, wandb_runs
    from captioning.training.ranks import check_strategy, one_fate
    from captioning.training.stages import StageSchedule

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

    others = [built(logger, "logger") for logger in cfg.logger.values()]
    loggers = run_loggers(run_dir, others, continues=last is not None)
    checkpoints = checkpoints_of(cfg)
    trainer: L.Trainer = built(
        cfg.trainer,
        "trainer",
        logger=loggers,
        callbacks=[*callbacks_of(cfg, schedule, datamodule, decoding), *(checkpoints or ())],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(run_dir),
        use_distributed_sampler=False,  # EpochBatches deals the rows out to the ranks
    )
    check_strategy(trainer)
    settings = settings_of(cfg, datamodule.splits["train"].image_ids, trainer.world_size)
    if last:
        refuse_other_settings(last, settings)
        refuse_other_architecture(last, **module.checkpoint_extras)
        refuse_fewer_epochs(last, cfg.trainer.max_epochs)
    if checkpoints:
        checkpoints[1].settings = settings
    if trainer.is_global_zero:
        tidy(run_dir)
    if cfg.resume and HydraConfig.initialized():
        keep_composition(run_dir, cfg, HydraConfig.get().overrides.task)
    log.info("run folder: %s", readable(run_dir))
    with wandb_runs(loggers, run_dir), resumable(run_dir), one_fate(trainer, run_dir), logging_redirect_tqdm():
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
    if trainer.is_global_zero:
        _say_where(metrics, run_dir)
    return Run(metrics, trainer, module, datamodule, run_dir)


def _say_where(metrics: dict[str, float], run_dir: Path) -> None:
    """A run's last words: its numbers, and where everything is."""
    named = [name for name in metrics if name.startswith("best/")] + [name for name in SHOWN if name in metrics]
    log.info("%s", ", ".join(f"{name.replace('best/', 'best ')} {metrics[name]:.4g}" for name in named))
    for what, path in LEFT_BEHIND.items():
        if (run_dir / path).exists():
            log.info("%s: %s", what, readable(run_dir / path))


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
