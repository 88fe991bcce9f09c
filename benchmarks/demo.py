"""Runs the demo as a person would and holds its numbers against their bounds; status 1 if one is missed.

python benchmarks/demo.py [--small] [--seed SEED]

The captions of 500 held-out pictures are judged, once made in fp32 and once in int8. --small judges 100.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import at_least, at_most, publish, ratio_table, setting

ROOT = Path(__file__).resolve().parents[1]
LONGEST_SECONDS = 120
HIGHEST_RATIO = 1.045  # of validation perplexity to its floor
LEAST_TRUE = 0.95  # of the captions of held-out pictures


def run(*arguments: str) -> str:
    """One Python command in the project's root; its standard output. A failure ends the benchmark."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"python {' '.join(arguments)} ended with status {done.returncode}")
    return done.stdout


def validation(run_dir: Path) -> tuple[float, float]:
    """The best validation perplexity of a run, and its floor."""
    with (run_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["val/perplexity"]]
    best = min(rows, key=lambda row: float(row["val/perplexity"]))
    return float(best["val/perplexity"]), float(best["val/perplexity_floor"])


def part_true(run_dir: Path, pictures: Path, precision: str) -> float:
    """The part of the pictures whose greedy caption is true."""
    output = run_dir / f"captions-{precision}.jsonl"
    run("predict.py", f"checkpoint={run_dir}", f"input={pictures}", f"output={output}", f"precision={precision}")
    verdict = run("-m", "captioning.shapes", "judge", str(output)).splitlines()[0]
    counted = re.match(r"(\d+) of (\d+) captions are true", verdict)
    assert counted, verdict
    return int(counted[1]) / int(counted[2])


def main(seed: int, count: int) -> int:
    """Train, caption, judge; 1 if a bound is missed."""
    print(f"{setting()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run_dir, pictures = Path(folder) / "run", Path(folder) / "pictures"
        start = time.perf_counter()
        run("train.py", "experiment=demo", "logger=csv", f"seed={seed}", f"run_dir={run_dir}")
        seconds = time.perf_counter() - start
        perplexity, floor = validation(run_dir)
        drawn = ("draw", str(pictures), "--split", "test", "--count", str(count), "--seed", str(seed))
        run("-m", "captioning.shapes", *drawn)
        true, true_int8 = (part_true(run_dir, pictures, precision) for precision in ("32", "int8"))
    judged = f"of {count} captions"
    results = (
        at_most("demo: seconds", f"{seconds:.0f} s", f"{LONGEST_SECONDS} s", seconds / LONGEST_SECONDS, 1),
        at_most("demo: perplexity", f"{perplexity:.4f}", f"floor {floor:.4f}", perplexity / floor, HIGHEST_RATIO),
        at_least("demo: true captions", f"{true:.1%} {judged}", "all", true, LEAST_TRUE),
        at_least("demo: true captions in int8", f"{true_int8:.1%} {judged}", "all", true_int8, LEAST_TRUE),
    )
    print(ratio_table(results))
    return publish(results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="judge 100 pictures, not 500")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    sys.exit(main(given.seed, 100 if given.small else 500))
