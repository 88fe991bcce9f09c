"""`prepare(config)`: the training pictures are stored small, once, so that training loads them faster."""

import logging

from captioning.cli import built
from captioning.config import PrepareConfig
from captioning.data.datamodule import PhotographDataModule
from captioning.data.pixel_cache import packs_in
from captioning.errors import UserError
from captioning.files import readable
from captioning.machine import cores, data_for_one_process

log = logging.getLogger(__name__)

NAMED = 3  # unreadable files that the last sentence names


def prepare(config: PrepareConfig) -> int:
    """Prepare what is not yet prepared; the number of pictures that now are.

    Raises UserError at the end, when all others are stored, if some could not be read.
    """
    datamodule: PhotographDataModule = built(data_for_one_process(config.data), "data")
    try:
        outcome = datamodule.prepare(config.size, cores() if config.num_workers is None else config.num_workers)
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
