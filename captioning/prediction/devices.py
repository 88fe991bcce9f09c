"""Where the model runs, and in what precision."""

from contextlib import AbstractContextManager, nullcontext

import torch

from captioning.errors import UserError

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


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


def autocast(device: torch.device, precision: str | int) -> AbstractContextManager:
    """The context in which a model runs at `precision`: 32, bf16 or 16."""
    if str(precision) not in PRECISIONS:
        raise UserError(f"precision={precision} is none of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[str(precision)]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
