"""What `train.py` and `predict.py` share: building from configuration, and one clear sentence on a mistake."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioning.errors import Stopped, UserError, require_whole
from captioning.files import readable
from captioning.run_folder import is_run


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End on a user's mistake with its one sentence and status 1; anything else is a bug and keeps its trace.

    A run that a signal stopped ends with the signal's status.

    HYDRA_FULL_ERROR=1 shows the trace of both, as it does for Hydra's own errors.
    """
    try:
        yield
    except (UserError, RuntimeError) as error:
        words = _mistake(error)
        if words is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.exit(f"error: {words}")
    except Stopped as stopped:
        print(f"stopped by {stopped.words}", file=sys.stderr)
        sys.exit(stopped.code)
    except KeyboardInterrupt as interruption:
        sys.exit(f"interrupted; {interruption}" if interruption.args else "interrupted")


@contextmanager
def resumable(run_dir: Path) -> Iterator[None]:
    """Adds to the end of an interrupted fit, which Lightning makes a silent exit, words on how to go on.

    So too where it ended by a mistake and has a checkpoint.
    """
    continued = f"continue with python train.py resume={readable(run_dir)}"
    try:
        yield
    except (UserError, RuntimeError) as error:
        words = _mistake(error)
        if words is None or not is_run(run_dir):
            raise
        raise UserError(f"{words}; then {continued}") from error
    except Stopped as end:
        raise Stopped(int(end.code or 0), f"{end.words}; {continued}") from None
    except (KeyboardInterrupt, SystemExit) as end:
        raise KeyboardInterrupt(continued) from end


def built(config: Any, key: str, **arguments: Any) -> Any:
    """`hydra.utils.instantiate`, with what the constructor objects to as a `UserError` that names the key."""
    try:
        return instantiate(config, **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, _objections()):
            reason = " ".join(str(cause).split())
            raise UserError(f"{key} cannot be set up so: {reason}") from error
        raise
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration of {key} is incomplete: {str(error).splitlines()[0]}") from error


def _objections() -> tuple[type[Exception], ...]:
    """What constructors raise at arguments that they cannot use."""
    fabric = sys.modules.get("lightning.fabric.utilities.exceptions")  # takes seconds to import; not there, not raised
    lightnings = (fabric.MisconfigurationException,) if fabric else ()
    return (TypeError, ValueError, OmegaConfBaseException, *lightnings)


def plain(config: DictConfig, *keys: str) -> dict[str, Any]:
    """The resolved configuration, or these keys of it, as plain containers."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if not keys or key in keys}


LOADER_DIED = "DataLoader worker (pid"  # how torch begins to say that one ended, by a signal or by itself


def _mistake(error: UserError | RuntimeError) -> str | None:
    """The one sentence of an error that a user can mend; None of a bug.

    Where a loader worker raised it, torch has wrapped its trace around it.
    """
    text = str(error)
    if isinstance(error, UserError):
        marker = f"{type(error).__module__}.{type(error).__qualname__}: "
        return text.rpartition(marker)[2].strip() if marker in text else text
    if LOADER_DIED not in text:
        return None
    return (
        f"a process that reads pictures ended ({text.splitlines()[0].strip().rstrip('.')}), most often because memory "
        "ran out; take fewer processes or smaller batches"
    )


def quiet_libraries() -> None:
    """Keep banners and advice out of the terminal; warnings stay, save those that no user can heed.

    To be called after the libraries were imported, since importing Lightning sets its own level.
    """
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    if os.environ.get("LOCAL_RANK", "0") != "0" or os.environ.get("SLURM_PROCID", "0") != "0":
        logging.getLogger().setLevel(logging.WARNING)  # of several processes that train together, the first one tells
    logging.raiseExceptions = False  # no trace for each line that a full disk keeps out of train.log: it is shown too
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # the frozen ones, on purpose
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")  # what is logged is summed
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")  # DDP, of the CLS token
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # it is a resumed run
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning 2.6 and torch 2.15


def require(config: DictConfig, key: str, example: str) -> Any:
    """The value of a key that has no default."""
    try:
        value = plain(config, key).get(key)
    except OmegaConfBaseException as error:
        raise UserError(
            f"{key} cannot be read: {str(error).splitlines()[0]}; a path with ${{ in it is not to be had"
        ) from error
    if value is None:
        raise UserError(f"{key} is missing; say which, for example {example}")
    return value


def whole(config: DictConfig, key: str, least: int) -> int:
    """The value of a key, perhaps a dotted one, that must be a whole number of at least `least`."""
    value = OmegaConf.select(config, key)
    require_whole(key, value, least)
    return value
