"""How fast is captioning on this machine's GPU, beside what the GPU can do and beside transformers?

python3 benchmarks/gpu.py [--budget SECONDS] [--out DIR] [--phases a,b] [--small]

One run of a few minutes, no data, no network. Rows are printed as they come; `DIR/result.json` and `DIR/result.md` are
written anew after each phase, and what was cut short, failed or had no time left is named there. `--phases` runs some
of them: the other phases that `DIR/result.json` has are kept. `--small` runs all of them tiny, also on a CPU: its
figures mean nothing.

    card         name, copy bandwidth, matrix products at our shapes
    correctness  hidden states and gradients against transformers in fp32; and that the check can fail
    training     a step on pictures that lie on the GPU: three stages, batches of 64 and 256, number formats, the peer
    profile      the kernels of a step and of greedy decoding, and where the host waits for the GPU
    generation   greedy and beam search, and transformers' generate; also with captions that end early
    loop         train.py on drawn pictures and on JPEGs, from files and from packs; the loader alone; a checkpoint
    predict      predict.py on JPEGs
    lengths      steps at packed lengths that are met for the first time, and again
    graphs       generation captured as CUDA graphs, where the package does that
    compile      a step with model.compile=true

Weights are random; ViT-B/16 at 224 pixels and GPT-2 small, five captions a picture of COCO's lengths. A step is
forward, backward, clipping and AdamW; the peer is `VisionEncoderDecoderModel` with one caption a row. Phases that can
spoil a process (graphs, compile, lengths, and those that run the commands) have one of their own.

torch and transformers are enough, save for `loop` and `predict`, which run train.py and predict.py and so need the
rest of what pyproject.toml lists. Where a machine with a GPU has no network, carry what it lacks as wheels of 1.2 MB
(--python-version is that machine's):

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d wheels \\
        hydra-core omegaconf simplejpeg pycocotools
    pip wheel --no-deps -w wheels antlr4-python3-runtime==4.9.3     # it comes as source alone
    pip install --no-index --no-deps --target site wheels/*.whl     # there; then PYTHONPATH=site
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from on_gpu.captions import generation, graphs
from on_gpu.commands import loop, predicting, write_files
from on_gpu.model import card, compiled, correctness, lengths, training
from on_gpu.package import COMMANDS_NEED, GRAPHS, ROOT
from on_gpu.profiling import profile
from on_gpu.work import Figures, Setting, forget


@dataclass(frozen=True)
class Phase:
    """Its rows, the most seconds that it may take, whether it has a process of its own, and what it needs."""

    rows: Callable[[Setting], Figures]
    most: float
    own_process: bool = False
    needs: tuple[str, ...] = ()


PHASES = {
    "card": Phase(card, 20),
    "correctness": Phase(correctness, 40),
    "training": Phase(training, 80),
    "profile": Phase(profile, 40),
    "generation": Phase(generation, 80),
    "loop": Phase(loop, 150, own_process=True, needs=COMMANDS_NEED),
    "predict": Phase(predicting, 75, own_process=True, needs=COMMANDS_NEED),
    "lengths": Phase(lengths, 70, own_process=True),
    "graphs": Phase(graphs, 60, own_process=True, needs=(GRAPHS,)),
    "compile": Phase(compiled, 150, own_process=True),
}
LEAST = 5  # seconds under which no phase is begun
ROW = "row: "  # before a row that a process of a phase prints


class Overdue(BaseException):
    """A phase of this process has had its time; no `except Exception` stops it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=500, help="seconds for all of it (default 500)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks" / "gpu", help="folder of the results")
    parser.add_argument("--phases", default=",".join(PHASES), help="some of them, with commas between")
    parser.add_argument("--small", action="store_true", help="tiny, to try the script, also on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a process of its own: a phase, or the files
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of that process's files
    given = parser.parse_args()
    if given.small and given.device == "cpu":
        torch.set_num_threads(1)  # so small that more would wait for each other
    if given.one:
        one(given.one, Setting(given.small, given.folder, torch.device(given.device)))
        return 0
    if given.device == "cpu" and not given.small:
        sys.exit("there is no GPU here; name one with --device, or try the script with --small")
    chosen = given.phases.split(",")
    if unknown := set(chosen) - set(PHASES):
        sys.exit(f"there is no phase {', '.join(sorted(unknown))}; there are {', '.join(PHASES)}")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(given.small, Path(folder), torch.device(given.device))
        run = Run(setting, given.out, time.monotonic() + given.budget)
        run.all(chosen)
    return publish(run.result["phases"], chosen) if given.small else run.status


class Run:
    """The phases one after the other, and their result so far in a file."""

    def __init__(self, setting: Setting, out: Path, deadline: float):
        self.setting, self.out, self.deadline, self.status = setting, out, deadline, 0
        file = out / "result.json"
        before = json.loads(file.read_text())["phases"] if file.is_file() else {}
        self.result: dict[str, Any] = {"setting": versions(setting), "phases": before}

    def all(self, chosen: Sequence[str]) -> None:
        """Run them; the files that some need are written beside the first ones."""
        print(", ".join(f"{name} {value}" for name, value in self.result["setting"].items()), flush=True)
        writer = None
        if {"loop", "predict"} & set(chosen):
            environment = {**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
            with (self.out / "files.log").open("w") as log:
                command = [*self.command("files"), "--device", "cpu"]
                writer = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            for name in [name for name in PHASES if name in chosen]:
                self.result["phases"][name] = self.phase(name)
                self.save()
        finally:
            if writer and writer.poll() is None:
                writer.kill()
                writer.wait()

    def phase(self, name: str) -> dict[str, Any]:
        """Its rows, and how it ended."""
        phase, start = PHASES[name], time.monotonic()
        limit = min(phase.most, self.deadline - start)
        found: dict[str, Any] = {"state": "done", "rows": []}
        missing = [need for need in phase.needs if not is_there(need)]
        if missing:
            return self.told(name, {**found, "state": f"skipped: there is no {', '.join(missing)}"})
        if limit < LEAST:
            return self.told(name, {**found, "state": "skipped: no time was left"})
        print(f"\n{name}, at most {limit:.0f} s", flush=True)
        try:
            spoils = phase.own_process and not self.setting.small  # tiny ones spoil nothing, and imports cost seconds
            if spoils or phase.needs == COMMANDS_NEED:
                self.elsewhere(name, limit, found["rows"])
            else:
                self.here(phase, limit, found["rows"])
        except Overdue:
            found["state"] = f"cut short after {limit:.0f} s"
        except Exception as error:
            if not isinstance(error, ChildFailed):
                traceback.print_exc()
            found["state"] = f"failed: {type(error).__name__}: {error}"[:600]
        found["seconds"] = round(time.monotonic() - start, 1)
        forget(self.setting.device)
        return self.told(name, found)

    def told(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        print(f"{name}: {found['state']}, {found.get('seconds', 0)} s", flush=True)
        self.status |= found["state"].startswith(("failed", "cut"))
        return found

    def here(self, phase: Phase, limit: float, rows: list[dict[str, Any]]) -> None:
        """In this process, until an alarm."""

        def overdue(*_: object) -> None:
            raise Overdue

        before = signal.signal(signal.SIGALRM, overdue)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            for row in phase.rows(self.setting):
                rows.append(row)
                print(line(row), flush=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def elsewhere(self, name: str, limit: float, rows: list[dict[str, Any]]) -> None:
        """In a process of its own, which is killed in the end; what it says beside its rows goes to a file."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        log_path = self.out / f"{name}.log"
        with log_path.open("w") as log:
            command = [*self.command(name), "--device", str(self.setting.device)]
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
            )
            killed = False

            def kill(*_: object) -> None:
                nonlocal killed
                killed = True
                os.killpg(child.pid, signal.SIGKILL)

            before = signal.signal(signal.SIGALRM, kill)
            signal.setitimer(signal.ITIMER_REAL, limit)
            try:
                assert child.stdout
                for said in child.stdout:
                    if said.startswith(ROW):
                        rows.append(json.loads(said.removeprefix(ROW)))
                        print(line(rows[-1]), flush=True)
                child.wait()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        if killed:
            raise Overdue
        if child.returncode:
            end = log_path.read_text(errors="replace").strip().splitlines()[-12:]
            print("\n".join(end), flush=True)
            raise ChildFailed(f"status {child.returncode}: {end[-1] if end else 'nothing was said'}")

    def command(self, name: str) -> list[str]:
        small = ["--small"] if self.setting.small else []
        return [sys.executable, __file__, "--one", name, "--folder", str(self.setting.folder), *small]

    def save(self) -> None:
        """Both files, each whole or as it was."""
        for name, text in (("result.json", json.dumps(self.result, indent=1)), ("result.md", tables(self.result))):
            passing = self.out / f".{name}.tmp"
            passing.write_text(text, encoding="utf-8")
            passing.replace(self.out / name)


class ChildFailed(RuntimeError):
    """The process of a phase ended with another status than 0."""


def one(name: str, setting: Setting) -> None:
    """A phase in this process, its rows as lines."""
    if name == "files":
        write_files(setting)
        return
    for row in PHASES[name].rows(setting):
        print(f"\n{ROW}{json.dumps(row)}", flush=True)


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package
        return False


def versions(setting: Setting) -> dict[str, str]:
    """For the head of a report."""
    device = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else platform.processor()
    told = {"device": device or platform.machine(), "cores": str(os.cpu_count()), "Python": platform.python_version()}
    told |= {"torch": torch.__version__, "transformers": transformers.__version__}
    told |= {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "size": "tiny" if setting.small else "full"}
    return told


def number(value: Any) -> str:
    """Four digits, or as it is.

    >>> number(1234.5), number(0.012345), number(None), number("H200")
    ('1,234', '0.01234', '', 'H200')
    """
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    beside = "".join(f"  {name} {number(row[name])}" for name in ("predicted", "goal") if row[name] is not None)
    return f"  {row['what']:58} {number(row['value']):>9} {row['unit']:12}{beside}  {details(row)}"


def details(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in {**row["more"], **row.get("note", {})}.items())


def tables(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    parts = [", ".join(f"{name} {value}" for name, value in result["setting"].items()) + "."]
    for name in [name for name in PHASES if name in result["phases"]]:
        phase = result["phases"][name]
        parts.append(f"## {name}\n\n{phase['state']}, {phase.get('seconds', 0)} s")
        if phase["rows"]:
            head = "| what | measured | unit | predicted | goal | more |\n|---|---:|---|---:|---:|---|"
            cells = (
                [r["what"], number(r["value"]), r["unit"], number(r["predicted"]), number(r["goal"]), details(r)]
                for r in phase["rows"]
            )
            parts.append(
                "\n".join([head, *("| " + " | ".join(c.replace("|", "/") for c in row) + " |" for row in cells)])
            )
    return "\n\n".join(parts) + "\n"


def publish(phases: dict[str, Any], chosen: Sequence[str]) -> int:
    """What `make bench` shows of a small run: how many phases came to their end."""
    import measuring

    whole = [
        name for name in chosen if phases[name]["state"] == "done" or "skipped: there is no" in phases[name]["state"]
    ]
    ran = [name for name in whole if phases[name]["state"] == "done"]
    rest = f"of {len(chosen)}; {len(whole) - len(ran)} lack what they need"
    ratio = measuring.at_least("gpu.py, its phases, small", f"{len(ran)} ran", rest, len(whole) / len(chosen), 1)
    print(measuring.ratio_table([ratio]))
    return measuring.publish([ratio])


if __name__ == "__main__":
    sys.exit(main())
