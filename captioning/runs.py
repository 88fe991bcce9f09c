"""A run's folder: whose it is, what a command finds in it, and its checkpoints, read as data and never as code.

`train.py` makes it (`run_dir=`) or continues it (`resume=`): then its own overrides come from here, and `last.ckpt`.
What a run that resumes may change is in `training/resume.py`.
"""

import atexit
import csv
import json
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from filelock import FileLock
from omegaconf import ListConfig, OmegaConf
from yaml import YAMLError

from captioning.config import TrainConfig
from captioning.errors import UserError
from captioning.files import locked, readable, remove_unfinished, unlocked, write_atomically

log = logging.getLogger(__name__)


def logged_rows(run_dir: Path) -> list[dict[str, str]]:
    """The rows of its `metrics.csv`, none if there is none; a part of a row, without a step, is left out."""
    file = run_dir / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return [row for row in csv.DictReader(opened) if (row.get("step") or "").isdecimal()]


def checkpoint_file(checkpoint: str | Path, key: str = "checkpoint") -> Path:
    """The file meant by a run folder (its best, or else its last) or by a file's own path; `key` named it.

    Raises:
        UserError: if there is none.
    """
    path = Path(checkpoint)
    candidates = [path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    try:
        found = next((candidate for candidate in (path, *candidates) if candidate.is_file()), None)
    except OSError as error:
        raise UserError(f"{key}={checkpoint} can't be looked at: {error.strerror}; check the path") from error
    if found and not is_zipfile(found):
        where = f": {found}" if found != path else ""
        raise UserError(f"{key}={checkpoint}{where} is damaged or is no checkpoint; give one that train.py wrote")
    if found:
        return found
    names = " or ".join(str(candidate.relative_to(path)) for candidate in candidates)
    problem = f"holds no {names}, and no config.json of transformers" if path.is_dir() else "is not there"
    raise UserError(
        f"{key}={checkpoint} {problem}; give a run folder of train.py, a .ckpt file, or a VisionEncoderDecoderModel's "
        "folder or OWNER/NAME on the Hugging Face hub"
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that `train.py` wrote, on the CPU, its tensors mapped from the file and read when used.

    Raises:
        UserError: if the file is damaged, holds anything but tensors and plain containers, or is no captioner's.
    """
    import torch  # here, since it takes seconds and a wrong path is answered without it

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} holds more than tensors and plain containers, or is no checkpoint at all; it was not "
            "loaded, since that could run code. Give a checkpoint that train.py wrote"
        ) from error
    except PermissionError as error:
        raise UserError(f"checkpoint {path} may not be read; check its permissions") from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise UserError(f"checkpoint {path} is damaged or is no checkpoint; give another one") from error
    ours = isinstance(checkpoint, dict) and isinstance(checkpoint.get("captioner"), dict) and "state_dict" in checkpoint
    if not ours or not {"description", "tokenizer"} <= checkpoint["captioner"].keys():
        raise UserError(f"checkpoint {path} is of another program or architecture; give one that train.py wrote")
    return checkpoint


def settings_in(path: Path | None) -> dict[str, Any]:
    """What the run of the checkpoint at `path` was set to, as far as that is kept, by dotted key; of none, nothing."""
    return (read_checkpoint(path).get(SETTINGS) or {}) if path else {}


LAST = Path("checkpoints", "last.ckpt")
SETTINGS = "settings"  # of a run, in its checkpoints
AVERAGE = "average"  # of the weights over the steps, in the checkpoints of a run that has `ema_decay`
LOCK = ".lock"
ENDED = ".ended.json"  # of a run that came to its end: what ended it, such as [["trainer.max_epochs", 3]]
SWEEP = "hydra.sweep.dir"
WHOLE = (  # that are written aside
    *(LAST, LAST.with_name("best.ckpt"), "metrics.csv", "results.md", "curves.png", "wandb-run-id.txt", ENDED),
    *(".hydra/config.yaml", ".hydra/overrides.yaml"),
)


def is_requeued(run_dir: Path) -> bool:
    """Whether SLURM has started this job before, and it left a run in `run_dir`: the same command then goes on."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and (run_dir / ".hydra" / "overrides.yaml").is_file()


RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # as torchrun, Lightning and srun number processes
_owned: dict[str, FileLock] = {}  # the folders of this process, by their real paths


def is_first_rank() -> bool:
    """Whether this process is alone, or the first of those that train together."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def own(run_dir: Path, key: str = "run_dir", *, resumes: bool = False) -> None:
    """Make this folder this process's own, until it ends or by `disown`; the first rank does it for all.

    Args:
        run_dir: is made where it is not there.
        key: that has named it, for sentences.
        resumes: whether it goes on with the run that lies there.

    Raises:
        UserError: if another process owns it, if it holds a run that is not to be resumed, or can't be written.
    """
    if not is_first_rank():
        return
    name = os.path.realpath(run_dir)
    if name not in _owned or not _owned[name].is_locked:  # a forked process has it not from its parent
        _make_folder(run_dir, key)
        lock = locked(run_dir / LOCK)
        if lock is None:
            raise UserError(
                f"{key}={run_dir} belongs to a run that is going on; wait until it ends, or choose another folder"
            )
        _owned[name] = lock
    if not resumes:
        try:
            _refuse_existing_run(run_dir, key)
        except UserError:
            disown(run_dir)
            raise


def disown(run_dir: Path) -> None:
    """Leave the folder to others."""
    if lock := _owned.pop(os.path.realpath(run_dir), None):
        unlocked(lock)


@contextmanager
def owned(run_dir: Path, *, resumes: bool) -> Iterator[None]:
    """Around a run, see `own`."""
    own(run_dir, resumes=resumes)
    try:
        yield
    finally:
        disown(run_dir)


@atexit.register
def _disown_all() -> None:
    for name in list(_owned):
        disown(Path(name))


def new_folder(path: Path) -> Path:
    """Make this folder, or `NAME-2`, `NAME-3` where it is taken: no two processes get one of the same name.

    Raises:
        UserError: if it can't be made.
    """
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}; choose another with run_dir=...") from error
        return folder
    raise AssertionError("there are always more numbers")


def _refuse_existing_run(run_dir: Path, key: str) -> None:
    """Raise UserError if it holds a run, or a multirun's; one that ended before its first step doesn't count."""
    if is_run(run_dir):
        raise UserError(
            f"{key}={run_dir} already holds a run; continue it with resume={run_dir}, or choose another {key}"
        )
    if (run_dir / "metrics.csv").is_file():
        raise UserError(
            f"{key}={run_dir} already holds a run without a checkpoint; begin it anew with resume={run_dir}, or "
            f"choose another {key}"
        )
    if key == SWEEP and (job := next((job for job in sorted(run_dir.iterdir()) if is_run(job)), None)):
        raise UserError(f"{key}={run_dir} already holds runs; continue one with resume={job}, or choose another {key}")


def _make_folder(run_dir: Path, key: str) -> None:
    """Raise UserError if `run_dir` cannot be made; Hydra would end in a stack trace."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        accessible = os.access(run_dir, os.W_OK | os.X_OK)
        reason = "you may not write into it"
    except OSError as error:
        accessible, reason = False, error.strerror or str(error)
    if not accessible:
        raise UserError(f"{key}={run_dir} cannot be written: {reason}; choose another folder with run_dir=...")


def overrides_of_run(run_dir: Path) -> list[str]:
    """The overrides that the run was started or last resumed with, save where it lies.

    A run that was stopped before its first checkpoint has them already, and begins anew.
    """
    saved = run_dir / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise UserError(
            f"resume={run_dir} is not a run folder with .hydra/overrides.yaml; "
            "give the folder that train.py printed when it started"
        )
    try:
        overrides = OmegaConf.load(saved)
    except (YAMLError, OSError, ValueError):
        overrides = None
    if not isinstance(overrides, ListConfig):  # an empty file, too, such as a power cut leaves
        raise UserError(
            f"resume={run_dir}: {saved} is damaged; write the run's overrides into it again, a line each: - KEY=VALUE"
        )
    return [str(o) for o in overrides if not str(o).startswith(("resume=", "run_dir="))]


def is_run(folder: Path) -> bool:
    """Whether a run of `train.py` lies there."""
    return (folder / LAST).is_file()


def seed_of_run(folder: Path) -> int | None:
    """The seed that a run was started with; None where it is not known."""
    saved = folder / ".hydra" / "config.yaml"
    return OmegaConf.select(OmegaConf.load(saved), "seed") if saved.is_file() else None


def last_checkpoint(run_dir: Path) -> Path | None:
    """What a resumed run goes on from; None where it was stopped before its first checkpoint, and begins anew."""
    if is_run(run_dir):
        return run_dir / LAST
    log.info("%s was stopped before its first checkpoint, and begins anew", run_dir)
    return None


def keep_end(run_dir: Path, ended_by: str, value: Any) -> None:
    """Write down that a run came to its end, by which key, and what that was; on a full disk a resume looks itself."""
    try:
        write_atomically(run_dir / ENDED, json.dumps([ended_by, value]) + "\n")
    except OSError as error:
        log.warning("%s can't be written: %s", run_dir / ENDED, error.strerror)


def nothing_to_do(config: TrainConfig) -> str:
    """Where a run that is to be resumed came to its end, and nothing lengthens it: words on that; else empty."""
    file = Path(config.run_dir) / ENDED
    if config.resume is None or not file.is_file():
        return ""
    key, value = json.loads(file.read_text(encoding="utf-8"))
    if OmegaConf.select(OmegaConf.create(config.plain()), key) != value:
        return ""
    run, longer = readable(Path(config.run_dir)), value + 3 if isinstance(value, int) else "..."
    more = f"more: python train.py resume={run} {key}={longer}"
    return f"{run} has come to its end ({key}={value}): nothing is left to do; {more}"


def tidy(run_dir: Path) -> None:
    """Delete what a process that was killed while it wrote has left of its files; none may be writing there."""
    remove_unfinished(run_dir / name for name in WHOLE)
    (run_dir / ENDED).unlink(missing_ok=True)


def keep_composition(run_dir: Path, config: TrainConfig, overrides: Sequence[str]) -> None:
    """Write down what a run is made of; the next `resume` starts from these overrides."""
    write_atomically(run_dir / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(ListConfig(list(overrides))))
    write_atomically(run_dir / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config.plain())))
