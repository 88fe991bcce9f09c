"""Train a captioner: `python train.py data=coco stage=full`, with any override of `conf/train.yaml` and its groups."""

import math
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from captioning.cli import one_sentence_errors, prepared_arguments
from captioning.data.datasets import recognise
from captioning.weights import find_weights

CONF = Path(__file__).parent / "conf"


def check_paths(cfg: DictConfig) -> None:
    """Raise UserError for data or weights that are not there."""
    if cfg.data.get("root") and cfg.data.get("dataset"):
        recognise(cfg.data.dataset, Path(str(cfg.data.root)).expanduser(), cfg.data.layout)
    if cfg.model.init_from is not None and not cfg.resume:
        find_weights(str(cfg.model.init_from), "model.init_from", cfg.allow_pickle)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """One run, or one job of a multirun; returns the best `stage.best_by`, for a sweeper to minimise or maximise."""
    with one_sentence_errors():
        cfg.run_dir = HydraConfig.get().runtime.output_dir  # each job of a multirun has its own
        check_paths(cfg)
        from captioning.training.run import train  # takes seconds: help, a typo or a wrong path is answered before

        return train(cfg).metrics.get(f"best/{cfg.stage.best_by}", math.nan)  # none with trainer.limit_val_batches=0


if __name__ == "__main__":
    with one_sentence_errors():
        sys.argv[1:] = prepared_arguments(sys.argv[1:], CONF, "train")
    main()
