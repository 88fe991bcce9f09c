"""The command line of the scripts: mistakes answered in one sentence, before Hydra composes anything.

What `train.py` and `predict.py` share: building from configuration, and one clear sentence on a mistake.

Overrides as Hydra's grammar reads them, and the mistakes in them told in a sentence before it composes anything.

The command line before Hydra sees it: paths quoted, mistakes told in a sentence, a resumed run's overrides added.
"""

import copy
import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioning.config import KINDS, Kind, Section, checked
from captioning.errors import Stopped, UserError
from captioning.files import readable
from captioning.runs import is_requeued, is_run, make_folder, overrides_of_run, refuse_existing_run
from captioning.weights import refuse_overruled

CONF = Path(__file__).parents[1] / "conf"


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


def configured(kind: type[Kind], *overrides: str) -> Kind:
    """The configuration that a command with these overrides has, for notebooks, tests and benchmarks."""
    name = next(name for name, known in KINDS.items() if known is kind)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(_composed(name, [parsed_override(override) for override in overrides]), kind)


def built(config: Any, key: str, **arguments: Any) -> Any:
    """`hydra.utils.instantiate`, with what the constructor objects to as a `UserError` that names the key."""
    config = config.plain() if isinstance(config, Section) else config
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
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it says when it looks for fonts
    logging.raiseExceptions = False  # no trace for each line that a full disk keeps out of train.log: it is shown too
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # the frozen ones, on purpose
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")  # what is logged is summed
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")  # DDP, of a prefix token
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # it is a resumed run
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning 2.6 and torch 2.15


ALWAYS_NEEDED = ("data", "model", "stage", "decoding", "trainer")


def parsed_override(argument: str) -> Override:
    """One `KEY=VALUE`; raises UserError if it is none."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise UserError(
            f"{argument} is not an override that can be read; write KEY=VALUE, and put a value with spaces, commas or "
            "brackets into quotes twice: 'KEY=\"VALUE\"'"
        ) from error


def check_overrides(arguments: list[str], config_dir: Path, config_name: str, multirun: bool = False) -> None:
    """Raise UserError, with the nearest name that exists, for an override that cannot be meant."""
    overrides = [parsed_override(argument) for argument in arguments]
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            raise UserError(
                f"{override.input_line} is a choice of several; add -m to run them all, or put it into quotes"
            )
    with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
        groups = [o for o in overrides if _is_group(o, config_dir)]
        values = [o for o in overrides if not _is_group(o, config_dir)]
        for override in groups:
            _check_choice(override, config_dir)
        before = _composed(config_name, groups)
        for override in values:
            _check_key(override, before, config_dir)
        is_plain = all(_must_exist(override) and not override.is_sweep_override() for override in values)
        config = _with(before, values) if is_plain else _composed(config_name, overrides)
        if "model" in config:
            refuse_overruled(config, [override.key_or_group for override in values])
        checked(config, KINDS[config_name])


def _must_exist(override: Override) -> bool:
    """Whether its key is to be one of conf/: it is neither added nor deleted, nor Hydra's own."""
    changes_keys = override.is_add() or override.is_force_add() or override.is_delete()
    return not changes_keys and re.split("[./]", override.key_or_group)[0] != "hydra"


def _composed(config_name: str, overrides: list[Override]) -> DictConfig:
    try:
        return compose(config_name, [_first_of_sweep(o) for o in overrides])
    except (ConfigCompositionException, MissingConfigException, OverrideParseException, ValueError) as error:
        given = " ".join(override.input_line or "" for override in overrides)
        raise UserError(f"{given} does not compose: {' '.join(str(error).split())}") from error


def _with(config: DictConfig, values: list[Override]) -> DictConfig:
    """The configuration with keys set that it has: what Hydra makes of them, without composing once more."""
    config = copy.deepcopy(config)
    for override in values:
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


def _is_group(override: Override, config_dir: Path) -> bool:
    return (config_dir / override.key_or_group).is_dir()


def _first_of_sweep(override: Override) -> str:
    if not override.is_sweep_override():
        return override.input_line or ""
    first = next(iter(override.sweep_string_iterator()))
    return f"{override.input_line.split('=')[0]}={first}" if override.input_line else ""


def _check_choice(override: Override, config_dir: Path) -> None:
    group = override.key_or_group
    if override.is_delete() and group in ALWAYS_NEEDED:
        raise UserError(f"~{group} leaves nothing to go by; choose one with {group}=...")
    choices = sorted(path.stem for path in (config_dir / group).glob("*.yaml") if not path.stem.startswith("_"))
    for choice in _choices_named(override):
        if choice is not None and choice not in choices:
            raise UserError(f"{group}={choice} is none of {', '.join(choices)}{_meant(choice, choices, cutoff=0.6)}")


def _choices_named(override: Override) -> Iterator[str | None]:
    if override.is_sweep_override():
        yield from (str(value) for value in override.sweep_string_iterator())
    else:
        value = override.value()
        yield None if value is None else str(value)


def _choices_with(key: str, config_dir: Path) -> list[str]:
    """Those choices of the key's own group that have it, such as `decoding=sampling` for `decoding.temperature`."""
    group, _, name = key.partition(".")
    files = sorted((config_dir / group).glob("*.yaml")) if name else []
    return [f"{group}={file.stem}" for file in files if name in OmegaConf.load(file) and file.stem[0] != "_"]


