"""Where the model runs, and in what precision."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from captioning.errors import UserError, require_whole
from captioning.model.captioner import ImageCaptioner
from captioning.model.cpu import with_int8_weights, with_packed_weights

MOST_READERS = 16
PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16, "int8": None}


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
        raise UserError(f"device={name} is not to be had on this machine; device=auto takes what there is") from error
    return device


def chosen_devices(name: str, processes: int) -> list[torch.device]:
    """A device for each of so many processes: on a CPU the same one, else the first so many of their kind.

    Raises:
        UserError: as `chosen_device`, or if there are not so many.
    """
    require_whole("trainer.devices", processes, 1)
    device = chosen_device(name)
    if processes == 1 or device.type == "cpu":
        return [device] * processes
    there = torch.accelerator.device_count()
    if processes > there or ":" in name:
        raise UserError(
            f"trainer.devices={processes} wants so many devices of a kind, and this machine has {there} of "
            f"device={name}; take fewer, or name the kind alone"
        )
    return [torch.device(device.type, index) for index in range(processes)]


def reading_processes(device: torch.device, wanted: int | str) -> int:
    """How many processes read pictures while the model computes: as many as wanted, or for `auto` as the device wants.

    Beside an accelerator, one a core. Where the model computes on the cores itself, none: it would wait for each of
    its threads that a reader has displaced, and is up to four times slower so (`benchmarks/prediction.py`).
    """
    if wanted != "auto":
        require_whole("num_workers", wanted, 0)
        return int(wanted)
    return 0 if device.type == "cpu" else min(MOST_READERS, os.cpu_count() or 1)


def autocast(device: torch.device, precision: str | int) -> AbstractContextManager:
    """The context in which a model runs at `precision`: 32, bf16, 16 or int8.

    Raises:
        UserError: if it is none of these, or int8 and the device or the build of torch has no int8 layers.
    """
    if str(precision) not in PRECISIONS:
        raise UserError(f"precision={precision} is none of {', '.join(PRECISIONS)}")
    if str(precision) == "int8" and device.type != "cpu":
        raise UserError(f"precision=int8 is for device=cpu alone; on device={device} take precision=bf16 or 16")
    if str(precision) == "int8" and not torch.backends.mkldnn.is_available():
        raise UserError("precision=int8 needs oneDNN, which this build of torch lacks; take precision=32")
    dtype = PRECISIONS[str(precision)]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def placed(captioner: ImageCaptioner, device: torch.device, precision: str | int) -> ImageCaptioner:
    """The captioner on its device, for inference only: on a CPU its linear layers are laid out anew."""
    captioner = captioner.to(device)
    if device.type != "cpu":
        return captioner
    relaid = {"32": with_packed_weights, "int8": with_int8_weights}.get(str(precision))
    return captioner if relaid is None else relaid(captioner)
