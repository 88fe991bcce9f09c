"""Store the training pictures small, once: `python prepare.py data=coco data.root=PATH`; training then finds them."""

import logging
import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from captioning.cli import built, one_sentence_errors, prepared_arguments, quiet_libraries, whole
from captioning.data.datamodule import PhotographDataModule
from captioning.data.pixel_cache import packs_in
from captioning.errors import UserError
from captioning.files import readable

log = logging.getLogger("prepare")

CONF = Path(__file__).parent / "conf"
LARGEST = 4096  # pixels; no encoder of today takes more
NAMED = 3  # unreadable files that the last sentence names


def prepare(cfg: DictConfig) -> int:
    """Prepare what is not yet prepared; the number of pictures that now are.

    Raises UserError at the end, when all others are stored, if some could not be read.
    """
    if not cfg.data.get("dataset"):
        raise UserError("data=shapes draws its pictures; prepare.py is for data=coco, flickr30k and flickr8k")
    size = whole(cfg, "size", 32)
    if size > LARGEST:
        raise UserError(
            f"size={size} pixels is more than {LARGEST}; data.prepared=null trains on the files as they are"
        )
    num_workers = cores() if cfg.num_workers is None else whole(cfg, "num_workers", 0)
    datamodule: PhotographDataModule = built(cfg.data, "data")
    try:
        outcome = datamodule.prepare(size, num_workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    folder = datamodule.prepared_folder
    gigabytes = sum(path.stat().st_size for path in packs_in(folder)) / 1e9
    log.info("%d training pictures are in %s, %.2f GB", outcome.stored, readable(folder), gigabytes)
    if outcome.unreadable:
        first = ", ".join(f"{path} ({reason})" for path, reason in list(outcome.unreadable.items())[:NAMED])
        raise UserError(
            f"{len(outcome.unreadable)} pictures cannot be read, such as {first}; replace them, or delete them and set "
            "data.on_missing=skip; all others are prepared"
        )
    return outcome.stored


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
def main(cfg: DictConfig) -> None:
    """One preparation."""
    with one_sentence_errors():
        prepare(cfg)


if __name__ == "__main__":
    quiet_libraries()
    with one_sentence_errors():
        sys.argv[1:] = prepared_arguments(sys.argv[1:], CONF, "prepare")
    main()
