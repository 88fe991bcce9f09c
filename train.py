"""Train a captioner: `python train.py data=coco stage=full`, with any override of `conf/train.yaml` and its groups."""

import logging
import math
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from captioning.cli import heavy_imports, one_sentence_errors, prepared_arguments
from captioning.config import TrainConfig, checked, require_loggers
from captioning.data.datasets import require_data
from captioning.runs import is_first_rank, nothing_to_do
from captioning.weights import find_weights

log = logging.getLogger(__name__)


def check_paths(config: TrainConfig) -> None:
    """Raise UserError for data, weights or a logger that are not there."""
    require_loggers(config.logger.values())
    require_data(config.data, "; python train.py experiment=demo needs no data")
    if config.model.init_from is not None and not config.resume:
        find_weights(config.model.init_from, "model.init_from", config.allow_pickle)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """One run, or one job of a multirun; returns the best `stage.best_by`, for a sweeper to minimise or maximise."""
    with one_sentence_errors():
        # Each job of a multirun has a folder of its own.
        config = checked(cfg, TrainConfig, run_dir=HydraConfig.get().runtime.output_dir)
        if words := nothing_to_do(config):
            log.info("%s", words)
            return math.nan
        check_paths(config)
        if is_first_rank():
            log.info("loading PyTorch and Lightning")
        with heavy_imports():  # takes seconds: help, a typo or a wrong path is answered before
            from captioning.training.run import train

        # There is none with trainer.limit_val_batches=0.
        given = HydraConfig.get().overrides
        overrides = [*given.task, *(one for one in given.hydra if one.startswith("hydra.searchpath="))]
        return train(config, overrides).metrics.get(f"best/{config.stage.best_by}", math.nan)


if __name__ == "__main__":
    with one_sentence_errors():
        sys.argv[1:] = prepared_arguments(sys.argv[1:], "train")
    main()
