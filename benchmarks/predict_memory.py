"""How much memory does predict.py take for 1,000 pictures, and for 100,000?

python benchmarks/predict_memory.py [--small] [--pictures N]

Pictures of 8 x 8 pixels, each a file of its own, captioned by a very small captioner. What a picture costs beyond its
batch is its path and a number: the peak of resident memory (VmHWM) says how much that is. --small: 5,000 pictures.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import at_most, publish, ratio_table, setting, table
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FEW, MANY, SMALL = 1_000, 100_000, 5_000
MOST = 1.1  # times the peak for few
RUN = (
    *("data=shapes", "model=tiny", "stage=full", "trainer=cpu", "logger=csv", "trainer.max_epochs=1"),
    *("data.train_pictures=16", "data.val_pictures=4", "data.test_pictures=2", "data.batch_size=4"),
    *("model.image_size=16", "model.patch_size=8", "model.encoder_width=16", "model.encoder_layers=1"),
    *("model.encoder_heads=2", "model.decoder_width=16", "model.decoder_layers=1", "model.decoder_heads=2"),
    *("sample_pictures=0", "scores.pictures=0", "trainer.enable_progress_bar=false"),
)
PREDICTION = ("batch_size=256", "decoding.max_new_tokens=2")


def main() -> int:
    """Caption both folders, and compare."""
    parser = argparse.ArgumentParser(description="memory of a large prediction")
    parser.add_argument("--small", action="store_true", help=f"{SMALL} pictures")
    parser.add_argument("--pictures", type=int)
    arguments = parser.parse_args()
    many = arguments.pictures or (SMALL if arguments.small else MANY)
    print(f"{setting()}\n")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        training = [sys.executable, str(ROOT / "train.py"), *RUN, f"run_dir={run}"]
        subprocess.run(training, check=True, capture_output=True)
        figures = {count: peak_and_seconds(Path(folder), run, count) for count in (FEW, many)}
    rows = [[f"{count:,}", f"{peak:.0f}", f"{seconds:.0f}"] for count, (peak, seconds) in figures.items()]
    print(table(["pictures", "peak RSS, MB", "seconds"], rows))
    few_mb, many_mb = figures[FEW][0], figures[many][0]
    what = f"peak RSS for {many:,} pictures, beside {FEW:,}"
    ratio = at_most(what, f"{many_mb:.0f} MB", f"{few_mb:.0f} MB", many_mb / few_mb, MOST)
    print(f"\neach further picture: {(many_mb - few_mb) * 1e6 / (many - FEW):.0f} bytes")
    print(f"\n{ratio_table([ratio])}")
    return publish([ratio])


def peak_and_seconds(folder: Path, run: Path, count: int) -> tuple[float, float]:
    """Of the process that captions so many pictures: its peak in MB, and how long it took."""
    pictures = folder / f"pictures-{count}"
    draw(pictures, count)
    output = folder / f"{count}.jsonl"
    given = (f"checkpoint={run}", f"input={pictures}", f"output={output}", *PREDICTION)
    command = [sys.executable, str(ROOT / "predict.py"), *given]
    start, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peaks = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
        peak = max([peak, *(kilobytes / 1000 for kilobytes in peaks)])
        time.sleep(0.2)
    assert process.returncode == 0
    with output.open() as file:
        assert sum(1 for _ in file) == count
    return peak, time.perf_counter() - start


def draw(folder: Path, count: int) -> None:
    """So many files of noise."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png", compress_level=1)


if __name__ == "__main__":
    sys.exit(main())
