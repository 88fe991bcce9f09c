"""The command line: how a script answers to mistakes, and what it does with its arguments before Hydra sees them.

A script gives `sys.argv[1:]` to `prepared_arguments`: paths are quoted, a resumed run's overrides are added, and a
mistake ends in one sentence, before Hydra makes a run's folder and before anything heavy is imported. What a script
does then stands under `one_sentence_errors`; it builds from its configuration by `built`.
"""

import atexit
import difflib
import gc
import logging
import os
import re
import sys
import traceback
import warnings
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
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

from captioning.config import (
    AUGMENTATION_OFF,
    GROUPS,
    INSTEAD,
    KINDS,
    Kind,
    Section,
    checked,
    fields_of,
    path_keys,
)
from captioning.errors import Stopped, UserError
from captioning.files import readable
from captioning.runs import SWEEP, is_first_rank, is_requeued, is_run, new_folder, overrides_of_run, own
from captioning.weights import refuse_overruled

CONF = Path(__file__).parents[1] / "conf"


# What a script does with its arguments.

PATH_KEYS = path_keys()
NOT_ALWAYS_PATHS = ("gallery", "heat_maps", "resume")  # also true, false or a number


def prepared_arguments(arguments: list[str], config_name: str) -> list[str]:
    """The arguments of the script of `config_name` as Hydra should get them.

    Raises:
        UserError: if an override names nothing that exists or has a value that cannot be meant, if `resume` names no
            run, or if `run_dir` names one that exists or cannot be written.
    """
    arguments = in_full(list(in_hydras_words(arguments)), config_name)
    multirun = bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments))
    arguments = [argument if multirun and _is_sweep(argument) else quoted(argument) for argument in arguments]
    arguments = spelled_out(arguments)
    if config_name == "prepare" and not _value_of("data", arguments) and (name := _value_of("download", arguments)):
        arguments.append(f"data={name}")
    if config_name == "train":
        if _is_rank_of_resumed_run(arguments):
            return arguments
        arguments = _of_run(arguments, multirun)
    flags = [argument for argument in arguments if argument.startswith("-")]
    _refuse_other_configurations(flags)
    if set(flags) <= {"-m", "--multirun", "-r", "--run"}:  # the rest, such as --help, is Hydra's own business
        config = check_overrides([a for a in arguments if a not in flags], config_name, multirun)
        if config_name == "train" and is_first_rank():
            return [*arguments, *_with_own_folder(config, SWEEP if multirun else "hydra.run.dir")]
    return arguments


def in_hydras_words(arguments: list[str]) -> Iterator[str]:
    """With `--seed=1` and `--seed 1` as an override; and `--config-dir` as one, which is kept with a run.

    >>> list(in_hydras_words(["--seed=1", "--batch-size", "8", "-m", "--config-dir", "/usr", "--cfg", "job"]))
    ['seed=1', 'batch_size=8', '-m', "hydra.searchpath=['file:///usr']", '--cfg', 'job']
    """
    hydras = get_args_parser()._option_string_actions  # its flags
    given = deque(arguments)
    while given:
        argument = given.popleft()
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = Path(value if equals else given.popleft() if given else "").absolute()
            if not folder.is_dir():
                raise UserError(f"--config-dir={folder} is no folder; name the one that holds experiment/ or the like")
            yield f"hydra.searchpath=['file://{folder}']"
        elif flag in hydras or not flag.startswith("--") or flag == "--":
            yield argument
        else:
            if not equals:  # its value follows, or it is a switch
                follows = given and not given[0].startswith("-") and not OVERRIDE.match(given[0])
                value = given.popleft() if follows else "true"
            yield f"{flag[2:].replace('-', '_')}={value}"


OVERRIDE = re.compile(r"[+~]*[\w./@]+=")  # how one begins

MEANT = {  # names that people try, by script, where they can mean but one key
    "train": {
        **dict.fromkeys(("epochs", "num_epochs", "stage.epochs"), "trainer.max_epochs"),
        **dict.fromkeys(("dataset", "data.name"), "data"),
        **dict.fromkeys(("output", "out", "output_dir"), "run_dir"),
        "data_dir": "data.root",
        "workers": "data.num_workers",
        "gpus": "trainer.devices",
    },
    "predict": {
        **dict.fromkeys(("image", "images", "folder", "picture", "pictures", "photos", "path", "inputs"), "input"),
        **dict.fromkeys(("model", "ckpt", "weights", "run", "model.init_from"), "checkpoint"),
        **dict.fromkeys(("out", "outputs", "output_file"), "output"),
        "dataset": "data",
        "beams": "decoding.num_beams",
        "workers": "num_workers",
    },
    "prepare": {"dataset": "data", "workers": "num_workers", "folder": "data.root"},
    "export": {"opset": "onnx_opset"},
}


