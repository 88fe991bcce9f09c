"""How near does engine=ray come to engine=local on this machine, what does it take to start, and does its driver grow?

python benchmarks/scale.py [--small] [--turns 3] [--keys 1000,1000000]

Speed: tars of drawn JPEGs of 640 x 480 pixels, greedy captions of at most 20 tokens, batches of 16, random weights at
full size (--small: a small one). Each engine is a process of its own, on the same cores, and they take turns. Pictures
a second are counted from the first rows to the last, so without the start; the median of an engine's turns counts.

Memory: rows of made-up pictures, 10,000 a part, read and "captioned" by a model of one layer on Ray; the most memory of
the process that drives it, which is to be the same for a thousand keys and for a million.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from measuring import at_least, at_most, peak_bytes, publish, ratio_table, setting
from pictures import draw
from PIL import Image
from prediction import CHECKPOINT, prepare
from training_step import FULL, SMALL

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from captioning.cli import configured
from captioning.config import PredictConfig
from captioning.data.records import Texts
from captioning.prediction import run
from captioning.prediction.parts import Part, PartFiles, Reading
from captioning.prediction.plan import planned

ONE_LAYER = {"width": 16, "layers": 1, "heads": 1, "image_size": 32, "vocab_size": 300}
A_PART = 10_000


def tars(folder: Path, shards: int, pictures: int) -> None:
    """Drawn JPEGs."""
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * pictures, (shard + 1) * pictures):
                draw(folder / "one.jpg", number)
                tar.add(folder / "one.jpg", f"{number:09d}.jpg")
    (folder / "one.jpg").unlink()


def measured(folder: Path, engine: str) -> dict[str, float]:
    """Of this process: seconds until the first rows are there, and pictures a second from then on."""
    usual = [f"checkpoint={folder / CHECKPOINT}", f"input={folder}", f"output={folder / engine}/", f"engine={engine}"]
    given = ["decoding.max_new_tokens=20", "batch_size=16", "device=cpu", "overwrite=true"]
    config = configured(PredictConfig, *usual, *given)
    start, add, came = time.perf_counter(), PartFiles.add, list[tuple[float, int]]()

    def timed(files: PartFiles, part: Part, total: int, records: list) -> None:
        add(files, part, total, records)
        came.append((time.perf_counter() - start, len(records)))

    PartFiles.add = timed  # type: ignore[method-assign]
    run.predict(config)
    (first, _), (last, _) = came[0], came[-1]
    return {"start": first, "rate": sum(count for _, count in came[1:]) / (last - first)}


@dataclass(frozen=True)
class MadeUp(Reading):
    """Parts without files: every picture is the same small one."""

    def opened(self, part: Part) -> "Same":
        """So many as its name says."""
        return Same(int(part.name.partition("-")[0]), part.name)


class Same:
    """N equal pictures."""

    def __init__(self, count: int, part: str):
        data = io.BytesIO()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(data, "PNG")
        self._count, self._part, self._data = count, part, data.getvalue()

    def __len__(self) -> int:
        return self._count

    def name(self, i: int) -> str:
        """Made up."""
        return f"{self._part}/{i:06d}.png"

    def read(self, i: int) -> bytes:
        """The same."""
        return self._data


def memory(folder: Path, keys: int) -> dict[str, float]:
    """Of this process that drives Ray: its peak in MB."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (folder / "in").mkdir(exist_ok=True)
    draw(folder / "in/a.jpg", 0)
    usual = [f"checkpoint={folder / CHECKPOINT}", f"input={folder}/in", f"output={folder}/{keys}/", "engine=ray"]
    given = ["decoding.max_new_tokens=1", "batch_size=500", "device=cpu", "overwrite=true"]
    plan = planned(configured(PredictConfig, *usual, *given))
    sizes = [min(A_PART, keys - start) for start in range(0, keys, A_PART)]
    parts = [Part(f"{size}-{number:05d}", names=Texts.of([])) for number, size in enumerate(sizes)]
    plan = plan.__class__(**{**vars(plan), "parts": parts, "reading": MadeUp(**vars(plan.reading))})
    start = time.perf_counter()
    made = run.predict(plan.config, plan)
    assert made.captioned == keys
    return {"peak": peak_bytes() / 1e6, "seconds": time.perf_counter() - start}


def of_a_process(*arguments: object) -> dict[str, float]:
    """What another process of this script has measured."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--turns", type=int, default=3, help="of each engine")
    parser.add_argument("--keys", default="1000,20000", help="fewer, more")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, folder = given.one
        found = memory(Path(folder), int(what)) if what.isdecimal() else measured(Path(folder), what)
        print(json.dumps(found))
        return 0
    print(setting())
    ratios = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, SMALL if given.small else FULL, 0)
        tars(folder, 4, 112 if given.small else 48)  # whole batches: a shard of thousands ends in one that is smaller
        rates: dict[str, list[float]] = {"local": [], "ray": []}
        for _ in range(given.turns):
            for engine, found in rates.items():
                one = of_a_process("--one", engine, folder)
                found.append(one["rate"])
                words = f"engine={engine}: {one['start']:.1f} s until the first rows, then {one['rate']:.2f} pictures/s"
                print(words, flush=True)
        local, there = map(median, rates.values())
        ratios.append(at_least("Ray beside local, after the start", f"{there:.2f}", f"{local:.2f}", there / local, 0.9))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, ONE_LAYER, 0)
        few, many = map(int, given.keys.split(","))
        peaks = {keys: of_a_process("--one", keys, folder) for keys in (few, many)}
        for keys, one in peaks.items():
            print(f"{keys:,} keys: the driver's peak {one['peak']:.0f} MB, {one['seconds']:.0f} s")
        a, b = peaks[few]["peak"], peaks[many]["peak"]
        ratios.append(at_most("driver's peak memory", f"{b:.0f} MB", f"{a:.0f} MB", b / a, 1.1))
    print(ratio_table(ratios))
    return publish(ratios)


if __name__ == "__main__":
    sys.exit(main())
