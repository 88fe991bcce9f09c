"""A process of benchmarks/gpu.py: runs the phases that it reads the names of, and says their rows."""

import argparse
import importlib
import json
import os
import platform
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu import MESSAGE, PHASES

from on_gpu.work import Setting, forget


def say(**message: Any) -> None:
    print(f"\n{MESSAGE}{json.dumps(message)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if given.small and device.type == "cpu":
        torch.set_num_threads(1)  # so small that more would wait for each other
    setting = Setting(given.small, given.folder, device)
    say(setting=versions(setting))
    for name in map(str.strip, sys.stdin):
        try:
            module, function = PHASES[name].rows.split(".")  # imported late: some need more than others
            for row in getattr(importlib.import_module(f"on_gpu.{module}"), function)(setting):
                say(row=row | {"predicted": None, "goal": None} if given.small else row)  # those are of full size
        except Exception as error:
            traceback.print_exc()
            say(state=f"failed: {type(error).__name__}: {error}"[:600])
        else:
            say(state="done")
        forget(device)


def versions(setting: Setting) -> dict[str, str]:
    """For the head of a report."""
    kind = setting.device.type
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    found = {"on": kind, "device": name, "cores": str(os.cpu_count()), "Python": platform.python_version()}
    found |= {"torch": torch.__version__, "transformers": transformers.__version__}
    return found | {"date": f"{datetime.now(UTC):%Y-%m-%d}", "size": "tiny" if setting.small else "full"}


if __name__ == "__main__":
    main()