def in_full(arguments: list[str], config_name: str) -> list[str]:
    """With the whole name of each key that can mean but one: `batch_size=8` as `data.batch_size=8`.

    Raises:
        UserError: if two names of one key are given, with two values.

    >>> in_full(["epochs=3", "batch_size=8", "seed=1", "+trainer.max_steps=9"], "train")
    ['trainer.max_epochs=3', 'data.batch_size=8', 'seed=1', '++trainer.max_steps=9']
    """
    meant, said = _short_names(config_name), dict[str, str]()
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("+trainer."):  # as it was written while conf/trainer listed few
            arguments[place] = f"+{argument}"
        if not equals or name.startswith(("-", "+", "~")):
            continue
        key = meant.get(name, name)
        first, _, before = said.setdefault(key, argument).partition("=")
        if before != value and {first, name} != {key}:
            raise UserError(f"{said[key]} and {argument} are both {key}; leave one out")
        arguments[place] = f"{key}={value}"
    return arguments


@cache
def _short_names(config_name: str) -> dict[str, str]:
    """What `MEANT` has, and the last part of each key's name that no other key has."""
    names = {name for name, _ in fields_of(KINDS[config_name]) if "*" not in name}
    ends = defaultdict(list)
    for name in names:
        ends[name.rpartition(".")[2]].append(name)
    unique = {end: whole[0] for end, whole in ends.items() if len(whole) == 1}
    taken = {path.name for path in CONF.iterdir()}  # groups
    short = {end: name for end, name in unique.items() if end not in taken}
    return {name: key for name, key in (short | MEANT[config_name]).items() if name not in names}


OTHER_CONFIGURATIONS = ("--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun")


def _refuse_other_configurations(flags: list[str]) -> None:
    """Raise UserError for flags of Hydra that choose another file than the script's, which nothing here would check."""
    for flag in flags:
        if flag.partition("=")[0] in OTHER_CONFIGURATIONS:
            raise UserError(
                f"{flag} is not taken: each script has one configuration; put yours into FOLDER/experiment/MINE.yaml, "
                "and choose it with --config-dir=FOLDER experiment=MINE"
            )


def _with_own_folder(config: DictConfig, key: str) -> list[str]:
    """Make the folder that `key` names this process's own, before Hydra writes into it.

    Where the time of day names it, which two runs may share, the override that gives it the name that was free.
    """
    names = OmegaConf.to_container(config, resolve=False)
    assert isinstance(names, dict)
    _, kind, _ = key.split(".")
    if (name := str(names["hydra"][kind]["dir"])) == "${run_dir}":
        key, name = "run_dir", str(names["run_dir"])
    try:
        folder = Path(str(OmegaConf.select(config, key)))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={name} cannot be read: {str(error).splitlines()[0]}; name a folder") from error
    if config.hydra.job.chdir:
        raise UserError(
            "hydra.job.chdir=true would let relative paths begin in the run's folder; leave it out, for all that a run "
            "writes lies there"
        )
    if "${now:" not in name:
        own(folder, key, resumes=config.resume is not None)
        return []
    folder = new_folder(folder)
    own(folder, key)
    return [quoted(f"{key}={folder}")]


def _is_rank_of_resumed_run(arguments: list[str]) -> bool:
    """Whether Lightning has started this process, with arguments as they were prepared before."""
    resume = _value_of("resume", arguments)
    return resume is not None and resume == _value_of("run_dir", arguments) and "LOCAL_RANK" in os.environ


def _of_run(arguments: list[str], multirun: bool) -> list[str]:
    """With the overrides of the run that is gone on with."""
    run_dir = _value_of("run_dir", arguments)
    if run_dir and not multirun and is_requeued(Path(run_dir)):
        return _of_resumed_run([quoted(f"resume={run_dir}")], run_dir)  # the run has its overrides
    if resume := _value_of("resume", arguments):
        if multirun:
            raise UserError(f"resume={resume} continues one run; leave -m out, and resume a multirun's jobs one by one")
        return _of_resumed_run(arguments, resume)
    if run_dir is None and not multirun and (tasks := _started_together()) > 1:
        raise UserError(f"{tasks} processes are started with this command; name their one run folder with run_dir=PATH")
    if run_dir == "":
        raise UserError("run_dir is empty; name a folder, or leave it out")
    if run_dir and multirun:
        raise UserError(f"run_dir={run_dir} is for one run; a multirun's jobs lie in hydra.sweep.dir={run_dir}")
    return arguments


