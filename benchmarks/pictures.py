"""From a photograph's bytes to a training tensor, on one core: pictures a second, beside what others use.

python benchmarks/pictures.py [FOLDER_OF_JPEGS] [--small]

Without a folder it draws photographs of 640 x 480 pixels. All ways take turns on the same eight pictures; a figure is
the median over these turns of the process's own CPU time, which another program on the machine hardly changes.
`torchvision` is its usual training transform: Pillow, convert, RandomResizedCrop, ToTensor, Normalize. Ours gives
bytes, to be normalised on the device. --small takes half a minute.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from itertools import count
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from measuring import Ratio, at_least, publish, ratio_table, setting, table
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision import transforms
from transformers import ViTImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from captioning.data.batch import PictureFormat
from captioning.data.images import decode_picture
from captioning.data.pixel_cache import find_prepared, make_pack, packs_in
from captioning.data.transforms import EvaluationTransform, TrainingTransform

GPU_PICTURES = 1800  # a second, that one GPU wants
COCO_PICTURES = 118_287  # of its training part
SIZE, PREPARED_SIZE = 224, 256
TURN = 8  # pictures
BOUNDS = {"ours, from the files": 1.2, "ours, prepared": 3.5}  # times torchvision's pictures a second
Way = Callable[[int], Tensor]  # photograph i -> tensor


def draw(path: Path, seed: int) -> None:
    """A JPEG of 640 x 480: soft light and shade, some shapes, and a sensor's noise; about 90 kB."""
    drawn = np.random.default_rng(seed)
    shade = Image.fromarray(drawn.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    image = shade.resize((640, 480), Image.Resampling.BICUBIC)
    pencil = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, wide, high = drawn.integers(0, (640, 480, 160, 120)).tolist()
        shape = pencil.ellipse if drawn.random() < 0.5 else pencil.rectangle
        shape((x, y, x + wide, y + high), fill=tuple(drawn.integers(0, 256, 3).tolist()))
    noisy = np.asarray(image) + drawn.normal(0, 6, (480, 640, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=90)


def ways(paths: list[Path], folder: Path) -> dict[str, Way]:
    """Every way to a tensor by its name; prepares the pictures in `folder` for ours."""
    data = [path.read_bytes() for path in paths]
    size = {"height": SIZE, "width": SIZE}
    slow, fast = ViTImageProcessorPil(size=size), ViTImageProcessor(size=size)
    usual = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    picture_format = PictureFormat((SIZE, SIZE))
    ours = TrainingTransform(picture_format, crop_scale=(0.7, 1.0), brightness=0.1, contrast=0.1, flip=True)
    exact = EvaluationTransform(picture_format)
    seeds = count()
    places = find_prepared(folder, folder, paths)

    def rgb(i: int) -> Image.Image:
        return Image.open(BytesIO(data[i])).convert("RGB")

    def augmented(image: Image.Image) -> Tensor:
        return ours(image, torch.Generator().manual_seed(next(seeds)), may_flip=True)

    return {
        "torchvision": lambda i: usual(rgb(i)),
        "transformers ViTImageProcessor, Pillow": lambda i: slow(rgb(i), return_tensors="pt")["pixel_values"],
        "transformers ViTImageProcessor, torchvision": lambda i: fast(rgb(i), return_tensors="pt")["pixel_values"],
        "ours, evaluation": lambda i: exact(decode_picture(data[i])),
        "ours, from the files": lambda i: augmented(decode_picture(data[i])),
        "ours, prepared": lambda i: augmented(places.load(i)),
    }


def milliseconds(paths: list[Path], named: dict[str, Way], repeats: int) -> dict[str, list[float]]:
    """CPU time a picture of every way, one value for each turn."""
    taken: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(repeats + 1):
        for first in range(0, len(paths) - TURN + 1, TURN):
            for name, way in named.items():
                start = time.process_time()
                for i in range(first, first + TURN):
                    way(i)
                taken[name].append((time.process_time() - start) * 1000 / TURN)
    turns = len(paths) // TURN
    return {name: values[turns:] for name, values in taken.items()}  # the first repeat warmed up


def prepare(paths: list[Path], folder: Path) -> None:
    """Prepare the pictures, and say how fast that goes and what COCO would come to."""
    start = time.process_time()
    make_pack(folder, folder, paths, PREPARED_SIZE)
    a_second = len(paths) / (time.process_time() - start)
    gigabytes = sum(path.stat().st_size for path in packs_in(folder)) / len(paths) * COCO_PICTURES / 1e9
    print(f"preparing: {a_second:.0f} pictures/s a core; all of COCO takes {gigabytes:.1f} GB", end=" and ")
    print(f"{COCO_PICTURES / a_second / 60:.0f} core-minutes")


def ratios_of(taken: dict[str, list[float]]) -> list[Ratio]:
    """Print pictures a second and cores; the ratios to torchvision's transform."""
    speeds = {name: 1000 / statistics.median(values) for name, values in taken.items()}
    rows = [[name, f"{speed:.0f}", f"{GPU_PICTURES / speed:.1f}"] for name, speed in speeds.items()]
    print(f"\n{table(['one core', 'pictures/s', f'cores for {GPU_PICTURES}/s'], rows)}\n")
    beside, base = f"torchvision {speeds['torchvision']:.0f}/s", taken["torchvision"]
    return [
        at_least(
            f"pictures: {name}",
            f"{speeds[name]:.0f}/s",
            beside,
            statistics.median(theirs / mine for theirs, mine in zip(base, values, strict=True)),
            BOUNDS.get(name),
        )
        for name, values in taken.items()
        if name != "torchvision"
    ]


def main(source: Path | None, small: bool) -> int:
    """Draw or find the photographs, prepare them, time every way; 1 if a bound is missed."""
    torch.set_num_threads(1)
    print(f"{setting()}, Pillow {PIL.__version__}, torchvision {torchvision.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = sorted(source.rglob("*.jpg"))[:256] if source else [folder / f"{i:03d}.jpg" for i in range(32)]
        if len(paths) < TURN:
            sys.exit(f"{source} holds {len(paths)} JPEGs (*.jpg), fewer than {TURN}; name a folder with more")
        if source is None:
            for seed, path in enumerate(paths):
                draw(path, seed)
        kilobytes = statistics.mean(path.stat().st_size for path in paths) / 1000
        print(f"{len(paths)} JPEGs of {kilobytes:.0f} kB: {source.name if source else 'drawn, 640 x 480'}")
        prepare(paths, folder)
        ratios = ratios_of(milliseconds(paths, ways(paths, folder), repeats=2 if small else 10))
    print(ratio_table(ratios))
    return publish(ratios)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, metavar="FOLDER_OF_JPEGS")
    parser.add_argument("--small", action="store_true", help="half a minute")
    given = parser.parse_args()
    sys.exit(main(given.source, given.small))
