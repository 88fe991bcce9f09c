"""Overrides as Hydra's grammar reads them, and the mistakes in them told in a sentence before it composes anything."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from captioning.errors import UserError
from captioning.weights import refuse_overruled

ALWAYS_NEEDED = ("data", "model", "stage", "decoding", "trainer")
# Whose default is a number or true or false, but which take words as well.
WORDS_TOO = (
    *("trainer.devices", "precision", "decoding.early_stopping", "gallery", "heat_maps", "heat_maps_layers"),
    "resume",  # a folder of train.py's, true or false of predict.py's
)


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
            _check_value(override, before, config_dir)
        config = before if all(map(_surely_composes, values)) else _composed(config_name, overrides)
        if "model" in config:
            refuse_overruled(config, [override.key_or_group for override in values])


def _surely_composes(override: Override) -> bool:
    """Whether it only sets a key that was found to exist, and not one that decides about others."""
    return _must_exist(override) and override.key_or_group != "model.init_from"


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


def _check_value(override: Override, before: DictConfig, config_dir: Path) -> None:
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
    old = OmegaConf.select(before, key) if key not in WORDS_TOO else None
    if override.is_sweep_override() or not isinstance(old, int | float):
        return
    new = override.value()
    is_word = isinstance(new, str) and "${" not in new
    is_of_other_kind = new is not None and isinstance(old, bool) != isinstance(new, bool)
    if is_word or is_of_other_kind:
        kind = "true or false" if isinstance(old, bool) else "a number"
        raise UserError(f"{key}={new} must be {kind}, such as {key}={str(old).lower()}")


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