def _started_together() -> int:
    """How many processes srun or torchrun has started with this command; 1 without them."""
    by_torchrun = os.environ.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or by_torchrun or 1)


def _of_resumed_run(arguments: list[str], resume: str) -> list[str]:
    if other := next((a for a in arguments if a.startswith(("run_dir=", "hydra.run.dir="))), None):
        raise UserError(f"resume={resume} continues in its own folder; leave {other.partition('=')[0]} out")
    if any(argument.startswith("model.init_from=") for argument in arguments):
        raise UserError(f"resume={resume} continues with its own weights; leave model.init_from out")
    own = [quoted(f"run_dir={resume}")]
    first = next(i for i, argument in enumerate(arguments) if "=" in argument and argument[0] != "-")
    kept = [
        o
        for o in in_full(overrides_of_run(Path(resume)), "train")
        if not any(f"~{a.partition('=')[0]}" == o for a in arguments)
    ]
    return [*arguments[:first], *kept, *arguments[first:], *own]


SPELLED_OUT = {
    "scores": ("scores.pictures=0",),
    "sample_pictures": ("sample_pictures=0",),
    "checkpoints": ("trainer.enable_checkpointing=false",),
    "data.augmentation": tuple(f"data.augmentation.{key}={off}" for key, off in AUGMENTATION_OFF.items()),
    **{group: (f"~{group}",) for group in ("logger.wandb", "logger", "callbacks", "experiment", "debug")},
}


def spelled_out(arguments: list[str]) -> list[str]:
    """With what `scores=0` and the like can only mean said key by key.

    >>> spelled_out(["seed=1", "scores=0", "logger=null"])
    ['seed=1', 'scores.pictures=0', '~logger']
    """
    said: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "text_files":
            argument = f"text_files.write={value}"
        said += SPELLED_OUT.get(key, [argument]) if value in ("0", "false", "null") else [argument]
    return said


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
        parsed = _parsed(argument)
        if not parsed.is_sweep_override() and (parsed.value() in (value, None) or key in NOT_ALWAYS_PATHS):
            return argument
    except HydraException:
        pass  # not Hydra's grammar, which is what quotes are for
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def _is_sweep(argument: str) -> bool:
    try:
        return _parsed(argument).is_sweep_override()
    except HydraException:
        return False


def _value_of(key: str, arguments: list[str]) -> str | None:
    """The value of the last `KEY=VALUE`, or None where there is none or it is null."""
    given = [argument for argument in arguments if argument.startswith(f"{key}=")]
    value = parsed_override(given[-1]).value() if given else None
    return None if value is None else str(value)


# Which overrides can be meant.

ALWAYS_NEEDED = ("data", "model", "stage", "optimizer", "decoding", "trainer")


def parsed_override(argument: str) -> Override:
    """One `KEY=VALUE`; raises UserError if it is none."""
    try:
        return _parsed(argument)
    except HydraException as error:
        raise UserError(
            f"{argument} is not an override that can be read; write KEY=VALUE, and put a value with spaces, commas or "
            "brackets into quotes twice: 'KEY=\"VALUE\"'"
        ) from error


@cache  # each is looked at several times, and takes a millisecond
def _parsed(argument: str) -> Override:
    if "glob(" not in argument:
        return OverridesParser.create().parse_override(argument)
    with initialize_config_dir(str(CONF), version_base="1.3"):  # whose loader knows what there is to choose
        (parsed,) = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides([argument])
        return parsed


def check_overrides(arguments: list[str], config_name: str, multirun: bool = False) -> DictConfig:
    """What is composed of these overrides, Hydra's own part too; of a multirun, its first job.

    Raises:
        UserError: with the nearest name that exists, for an override that cannot be meant.
    """
    overrides = [parsed_override(argument) for argument in arguments]
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            raise UserError(
                f"{override.input_line} is a choice of several; add -m to run them all, or put it into quotes"
            )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        groups = [o for o in overrides if _is_group(o)]
        values = [o for o in overrides if not _is_group(o)]
        for override in groups:
            if not any(other.key_or_group == "hydra.searchpath" for other in overrides):  # or Hydra knows of more
                _check_choice(override)
        try:
            whole = _composed(config_name, overrides, with_hydra=True)
        except UserError:  # Hydra's own words, where none of ours fit
            before = _composed(config_name, [*groups, *(o for o in values if o.key_or_group == "hydra.searchpath")])
            for override in values:
                _check_key(override, before)
            raise
        config = OmegaConf.masked_copy(whole, [str(name) for name in whole if name != "hydra"])
        if "model" in config:
            refuse_overruled(config, [override.key_or_group for override in values])
        checked(config, KINDS[config_name])
        return whole


