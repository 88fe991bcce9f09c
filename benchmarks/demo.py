"""Runs the demo as a person would and holds its numbers against their bounds; status 1 if one is missed.

python benchmarks/demo.py [SEED]
"""

import csv
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
LONGEST_SECONDS = 180
HIGHEST_RATIO = 1.05  # of validation perplexity to its floor
LEAST_TRUE = 0.95  # of the captions of held-out pictures
PICTURES = 500


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


def main(seed: int) -> None:
    print(
        f"{os.cpu_count()} CPU cores, {platform.processor() or platform.machine()}; Python {platform.python_version()}"
    )
    print(f"torch {torch.__version__}, lightning {lightning.__version__}, transformers {transformers.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        run_dir, pictures, output = (Path(folder) / name for name in ("run", "pictures", "captions.jsonl"))
        start = time.perf_counter()
        run("train.py", "experiment=demo", "logger=csv", f"seed={seed}", f"run_dir={run_dir}")
        seconds = time.perf_counter() - start
        perplexity, floor = validation(run_dir)
        shapes = ("-m", "captioning.data.shapes")
        run(*shapes, "draw", str(pictures), "--split", "test", "--count", str(PICTURES), "--seed", str(seed))
        run("predict.py", f"checkpoint={run_dir}", f"input={pictures}", f"output={output}")
        verdict = run(*shapes, "judge", str(output)).splitlines()[0]
    counted = re.match(r"(\d+) of (\d+) captions are true", verdict)
    assert counted, verdict
    true = int(counted[1]) / int(counted[2])
    print(f"validation perplexity {perplexity:.4f}, floor {floor:.4f}")
    results = (
        ("seconds of train.py", seconds, f"<= {LONGEST_SECONDS}", seconds <= LONGEST_SECONDS),
        ("perplexity / floor", perplexity / floor, f"<= {HIGHEST_RATIO}", perplexity <= HIGHEST_RATIO * floor),
        ("part of captions true", true, f">= {LEAST_TRUE}", true >= LEAST_TRUE),
    )
    for name, value, bound, met in results:
        print(f"{name:24}{value:10.3f}   {bound:8} {'met' if met else 'MISSED'}")
    sys.exit(0 if all(met for *_, met in results) else 1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 42)
