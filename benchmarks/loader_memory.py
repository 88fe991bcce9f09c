"""Watches the memory of two loader workers over an epoch as large as COCO's, with captions that are made up.

python benchmarks/loader_memory.py [--small]

RSS counts pages that processes share in each of them, PSS divides them, USS leaves them out. Where workers share the
captions, USS stays where it was after the first batches; where they copy them, it grows with every picture. Linux
alone tells (/proc). --small is a twentieth of COCO.
"""

import multiprocessing
import random
import sys
import time
from pathlib import Path

import torch
from measuring import at_most, publish, ratio_table, setting
from PIL import Image

from captioning.data.batch import PictureFormat
from captioning.data.datamodule import CaptionDataModule
from captioning.data.records import Split

PICTURES, CAPTIONS = 118_287, 591_753  # of COCO 2017's training part
WORKERS = 2
MOST_GROWTH = 16.0  # MB of USS a worker, from a tenth of the epoch to its end
AUGMENTATION = {"crop_scale": [0.7, 1.0], "brightness": 0.1, "contrast": 0.1, "flip": True}


class OnePicture:
    """The same 16-pixel picture for every index: only captions matter here."""

    def __call__(self, i: int) -> Image.Image:
        return Image.new("RGB", (16, 16), (i % 256, 0, 0))


class MadeUpCaptions(CaptionDataModule):
    """As many pictures and captions as COCO has, divided by `part`; captions of 8 to 14 words."""

    def __init__(self, part: int):
        super().__init__(
            tokenizer=None,
            batch_size=64,
            captions_per_image=5,
            max_tokens=64,
            num_workers=WORKERS,
            augmentation=AUGMENTATION,
            overfit_images=None,
            seed=1,
        )
        self._pictures, self._count = PICTURES // part, CAPTIONS // part

    def read(self) -> dict[str, Split]:
        """Five captions a picture, and a sixth for the first ones."""
        words, drawn = [f"word{n}" for n in range(2000)], random.Random(1)
        captions = [
            [" ".join(drawn.choices(words, k=drawn.randint(8, 14))) for _ in range(self._captions_of(i))]
            for i in range(self._pictures)
        ]
        return {"train": Split(range(self._pictures), captions, OnePicture())}

    def _captions_of(self, i: int) -> int:
        five, rest = divmod(self._count, self._pictures)
        return five + (i < rest)


def megabytes(pid: int) -> tuple[float, float, float]:
    """RSS, PSS and USS of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return kilobytes["Rss"] / 1000, kilobytes["Pss"] / 1000, private / 1000


def main(part: int) -> int:
    """Print a row for each tenth of the epoch; 1 if a worker's own memory grew."""
    torch.set_num_threads(1)
    data = MadeUpCaptions(part)
    data.connect(data.new_tokenizer(), PictureFormat(size=(16, 16)), max_positions=64)
    print(setting())
    captions = sum(map(len, data.splits["train"].captions))
    print(f"{len(data.splits['train'])} pictures, {captions} captions, {WORKERS} workers; MB a worker")
    print("part of the epoch   RSS              PSS              USS")
    loader = data.train_dataloader()
    start = time.perf_counter()
    seen: list[list[tuple[float, float, float]]] = []
    for number, _ in enumerate(loader, start=1):
        if number % (len(loader) // 10) == 0:
            seen.append([megabytes(worker.pid) for worker in multiprocessing.active_children()])
            columns = ("  ".join(f"{memory:7.1f}" for memory in kind) for kind in zip(*seen[-1], strict=True))
            print(f"{number / len(loader):17.1f}   {'   '.join(columns)}", flush=True)
    growth = max(after[2] - before[2] for before, after in zip(seen[0], seen[-1], strict=True))
    print(f"{time.perf_counter() - start:.0f} s\n")
    rss, grown = seen[-1][0][0], f"+{growth:.1f} MB of its own"
    ratio = at_most("loader worker's memory over an epoch", grown, f"RSS {rss:.0f} MB", growth / MOST_GROWTH, 1)
    print(ratio_table([ratio]))
    return publish([ratio])


if __name__ == "__main__":
    sys.exit(main(part=20 if "--small" in sys.argv[1:] else 1))
