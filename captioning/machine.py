"""What a run uses of the machine it is on: what the configuration leaves `auto`, and torch's switches for a GPU.

`for_training` and `for_prediction` give the configuration with a value in the place of each `auto`, and say in one line
which and why. What is written down of a run, in `.hydra/config.yaml`, keeps the `auto`, so that a run which goes on
elsewhere uses that machine as well as it can.
"""

import logging
import os
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

from captioning.config import Data, PredictConfig, TrainConfig, TrainerConfig
from captioning.errors import UserError

log = logging.getLogger(__name__)

MOST_READERS = 16  # processes that read pictures beside a GPU
READERS_BESIDE_A_CPU = 4
# The least GiB of a GPU, and the rows of an optimizer step there: together, for rates are those of a step.
TRAINED_ROWS = ((20, 64), (10, 32), (0, 16))
CAPTIONED_PICTURES = ((32, 256), (10, 64), (0, 16))
PACKED_MULTIPLE = 16  # tokens: 16 bytes in bf16 are 8
LEAST_ROWS = 16  # of a process, and what a CPU takes
LEAST_CAPABILITY = 7  # of a GPU for Triton, which torch.compile writes
ANY_GPU = ("auto", "gpu", "cuda", "mps")

Section = TypeVar("Section", TrainConfig, PredictConfig)


@dataclass(frozen=True)
class Machine:
    """What one process of a run has.

    Attributes:
        kind: torch's name of its device: `cuda`, `cpu`, `mps`.
        processes: of the run, each with a device of its own.
        nodes: machines, that have equally many of them.
    """

    kind: str
    processes: int = 1
    nodes: int = 1

    @property
    def words(self) -> str:
        if self.kind == "cuda":
            name = torch.cuda.get_device_name(0)
            return f"these {self.processes} {name}" if self.processes > 1 else f"this {name}"
        return f"this {self.kind.upper()} of {cores()} cores"

    @property
    def gib(self) -> float:
        """Of a GPU's memory; 0 where there is none."""
        return torch.cuda.get_device_properties(0).total_memory / 2**30 if self.kind == "cuda" else 0.0

    def precision(self) -> tuple[str, str]:
        """`bf16`, `16` or `32`, and why."""
        if self.kind != "cuda":
            return "32", ""
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "") if has_it else ("16", "this GPU has no bf16")

    def compiles(self) -> tuple[bool, str]:
        """Whether torch.compile is worth its time here, and why not."""
        if self.kind != "cuda":
            return False, ""
        if torch.cuda.get_device_capability(0)[0] < LEAST_CAPABILITY:
            return False, "Triton has no kernels for this GPU"
        missing = [
            *(["Triton"] if find_spec("triton") is None else []),
            *(["a C compiler"] if shutil.which(os.environ.get("CC", "gcc")) is None else []),
            *(["a C++ compiler"] if shutil.which(os.environ.get("CXX", "g++")) is None else []),
            *(["Python.h"] if not (Path(sysconfig.get_path("include")) / "Python.h").is_file() else []),
        ]
        return not missing, f"there is no {', no '.join(missing)}" if missing else ""

    def readers(self) -> int:
        """Processes that read training pictures for one that computes; SLURM gives each of its tasks its own cores."""
        if self.kind == "cuda":
            share = cores() if "SLURM_PROCID" in os.environ else cores() // (self.processes // self.nodes)
            return min(MOST_READERS, max(1, share - 1))
        return min(READERS_BESIDE_A_CPU, cores())

    def trained_rows(self) -> int:
        """Rows of a batch of one process."""
        together = next(rows for least, rows in TRAINED_ROWS if self.gib >= least)
        return max(LEAST_ROWS, together // self.processes)

    def captioned_pictures(self) -> int:
        """Pictures that one process captions together."""
        return next(pictures for least, pictures in CAPTIONED_PICTURES if self.gib >= least)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_of(trainer: TrainerConfig) -> Machine:
    """What Lightning will take."""
    name = trainer.accelerator
    if name in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        number = _number(trainer.devices)
        return Machine("cuda", number * trainer.num_nodes, trainer.num_nodes)
    return Machine("mps" if name in ANY_GPU and torch.backends.mps.is_available() else "cpu")


def _number(devices: int | str | list[int]) -> int:
    """Of GPUs of this machine, as Lightning understands it: auto, -1, 2, `0,3`, [0, 3]."""
    if isinstance(devices, list):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return torch.cuda.device_count()
    return int(devices) if str(devices).isdigit() else len(str(devices).split(","))


def for_training(config: TrainConfig, before: Mapping[str, Any]) -> TrainConfig:
    """The configuration without `auto`.

    Args:
        config: as it was given.
        before: the settings in the checkpoint that the run goes on from, by dotted key. Its rows of a batch stay, for
            the rest of an epoch and the rates depend on them. Its precision does not: weights and the optimizer's sums
            are in fp32 whatever is multiplied in.
    """
    machine, chosen = machine_of(config.trainer), _Chosen()
    name, why = machine.precision()
    name = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}[name]
    was = before.get("trainer.precision", name)
    trainer = chosen.of(config.trainer, "trainer.", precision=(name, why if was == name else f"until now {was}"))
    model = chosen.of(config.model, "model.", compile=machine.compiles())
    if model is not config.model and getattr(model, "compile", False):
        torch._dynamo.config.suppress_errors = True  # with a warning: what was not asked for must not end a run
    rows = before.get("data.batch_size", machine.trained_rows())
    data = chosen.of(config.data, "data.", batch_size=(rows, ""), num_workers=(machine.readers(), ""))
    chosen.say(machine)
    _warn_of_readers("data.num_workers", getattr(data, "num_workers", 0))
    switch_torch(machine.kind)
    return config.model_copy(update={"trainer": trainer, "model": model, "data": data})


