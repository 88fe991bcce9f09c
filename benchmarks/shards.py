"""Times shards: indexing a tar, reading pictures in any order, what a million rows take, how often blocks are fetched.

python benchmarks/shards.py [--small]

CPU seconds of one process, so that what else the machine does hardly counts. Pictures are 480 x 640 JPEGs of about
65 KB. --small has a tenth of the pictures and of the rows.
"""

import io
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from measuring import at_least, at_most, forget_peak, peak_bytes, publish, ratio_table, setting
from PIL import Image

from captioning.data import remote
from captioning.data.index import Columns, Index, Rows, ids_of, usable
from captioning.data.records import TextLists, Texts
from captioning.data.remote import Blocks
from captioning.data.rows import EpochBatches
from captioning.data.shards import ShardPictures, index_of
from captioning.data.splits import divided_by_seed
from captioning.data.stored import PictureFiles

USUAL = Columns(None, None, lines=False)
WORDS = np.array([f"word{n}" for n in range(16)])


def main(small: bool) -> int:
    """Measure, print, and return 1 if a bound is missed."""
    pictures, rows = (500, 100_000) if small else (5000, 1_000_000)
    print(setting())
    with tempfile.TemporaryDirectory() as folder:
        reading = of_pictures(Path(folder), pictures)
        fetched = of_blocks(Path(folder))
    of_rows(rows)
    times = [f"{reading[name] * 1e6:.1f} us" for name in ("tar", "files")]
    kept, never = fetched["windows"], fetched["any order"]
    ratios = [
        at_most("a picture of a tar", times[0], f"its own file {times[1]}", reading["tar"] / reading["files"], 1.1),
        at_most(
            "blocks fetched in an epoch", f"{kept} in windows", f"{fetched['there']}", kept / fetched["there"], 1.05
        ),
        *(
            at_most(
                f"blocks that one of {n} machines fetches, data.lanes=4",
                f"{fetched[f'{n} machines']} at most",
                f"{fetched['there']} / {n}",
                n * fetched[f"{n} machines"] / fetched["there"],
                1.2,
            )
            for n in (1, 2, 4)
        ),
        at_least("blocks fetched in an epoch", f"{never} in any order", f"{kept} in windows", never / kept, None),
    ]
    print(f"\n{ratio_table(ratios)}")
    return publish(ratios)


