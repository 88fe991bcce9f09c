"""Store the training pictures small, once: `python prepare.py data=coco data.root=PATH`; training then finds them.

`python prepare.py download=coco|flickr8k data.root=PATH` fetches a data set first.
"""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from captioning.cli import heavy_imports, one_sentence_errors, prepared_arguments, quiet_libraries
from captioning.config import PrepareConfig, checked
from captioning.data.datasets import download, require_data


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
def main(cfg: DictConfig) -> None:
    """One preparation."""
    with one_sentence_errors():
        config = checked(cfg, PrepareConfig)
        if config.download:
            root: Any = config.data.root  # type: ignore[union-attr]  # it is of that data set
            download(config.download, Path(root).expanduser())
            return
        require_data(config.data)
        with heavy_imports():  # takes seconds: a typo or a wrong path is answered before
            from captioning.data.prepare import prepare

        quiet_libraries()
        prepare(config)


if __name__ == "__main__":
    with one_sentence_errors():
        sys.argv[1:] = prepared_arguments(sys.argv[1:], "prepare")
    main()