def packed_multiple(config: TrainConfig) -> int:
    """What the packed length of a batch is a multiple of: few lengths to compile for, and aligned rows for a GPU."""
    compiles = getattr(config.model, "compile", False)
    return PACKED_MULTIPLE if compiles or machine_of(config.trainer).kind == "cuda" else 1


def data_for_one_process(data: Data) -> Data:
    """A data set's section without `auto`, where it is not trained on."""
    machine = Machine("cpu")
    return _Chosen().of(data, "data.", batch_size=(machine.trained_rows(), ""), num_workers=(machine.readers(), ""))


def for_prediction(config: PredictConfig) -> tuple[PredictConfig, list[torch.device]]:
    """The configuration without `auto`, and the device of each process."""
    devices = chosen_devices(config.device, config.trainer.devices)
    machine, chosen = Machine(devices[0].type, len(devices)), _Chosen()
    name, why = machine.precision()
    readers = reading_processes(devices[0])
    settled = chosen.of(
        config,
        "",
        precision=(int(name) if name.isdigit() else name, why),
        batch_size=(machine.captioned_pictures(), ""),
        num_workers=(readers, ""),
    )
    chosen.say(machine)
    _warn_of_readers("num_workers", settled.num_workers)
    switch_torch(machine.kind)
    return settled, devices


def _warn_of_readers(key: str, readers: int) -> None:
    if readers > cores():
        log.warning("%s=%d is more than this machine's %d cores: they wait for each other", key, readers, cores())


class _Chosen:
    """What was put in the place of `auto`."""

    def __init__(self) -> None:
        self._said: list[str] = []

    def of(self, section: Any, prefix: str, **values: tuple[Any, str]) -> Any:
        """The section with these values, each with its reason, where it has `auto`."""
        here = {key: value for key, value in values.items() if getattr(section, key, None) == "auto"}
        self._said += [f"{prefix}{k}={str(v).lower()}" + (f" ({why})" if why else "") for k, (v, why) in here.items()]
        return section.model_copy(update={key: value for key, (value, _) in here.items()}) if here else section

    def say(self, machine: Machine) -> None:
        """One line."""
        also = ["the rest in TF32, attention without cuDNN's kernels"] if machine.kind == "cuda" else []
        if self._said or also:
            log.info("chosen for %s: %s", machine.words, ", ".join([*self._said, *also]))


def switch_torch(kind: str) -> None:
    """Torch's switches for a kind of device, of this process.

    On a GPU, what stays in fp32 is multiplied in TF32. cuDNN's attention is off: it plans anew for each new length,
    which took 0.4 s forward and 0.5 s backward (FunASR's issue 3704), and packed rows have 20 to 30 lengths. The flash
    kernel takes attention without a mask, the memory-efficient one that with our mask; both have no plans.
    """
    if kind == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_cudnn_sdp(False)


def chosen_device(name: str) -> torch.device:
    """The device of this name; `auto` takes a GPU if there is one.

    Raises:
        UserError: if this machine has no such device.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # "meta" has no values: nothing runs there
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:  # each from another kind of device
        raise UserError(f"device={name} is not available on this machine; device=auto takes what is") from error
    return device


def chosen_devices(name: str, processes: int | str) -> list[torch.device]:
    """A device for each of so many processes: on a CPU the same one, else the first so many of their kind.

    Args:
        name: as in `chosen_device`.
        processes: for `auto` as many as there are devices, and one where the device is a CPU or has a number.

    Raises:
        UserError: as `chosen_device`, or if there are not so many.
    """
    device = chosen_device(name)
    there = 1 if device.type == "cpu" else torch.accelerator.device_count()
    if processes == "auto":
        processes = 1 if ":" in name else there
    processes = int(processes)
    if processes == 1 or device.type == "cpu":
        return [device] * processes
    if processes > there or ":" in name:
        raise UserError(
            f"trainer.devices={processes} wants so many devices of a kind, and this machine has {there} of "
            f"device={name}; take fewer, or name the kind alone"
        )
    return [torch.device(device.type, index) for index in range(processes)]


def reading_processes(device: torch.device) -> int:
    """How many processes read pictures while the model captions others.

    Beside an accelerator, one a core. Where the model computes on the cores itself, none: it would wait for each of
    its threads that a reader has displaced, and is up to four times slower so (`benchmarks/prediction.py`).
    """
    return 0 if device.type == "cpu" else min(MOST_READERS, cores())