def photographs(count: int) -> list[bytes]:
    """JPEGs of waves and noise; no two are equal."""
    drawn, (y, x) = np.random.default_rng(0), np.mgrid[0:480, 0:640]
    made = []
    for i in range(20):
        pixels = 127 + 80 * np.sin(x / (20 + i) + y / 30)[..., None] + drawn.normal(0, 12, (480, 640, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
        made.append(file.getvalue())
    return [made[i % 20][:-2] + i.to_bytes(4, "big") + b"\xff\xd9" for i in range(count)]


def write_tar(path: Path, pictures: list[bytes]) -> None:
    """As img2dataset writes them."""
    with tarfile.open(path, "w") as tar:
        for i, picture in enumerate(pictures):
            for suffix, data in (("jpg", picture), ("txt", b"a dog"), ("json", b'{"caption": "a dog", "width": 640}')):
                info = tarfile.TarInfo(f"{i:09d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def seconds_of(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def of_pictures(folder: Path, count: int) -> dict[str, float]:
    """CPU seconds of reading a picture; prints what an index takes."""
    data = photographs(count)
    write_tar(folder / "a.tar", data)
    paths = [folder / f"{i:09d}.jpg" for i in range(count)]
    for path, picture in zip(paths, data, strict=True):
        path.write_bytes(picture)
    blocks = Blocks(folder / "blocks", 10**9)

    def indexed() -> Index:
        return index_of(str(folder / "a.tar"), USUAL, folder / "cache", blocks)

    making, reading = seconds_of(indexed), seconds_of(indexed)
    size = (folder / "a.tar").stat().st_size
    kept = sum(path.stat().st_size for path in (folder / "cache").iterdir())
    print(f"indexing: {making / count * 1e6:.0f} us a picture, {size / making / 1e6:.0f} MB/s", end="; ")
    print(f"the index: {kept / count:.0f} bytes a picture, read in {reading * 1e3:.1f} ms")
    order = np.random.default_rng(0).permutation(count).tolist()
    times: dict[str, list[float]] = {"files": [], "tar": []}
    stored = {"files": PictureFiles(paths), "tar": ShardPictures([indexed()], blocks)}
    for _ in range(5):
        for name, pictures in stored.items():
            times[name].append(seconds_of(lambda pictures=pictures: [pictures.read(i) for i in order]))
    return {name: min(measured) / count for name, measured in times.items()}


def of_blocks(folder: Path) -> dict[str, int]:
    """Blocks of eight tars elsewhere that are fetched in an epoch, where a quarter is kept; and how many there are."""
    urls = []
    for shard in range(8):
        write_tar(folder / f"{shard}.tar", photographs(500))
        urls.append(f"file://{folder}/{shard}.tar")
    there = sum(-(-Path(url[7:]).stat().st_size // remote.BLOCK_BYTES) for url in urls)
    blocks = Blocks(folder / "blocks", there // 4 * (remote.BLOCK_BYTES + remote.OVERLAP_BYTES))
    pictures = ShardPictures([index_of(url, USUAL, folder / "cache", blocks) for url in urls], blocks)
    fetched, original = [], remote.RemoteFile._fetched
    remote.RemoteFile._fetched = lambda file, number: fetched.append(number) or original(file, number)  # type: ignore
    found = {"there": there}
    for name, near in (("windows", pictures.neighbours()), ("any order", None)):
        shutil.rmtree(blocks.folder)
        fetched.clear()
        for batch in EpochBatches(len(pictures), 16, shuffle=True, seed=1, neighbours=near):
            for _, row in batch:
                pictures.read(row)
        found[name] = len(fetched)
    for machines in (1, 2, 4):
        of_each = []
        for machine in range(machines):
            shutil.rmtree(blocks.folder)
            fetched.clear()
            near = replace(pictures.neighbours(), lanes=4)
            place = {"rank": machine, "world_size": machines}
            for batch in EpochBatches(len(pictures), 16 // machines, shuffle=True, seed=1, neighbours=near, **place):
                for _, row in batch:
                    pictures.read(row)
            of_each.append(len(fetched))
        found[f"{machines} machines"] = max(of_each)
    remote.RemoteFile._fetched = original  # type: ignore[method-assign]
    return found


def of_rows(count: int) -> None:
    """Prints what made-up rows take of memory, from their indices to the order of an epoch."""
    forget_peak()
    before, drawn = peak_bytes(), np.random.default_rng(0)
    indices = []
    for shard in range(count // 10_000):
        starts, numbers = np.arange(10_000) * 31_000, range(shard * 10_000, (shard + 1) * 10_000)
        captions = TextLists.of([[" ".join(words)] for words in WORDS[drawn.integers(0, len(WORDS), (10_000, 10))]])
        places = np.stack([starts, np.full(10_000, 30_000)], axis=1)
        names, contents = Texts.of(f"{i:09d}.jpg" for i in numbers), drawn.integers(0, 2**62, 10_000)
        rows = Rows(names, places, starts // remote.BLOCK_BYTES, contents, captions, Texts.of([""] * 10_000))
        indices.append(Index(f"s3://bucket/{shard:05d}.tar", (1, ""), rows))

    def to_the_order() -> None:
        pictures = usable(indices, ShardPictures(indices, Blocks(Path("blocks"), 10**10)), "error")
        (ids,) = ids_of([pictures])
        train = pictures.part(divided_by_seed(ids, 1)["train"])
        next(iter(EpochBatches(len(train), 16, shuffle=True, seed=1, neighbours=train.neighbours())))

    seconds = seconds_of(to_the_order)
    print(f"{count:,} rows: {seconds:.1f} s to the first batch, {(peak_bytes() - before) / 1e6:.0f} MB at most")


if __name__ == "__main__":
    sys.exit(main("--small" in sys.argv))