def _must_exist(override: Override) -> bool:
    """Whether its key is to be one of conf/: it is neither added nor deleted, nor Hydra's own."""
    changes_keys = override.is_add() or override.is_force_add() or override.is_delete()
    return not changes_keys and re.split("[./]", override.key_or_group)[0] != "hydra"


def _composed(config_name: str, overrides: list[Override], *, with_hydra: bool = False) -> DictConfig:
    try:
        return compose(config_name, [_first_of_sweep(o) for o in overrides], return_hydra_config=with_hydra)
    except (ConfigCompositionException, MissingConfigException, OverrideParseException, ValueError) as error:
        given = " ".join(override.input_line or "" for override in overrides)
        raise UserError(f"{given} does not compose: {' '.join(str(error).split())}") from error


def _is_group(override: Override) -> bool:
    return (CONF / override.key_or_group).is_dir()


def _first_of_sweep(override: Override) -> str:
    if not override.is_sweep_override():
        return override.input_line or ""
    first = next(iter(override.sweep_string_iterator()), None)
    if first is None:
        raise UserError(f"{override.input_line} fits none of the choices; write another pattern")
    return f"{override.input_line.split('=')[0]}={first}" if override.input_line else ""


def _check_choice(override: Override) -> None:
    group = override.key_or_group
    if override.is_delete() and group in ALWAYS_NEEDED:
        raise UserError(f"~{group} leaves nothing to go by; choose one with {group}=...")
    choices = sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))
    if not override.is_delete() and not override.is_sweep_override() and override.value() is None:
        raise UserError(f"{group}=null chooses nothing; choose one of {', '.join(choices)}")
    named = override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
    for choice in (str(choice) for choice in named if choice is not None):
        if choice not in choices:
            meant = _meant_path(group, choice) or _meant(choice, choices, cutoff=0.6)
            raise UserError(f"{group}={choice} is none of {', '.join(choices)}{meant}")


def _check_key(override: Override, before: DictConfig) -> None:
    key = override.key_or_group
    if not _must_exist(override):
        return
    values = _keys(before)
    known = values | {name.partition(".")[0] for name in values}  # and the groups
    if key not in known and not any(name.startswith(f"{key}.") for name in known):
        group, _, last = key.rpartition(".")
        if group == "trainer" and last in INSTEAD:
            raise UserError(f"{override.input_line} is not taken: {INSTEAD[last]}")
        if last in ("lr", "learning_rate", "learning_rates"):
            value = str(override.input_line).partition("=")[2] if isinstance(override.value(), int | float) else "1e-4"
            each = ", ".join(f"stage.learning_rates.{one}={value}" for one in GROUPS)
            raise UserError(f"there is no key {key}; each group of weights has a rate of its own: {each}")
        if choices := _choices_with(key):
            raise UserError(f"there is no key {key} as things are chosen; it is of {' or '.join(choices)}")
        raise UserError(f"there is no key {key}; conf/ lists them all{_meant(key, sorted(known), cutoff=0.8)}")


def _choices_with(key: str) -> list[str]:
    """Those choices of the key's own group that have it, such as `decoding=sampling` for `decoding.temperature`."""
    group, _, name = key.partition(".")
    files = sorted((CONF / group).glob("*.yaml")) if name else []
    return [f"{group}={file.stem}" for file in files if name in OmegaConf.load(file) and file.stem[0] != "_"]


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


def _meant_path(group: str, value: str) -> str:
    """The keys that take what lies on the disk, where a group was given it."""
    keys = {"data": "data=folder data.root", "model": "model.init_from"}
    return f"; did you mean {keys[group]}={value}?" if group in keys and Path(value).expanduser().exists() else ""


def _meant(name: str, names: list[str], cutoff: float) -> str:
    """Like `; did you mean data.root?`, or nothing if no name is near."""
    near = [known for known in names if name and known.startswith(name)]
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    if not near:  # the right key in the wrong group
        near = [known for known in names if known.rpartition(".")[2] == name.rpartition(".")[2]]
    return f"; did you mean {' or '.join(near[:2])}?" if near else ""


# What a script builds, and how it ends.


