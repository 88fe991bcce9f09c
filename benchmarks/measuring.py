"""What the benchmarks share: where they ran, interleaved timings, peak memory, tables."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import lightning
import torch
import transformers


def setting() -> str:
    """Hardware and versions, for the head of a report."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":")[1].strip() if names else processor
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}, lightning {lightning.__version__}, transformers {transformers.__version__}"
    )


def interleaved_seconds(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each case; the cases take turns, after one unmeasured turn of all.

    What else the machine does then meets all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
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
