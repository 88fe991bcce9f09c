"""What the benchmarks share: where they ran, interleaved timings, peak memory, tables, and what all.py gathers."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

GATHERED = "BENCHMARK_RATIOS"  # the environment variable that names the file in which benchmarks/all.py gathers ratios


class Ratio(NamedTuple):
    """One line of the table of `make bench`."""

    what: str
    ours: str  # with its unit
    beside: str  # the peer, or the bound, with what it reaches
    ratio: float
    wanted: str = ""  # such as ">= 2"; empty where nothing is held against it
    met: bool = True

    @property
    def verdict(self) -> str:
        return ("met" if self.met else "MISSED") if self.wanted else ""


def at_least(what: str, ours: str, beside: str, ratio: float, wanted: float | None) -> Ratio:
    """A ratio that has to reach `wanted`, where that is given."""
    if wanted is None:
        return Ratio(what, ours, beside, ratio)
    return Ratio(what, ours, beside, ratio, f">= {wanted:g}", ratio >= wanted)


def at_most(what: str, ours: str, beside: str, ratio: float, wanted: float) -> Ratio:
    """A ratio that must not go beyond `wanted`."""
    return Ratio(what, ours, beside, ratio, f"<= {wanted:g}", ratio <= wanted)


def publish(ratios: Sequence[Ratio]) -> int:
    """Hand the ratios to benchmarks/all.py, if that asked for them; 1 if one of them misses its bound."""
    if gathered := os.environ.get(GATHERED):
        with Path(gathered).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(ratio) + "\n" for ratio in ratios)
    return int(not all(ratio.met for ratio in ratios))


def ratio_table(ratios: Sequence[Ratio]) -> str:
    """What every benchmark ends with, and all of them together."""
    rows = [[r.what, r.ours, r.beside, f"{r.ratio:.3g}", r.wanted, r.verdict] for r in ratios]
    return table(["what", "ours", "beside", "ratio", "wanted", ""], rows)


# Of those that a processor has, what the speed of products depends on.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16")


def setting() -> str:
    """Hardware with its instruction sets, and versions, for the head of a report."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    has = [name for name in INSTRUCTIONS if name in text.split()] or ["instruction sets unknown"]
    return (
        f"{processor} ({', '.join(has)}), {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, "
        f"torch {torch.__version__}, lightning {version('lightning')}, transformers {transformers.__version__}"
    )


def interleaved_seconds(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each case; the cases take turns, after one unmeasured turn of all.

    What else the machine does then meets all of them alike. A case that returns a float has timed itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            own = case()
            if turn > 0:
                seconds[name].append(own if isinstance(own, float) else time.perf_counter() - start)
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def forget_peak() -> None:
    """Let `peak_bytes` count from now on, where the system can."""
    references = Path("/proc/self/clear_refs")
    if references.is_file():
        references.write_text("5")  # see proc(5)


def peak_bytes() -> int:
    """The most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would count the parent's memory before exec as ours
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well in a terminal."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
