"""Store the training pictures small, once: `python prepare.py data=coco data.root=PATH`; training then finds them."""

import sys

import hydra
from omegaconf import DictConfig

from captioning.cli import heavy_imports, one_sentence_errors, prepared_arguments, quiet_libraries
from captioning.config import PrepareConfig, checked
from captioning.data.datasets import require_data


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
def main(cfg: DictConfig) -> None:
    """One preparation."""
    with one_sentence_errors():
        config = checked(cfg, PrepareConfig)
        require_data(config.data)
        with heavy_imports():  # takes seconds: a typo or a wrong path is answered before
            from captioning.data.prepare import prepare

        quiet_libraries()
        prepare(config)


if __name__ == "__main__":
    with one_sentence_errors():
        sys.argv[1:] = prepared_arguments(sys.argv[1:], "prepare")
    main()