def configured(kind: type[Kind], *overrides: str, **known: Any) -> Kind:
    """The configuration that a command with these overrides has, for notebooks, tests and benchmarks.

    `known` are values in place of those that are composed, see `checked`.
    """
    name = next(name for name, known_kind in KINDS.items() if known_kind is kind)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        said = [parsed_override(override) for override in spelled_out(list(overrides))]
        return checked(_composed(name, said), kind, **known)


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Where a script imports torch and all that is built on it, without looking for garbage meanwhile.

    There is none, and among half a million objects the looks take a second of the five. What is there then stays, so
    later looks pass over it (`gc.freeze`), but for the last: Triton complains of what that has not taken away.
    """
    if "torch" in sys.modules:  # in a notebook or a test, whose objects may go
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.enable()


def built(config: Any, key: str, **arguments: Any) -> Any:
    """`hydra.utils.instantiate`, with what the constructor objects to as a `UserError` that names the key."""
    config = config.plain() if isinstance(config, Section) else config
    try:
        return instantiate(config, **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, _objections()) or str(error).startswith("Error locating target"):
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


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End on a user's mistake with its one sentence and status 1; anything else is a bug and keeps its trace.

    A run that a signal stopped ends with the signal's status.

    HYDRA_FULL_ERROR=1 shows the trace of both, as it does for Hydra's own errors.
    """
    try:
        yield
    except Exception as error:
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
    except Exception as error:
        words = _mistake(error)
        if words is None or not is_run(run_dir):
            raise
        raise UserError(f"{words}; then {continued}") from error
    except Stopped as end:
        raise Stopped(int(end.code or 0), f"{end.words}; {continued}") from None
    except (KeyboardInterrupt, SystemExit) as end:
        raise KeyboardInterrupt(continued) from end


LOADER_DIED = "DataLoader worker (pid"  # how torch begins to say that one ended, by a signal or by itself


def _mistake(error: Exception) -> str | None:
    """The one sentence of an error that a user can mend; None of a bug.

    Where a loader worker raised it, torch has wrapped its trace around it.
    """
    text = str(error)
    if _is_lightnings_objection(error):
        return f"Lightning objects: {' '.join(text.split())} (HYDRA_FULL_ERROR=1 shows where)"
    if isinstance(error, UserError):
        marker = f"{type(error).__module__}.{type(error).__qualname__}: "
        return text.rpartition(marker)[2].strip() if marker in text else text
    if LOADER_DIED not in text:
        return None
    return (
        f"a process that reads pictures ended ({text.splitlines()[0].strip().rstrip('.')}), most often because memory "
        "ran out; take fewer processes or smaller batches"
    )


def _is_lightnings_objection(error: Exception) -> bool:
    """Whether Lightning's own code has raised it, in a fit or a test: of a setting, or of a user's callback."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    raised_there = str(innermost.f_globals.get("__name__")).startswith("lightning.")
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return raised_there and bool(kinds & {"MisconfigurationException", "ValueError", "RuntimeError"})


# Warnings of libraries that no user can heed, each with the reason why there is nothing to heed.
NOTHING_TO_HEED = {
    r"The number of training batches .* is smaller than the logging interval": "an epoch's end is logged, too",
    r"Found \d+ module\(s\) in eval mode": "those that a stage leaves frozen, on purpose",
    r"It is recommended to use .*sync_dist=True": "what is logged is summed over the ranks already",
    r"Grad strides do not match bucket view": "DDP says it of one small parameter; it costs nothing",
    r"Checkpoint directory .* exists and is not empty": "it is a resumed run's",
    r"This DataLoader will create \d+ worker processes": "machine.py says it as a run starts, with the key",
    r".*isinstance\(treespec, LeafSpec\).*": "Lightning 2.6 with torch 2.15, between the two",
}


def quiet_libraries() -> None:
    """Keep banners and advice out of the terminal; warnings stay, save those of `NOTHING_TO_HEED`.

    To be called after the libraries were imported, since importing Lightning sets its own level.
    """
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for asked_for in ("lightning.pytorch.callbacks.model_summary", "lightning.pytorch.profilers"):
        logging.getLogger(asked_for).setLevel(logging.INFO)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it says when it looks for fonts
    if not is_first_rank():
        logging.getLogger().setLevel(logging.WARNING)  # of several processes that train together, the first one speaks
    logging.raiseExceptions = False  # no trace for each line that a full disk keeps out of train.log: it is shown too
    for message in NOTHING_TO_HEED:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("transformers.modeling_utils").addFilter(_is_no_advice_about_padding)  # once, however often
    if "transformers" in sys.modules and not sys.stderr.isatty():
        sys.modules["transformers"].utils.logging.disable_progress_bar()  # a log file gets lines


def _is_no_advice_about_padding(record: logging.LogRecord) -> bool:
    """Padding is known by position here, and a mask is given where there is any."""
    return "your input_ids may be padded" not in record.getMessage()
