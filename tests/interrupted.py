"""Ways to interrupt a run at an exact moment."""

import os
import signal
import sys
from pathlib import Path

import torch
from conftest import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from resume import differences  # noqa: E402, F401
from small_runs import composed  # noqa: E402

from captioning.training.run import train  # noqa: E402


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_a_worker(*_):
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    loading = [int(pid) for pid in children if "pt_data" in Path(f"/proc/{pid}/comm").read_text()]
    os.kill(loading[0], signal.SIGKILL)


def die_half_written(checkpoint, file):
    file.write(b"PK")
    file.flush()
    die()


def at_call(number, action, owner, name, replace=setattr):
    """Do something before a certain call of a function, counted from 1, with the call's own arguments."""
    original, calls = getattr(owner, name), []

    def replaced(*arguments, **named):
        calls.append(name)
        if len(calls) == number:
            action(*arguments)
        return original(*arguments, **named)

    replace(owner, name, replaced)


def forked(action) -> int:
    """The status of a process that does this and no more."""
    if (child := os.fork()) == 0:
        try:
            action()
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(70)
    return os.waitpid(child, 0)[1]


RENAMES = ("os.rename",)
CHANGES = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir")


def killed_before_change(action, folder, n, kinds=CHANGES) -> bool:
    """Do it in a process that is killed right before it changes a name in the folder for the n-th time, if ever."""
    changes = []

    def kill(event, arguments):
        if event not in kinds or not str(arguments[0]).startswith(str(folder)):
            return
        flags = arguments[2] if event == "open" else os.O_WRONLY
        if flags & os.O_ACCMODE and flags & os.O_TMPFILE != os.O_TMPFILE:  # which has no name
            changes.append(event)
            if len(changes) == n:
                die()

    def watched():
        signal.alarm(60)
        torch.set_num_threads(1)  # the threads of torch's pool stayed behind in the parent
        sys.addaudithook(kill)
        action()
        sys.exit(0)

    status = forked(watched)
    assert status in (0, signal.SIGKILL)
    return status != 0


def killed(run_dir, *moment, workers=0):
    """Train in a process that is killed at this moment, see `at_call`."""

    def action():
        at_call(*moment)
        train(composed(run_dir, f"data.num_workers={workers}"))

    status = forked(action)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
