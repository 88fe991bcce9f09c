"""Runs every benchmark small and prints one table of their ratios: what `make bench` does.

python benchmarks/all.py [NAME ...]

NAME is a script's, without `.py`. One after the other, since each wants the machine for itself; what they print goes
to runs/benchmarks/NAME.txt. Status 1 if one fails or misses a bound. Small runs are quick and rough: the figures of
RESULTS.md come from the full ones.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import GATHERED, Ratio, ratio_table, setting

HERE = Path(__file__).resolve().parent
REPORTS = HERE.parent / "runs" / "benchmarks"
NAMES = (
    *("start", "demo", "training_step", "packing_quality", "loop_overhead"),
    *("generation", "graphs", "prediction", "pictures", "shards", "loader_memory", "scores", "gpu"),
)


def main(names: list[str]) -> int:
    """Run them, then print the table."""
    if unknown := set(names) - set(NAMES):
        print(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 1
    REPORTS.mkdir(parents=True, exist_ok=True)
    print(f"{setting()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        gathered = Path(folder) / "ratios.jsonl"
        gathered.touch()
        statuses = [run(name, gathered) for name in names or NAMES]
        ratios = [Ratio(*json.loads(line)) for line in gathered.read_text(encoding="utf-8").splitlines()]
    print(f"\n{ratio_table(ratios)}")
    return int(any(statuses))


def run(name: str, gathered: Path) -> int:
    """One benchmark; its status."""
    print(f"{name:16} ", end="", flush=True)
    start, report = time.perf_counter(), REPORTS / f"{name}.txt"
    with report.open("w", encoding="utf-8") as file:
        command = [sys.executable, str(HERE / f"{name}.py"), "--small"]
        environment = {**os.environ, GATHERED: str(gathered)}
        status = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    verdict = "" if status == 0 else f", status {status}: see {os.path.relpath(report)}"
    print(f"{time.perf_counter() - start:4.0f} s{verdict}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
