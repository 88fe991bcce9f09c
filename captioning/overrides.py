"""The command line before Hydra sees it: paths quoted, mistakes told in a sentence, a resumed run's overrides added."""

import os
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from captioning.errors import UserError
from captioning.override_checks import WORDS_TOO, check_overrides, parsed_override
from captioning.run_folder import is_requeued, make_folder, overrides_of_run, refuse_existing_run

PATH_KEYS = (
    *("checkpoint", "input", "output", "resume", "run_dir", "encoder_cache", "gallery", "heat_maps"),
    *("data.root", "data.prepared", "data.tokenizer", "model.encoder", "model.decoder", "model.init_from"),
)


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
        arguments = [*overrides_of_run(Path(resume)), *arguments, *own]
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
        if not parsed.is_sweep_override() and (parsed.value() in (value, None) or key in WORDS_TOO):
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
