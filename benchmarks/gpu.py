"""How fast is captioning on this machine's GPU, beside what the GPU can do and beside transformers?

python3 benchmarks/gpu.py [--budget SECONDS] [--out DIR] [--phases a,b] [--small]

One run of a few minutes, no data, no network. Rows are printed as they come; `DIR/result.json` and `DIR/result.md` are
written anew after each phase, and name what was cut short, failed or skipped. `--phases` runs some of them: the other
phases that `DIR/result.json` has are kept. `--small` runs all of them tiny, also on a CPU: its figures mean nothing.

    card         name, copy bandwidth, matrix products at our shapes
    correctness  hidden states and gradients against transformers in fp32; and that the check can fail
    training     a step on pictures that lie on the GPU: three stages, batches of 64 and 256, number formats, the peer
    profile      the kernels of a step and of greedy decoding, and where the host waits for the GPU
    generation   greedy and beam search, and transformers' generate; also with captions that end early
    loop         train.py on drawn pictures and on JPEGs, from files and from packs; the loader alone; a checkpoint
    predict      predict.py on JPEGs
    lengths      steps at packed lengths that are met for the first time, and again
    graphs       generation captured as CUDA graphs
    compile      a step with model.compile=true

Weights are random; ViT-B/16 at 224 pixels and GPT-2 small, five captions a picture of COCO's lengths. A step is
forward, backward, clipping and AdamW; the peer is `VisionEncoderDecoderModel` with one caption a row. Phases that leave
something behind (loop, predict, lengths, graphs, compile) have a process of their own; a process in which a phase
failed or was cut short is not used again.

All phases need torch, transformers, Lightning, pydantic and OmegaConf with antlr4; those that run or use the commands
(loop, predict, compile) also Hydra, torchvision, simplejpeg, pycocotools and matplotlib. Where a machine with a GPU has
no network, carry what it lacks as wheels of 4 MB (--python-version is that machine's; versions as in constraints.txt:
Hydra 1.3 takes no OmegaConf 2.4):

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 -d wheels \\
        -c constraints.txt hydra-core omegaconf simplejpeg pycocotools pydantic pydantic-core annotated-types \\
        typing-inspection
    pip wheel --no-deps -w wheels antlr4-python3-runtime==4.9.3     # it comes as source alone
    pip install --no-index --no-deps --target site wheels/*.whl     # there; then PYTHONPATH=site
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MESSAGE = "gpu.py: "  # before each line of a process of phases that is meant for this one
LEAST = 5  # seconds under which no phase is begun
ALWAYS = ("torch", "transformers", "lightning", "pydantic", "omegaconf", "antlr4")
COMMANDS = ("hydra", "simplejpeg", "pycocotools", "matplotlib", "torchvision")


@dataclass(frozen=True)
class Phase:
    """The function of on_gpu/ that yields its rows, and the most seconds, its process's start included.

    Attributes:
        alone: whether it has a process of its own.
        files: whether it reads what on_gpu/files.py writes.
        needs: modules beside those that all need.
    """

    rows: str
    most: float
    alone: bool = False
    files: bool = False
    needs: tuple[str, ...] = ()


PHASES = {
    "card": Phase("model.card", 40),
    "correctness": Phase("model.correctness", 40),
    "training": Phase("model.training", 80),
    "profile": Phase("profiling.profile", 40),
    "generation": Phase("captions.generation", 80),
    "loop": Phase("commands.loop", 150, alone=True, files=True, needs=COMMANDS),
    "predict": Phase("commands.predicting", 75, alone=True, files=True, needs=COMMANDS),
    "lengths": Phase("model.lengths", 70, alone=True),
    "graphs": Phase("captions.graphs", 75, alone=True),
    "compile": Phase("commands.compiled", 150, alone=True, files=True, needs=COMMANDS),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=500, help="seconds for all of it (default 500)")
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs/benchmarks/gpu", help="folder of the results")
    parser.add_argument("--phases", default=",".join(PHASES), help="some of them, with commas between")
    parser.add_argument("--small", action="store_true", help="tiny, to try the script, also on a CPU")
    given = parser.parse_args()
    chosen = given.phases.split(",")
    if unknown := set(chosen) - set(PHASES):
        sys.exit(f"there is no phase {', '.join(sorted(unknown))}; there are {', '.join(PHASES)}")
    if missing := lacking(ALWAYS):
        sys.exit(f"{', '.join(missing)} cannot be imported; the head of {Path(__file__).name} says how to carry it")
    given.out.mkdir(parents=True, exist_ok=True)
    for log in given.out.glob("*.log"):
        log.unlink()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(given.out, folder, given.small, time.monotonic() + given.budget)
        run.all([name for name in PHASES if name in chosen])
    phases = {name: run.result["phases"][name]["state"] for name in chosen}
    return publish(phases) if given.small else int(any(s.startswith(("failed", "cut")) for s in phases.values()))


class Run:
    """The phases one after the other, and their result so far in files."""

    def __init__(self, out: Path, folder: str, small: bool, deadline: float):
        self.out, self.small, self.deadline = out, small, deadline
        self.arguments = [folder, *(["--small"] if small else [])]
        self.worker: subprocess.Popen[str] | None = None
        self.files: subprocess.Popen[str] | None = None
        before = out / "result.json"
        phases = json.loads(before.read_text())["phases"] if before.is_file() else {}
        self.result: dict[str, Any] = {"setting": {}, "phases": phases}

    def all(self, chosen: Sequence[str]) -> None:
        """Run them; the files that some read are written beside the first ones."""
        if any(PHASES[name].files and not lacking(PHASES[name].needs) for name in chosen):
            self.files = self.started("files", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="2")
        try:
            for name in chosen:
                start = time.monotonic()
                rows: list[dict[str, Any]] = []
                state, seconds = self.phase(name, rows), round(time.monotonic() - start, 1)
                print(f"{name}: {state}, {seconds} s", flush=True)
                self.result["phases"][name] = {"state": state, "seconds": seconds, "rows": rows}
                self.save()
        finally:
            kill(self.worker)
            kill(self.files)

    def phase(self, name: str, rows: list[dict[str, Any]]) -> str:
        """Add its rows; how it ended."""
        phase, limit = PHASES[name], min(PHASES[name].most, self.deadline - time.monotonic())
        if missing := lacking(phase.needs):
            return f"skipped: there is no {', '.join(missing)}"
        if limit < LEAST:
            return "skipped: no time was left"
        print(f"\n{name}, at most {limit:.0f} s", flush=True)
        alone, end = phase.alone and not self.small, time.monotonic() + limit  # tiny ones leave little behind
        if phase.files and self.files:
            try:
                if status := self.files.wait(limit):
                    return f"failed: its files were not written, status {status}: see {self.out / 'files.log'}"
            except subprocess.TimeoutExpired:
                return f"cut short after {limit:.0f} s: its files were not written"
        if alone or not self.worker:
            kill(self.worker)
            self.worker = self.started("worker")
        timer = threading.Timer(end - time.monotonic(), kill, [self.worker])
        timer.start()
        try:
            state = self.followed(self.worker, name, rows)
        finally:
            timer.cancel()
        if state is None:
            what = f"cut short after {limit:.0f} s" if time.monotonic() >= end else "failed: its process ended"
            state = f"{what}; see {self.out / 'worker.log'}"
        if alone or state != "done":
            kill(self.worker)
            self.worker = None
        return state

    def followed(self, worker: subprocess.Popen[str], name: str, rows: list[dict[str, Any]]) -> str | None:
        """Have a phase run, and show its rows as they come; its end, or None where its process has ended."""
        assert worker.stdin
        with contextlib.suppress(BrokenPipeError):
            print(name, file=worker.stdin, flush=True)
        for what, value in messages(worker):
            if what == "setting":
                if not self.result["setting"]:
                    print(said(value), flush=True)
                self.result["setting"] = value
                if value["on"] == "cpu" and not self.small:
                    sys.exit("torch finds no GPU here; try the script with --small")
            elif what == "row":
                rows.append(value)
                print(line(value), flush=True)
            else:
                return str(value)
        return None

    def started(self, module: str, **environment: str) -> subprocess.Popen[str]:
        """A process of on_gpu/, in a group of its own; what it says beside its messages goes to a file."""
        paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        with (self.out / f"{module}.log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"on_gpu.{module}", *self.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if module == "worker" else log,
                stderr=log,
                text=True,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def save(self) -> None:
        """Both files, each whole or as it was."""
        for name, text in (("result.json", json.dumps(self.result, indent=1)), ("result.md", tables(self.result))):
            passing = self.out / f".{name}.tmp"
            passing.write_text(text, encoding="utf-8")
            passing.replace(self.out / name)


def messages(worker: subprocess.Popen[str]) -> Iterator[tuple[str, Any]]:
    """Of a process of phases, until it ends."""
    assert worker.stdout
    for text in worker.stdout:
        if text.startswith(MESSAGE):
            yield from json.loads(text.removeprefix(MESSAGE)).items()


def kill(process: subprocess.Popen[str] | None) -> None:
    """It and all that it has started."""
    if process:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def lacking(needs: Sequence[str]) -> list[str]:
    """Those modules that are not there."""
    return [need for need in needs if not importlib.util.find_spec(need)]


def number(value: Any) -> str:
    """Four digits, or as it is.

    >>> number(1234.5), number(0.012345), number(None), number("H200")
    ('1,234', '0.01234', '', 'H200')
    """
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def said(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    beside = "".join(f"  {name} {number(row[name])}" for name in ("predicted", "goal") if row[name] is not None)
    return f"  {row['what']:58} {number(row['value']):>9} {row['unit']:12}{beside}  {said(row['more'])}"


def tables(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    parts = [f"{said(result['setting'])}."]
    for name in [name for name in PHASES if name in result["phases"]]:
        phase = result["phases"][name]
        parts.append(f"## {name}\n\n{phase['state']}, {phase['seconds']} s")
        cells = (
            [r["what"], number(r["value"]), r["unit"], number(r["predicted"]), number(r["goal"]), said(r["more"])]
            for r in phase["rows"]
        )
        body = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in cells]
        head = "| what | measured | unit | predicted | goal | more |\n|---|---:|---|---:|---:|---|"
        parts += ["\n".join([head, *body])] if body else []
    return "\n\n".join(parts) + "\n"


def publish(phases: dict[str, str]) -> int:
    """What `make bench` shows of a small run: how many phases came to their end."""
    import measuring  # and torch with it, which takes seconds

    ran = [name for name, state in phases.items() if state == "done"]
    skipped = [name for name, state in phases.items() if state.startswith("skipped: there is no")]
    beside = f"of {len(phases)}" + (f"; skipped: {', '.join(skipped)}" if skipped else "")
    share = (len(ran) + len(skipped)) / len(phases)
    ratio = measuring.at_least("gpu.py, its phases, small", f"{len(ran)} ran", beside, share, 1)
    print(measuring.ratio_table([ratio]))
    return measuring.publish([ratio])


if __name__ == "__main__":
    sys.exit(main())