def _check_key(override: Override, before: DictConfig, config_dir: Path) -> None:
    key = override.key_or_group
    if not _must_exist(override):
        return
    values = _keys(before)
    known = values | {name.partition(".")[0] for name in values}  # and the groups
    if key not in known and not any(name.startswith(f"{key}.") for name in known):
        is_trainers = key.rpartition(".")[0] == "trainer"
        added = f"; +{key}=... passes an argument to lightning.Trainer that is not listed" if is_trainers else ""
        if choices := _choices_with(key, config_dir):
            raise UserError(f"there is no key {key} as things are chosen; it is of {' or '.join(choices)}")
        raise UserError(f"there is no key {key}{_meant(key, sorted(known), cutoff=0.8)}{added}; conf/ lists them all")


def _keys(config: DictConfig, prefix: str = "") -> set[str]:
    """The dotted names of all values."""
    keys: set[str] = set()
    for name in map(str, config):
        inner = None if OmegaConf.is_interpolation(config, name) else config[name]
        if isinstance(inner, DictConfig):
            keys |= _keys(inner, f"{prefix}{name}.")
        else:
            keys.add(f"{prefix}{name}")
    return keys


def _meant(name: str, names: list[str], cutoff: float) -> str:
    """Like `; did you mean data.root?`, or nothing if no name is near."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    if not near:  # the right key in the wrong group
        near = [known for known in names if known.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f"; did you mean {near[0]}?" if near else ""


PATH_KEYS = (
    *("checkpoint", "input", "output", "resume", "run_dir", "encoder_cache", "gallery", "heat_maps"),
    *("data.root", "data.prepared", "data.tokenizer", "model.encoder", "model.decoder", "model.init_from"),
)


NOT_ALWAYS_PATHS = ("gallery", "heat_maps", "resume")  # also true, false or a number


def prepared_arguments(arguments: list[str], config_dir: Path, config_name: str) -> list[str]:
    """The arguments as Hydra should get them.

    Raises:
        UserError: if an override names nothing that exists or has a word where a number belongs, if `resume` names no
            run, or if `run_dir` names one that exists or cannot be written.
    """
    multirun = bool({"-m", "--multirun"} & set(arguments))
    arguments = [argument if multirun and _is_sweep(argument) else quoted(argument) for argument in arguments]
    run_dir = _value_of("run_dir", arguments) if config_name == "train" else None
    if run_dir and not multirun and is_requeued(Path(run_dir)):
        arguments = [quoted(f"resume={run_dir}")]  # the run has its overrides
    resume = _value_of("resume", arguments) if config_name == "train" else None
    if resume is not None and run_dir == resume and "LOCAL_RANK" in os.environ:
        return arguments  # a rank that Lightning has started, with arguments as they were prepared before
    if resume is not None:
        if any(argument.startswith("run_dir=") for argument in arguments):
            raise UserError(f"resume={resume} continues in its own folder; leave run_dir out")
        if any(argument.startswith("model.init_from=") for argument in arguments):
            raise UserError(f"resume={resume} continues with its own weights; leave model.init_from out")
        # Hydra would write the new overrides down before anything has shown that the run can go on with them.
        own = [quoted(f"run_dir={resume}"), "hydra.output_subdir=null"]
        first = next(i for i, argument in enumerate(arguments) if "=" in argument and argument[0] != "-")
        arguments = [*arguments[:first], *overrides_of_run(Path(resume)), *arguments[first:], *own]
    elif run_dir is None and not multirun and config_name == "train" and _tasks_of_this_job() > 1:
        raise UserError(
            f"this SLURM job has {_tasks_of_this_job()} tasks, which need one run folder: name it with run_dir=PATH"
        )
    elif run_dir is not None:
        if not run_dir:
            raise UserError("run_dir is empty; name a folder, or leave it out")
        if multirun:
            raise UserError(f"run_dir={run_dir} is for one run; a multirun's jobs lie in hydra.sweep.dir={run_dir}")
        refuse_existing_run(Path(run_dir))
    flags = [argument for argument in arguments if argument.startswith("-")]
    if set(flags) <= {"-m", "--multirun"}:  # the rest, such as --help, is Hydra's own business
        check_overrides([a for a in arguments if a not in flags], config_dir, config_name, multirun)
        if config_name == "train":
            make_folder(Path(_value_of("run_dir", arguments) or "runs"))
    return arguments


def _tasks_of_this_job() -> int:
    """How many processes srun has started with this command; 1 outside of SLURM."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def quoted(argument: str) -> str:
    """`KEY=PATH` with the path quoted for Hydra's grammar if it would not read it as one plain value.

    >>> quoted("input=my photos (2024), best")
    "input='my photos (2024), best'"
    >>> quoted("input=photos")
    'input=photos'
    """
    key, equals, value = argument.partition("=")
    if key not in PATH_KEYS or not equals or value[:1] in ("'", '"', "["):
        return argument
    if value.startswith("~"):  # which no shell expands behind `data.root=`
        value = os.path.expanduser(value)  # noqa: PTH111  # leaves the name of an unknown user as it is
        argument = f"{key}={value}"
    try:
        parsed = OverridesParser.create().parse_override(argument)
        if not parsed.is_sweep_override() and (parsed.value() in (value, None) or key in NOT_ALWAYS_PATHS):
            return argument
    except HydraException:
        pass  # not Hydra's grammar, which is what quotes are for
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def _is_sweep(argument: str) -> bool:
    try:
        return OverridesParser.create().parse_override(argument).is_sweep_override()
    except HydraException:
        return False


def _value_of(key: str, arguments: list[str]) -> str | None:
    """The value of the last `KEY=VALUE`, or None where there is none or it is null."""
    given = [argument for argument in arguments if argument.startswith(f"{key}=")]
    value = parsed_override(given[-1]).value() if given else None
    return None if value is None else str(value)
