"""From a photograph's bytes to a training tensor, on one core: pictures a second, beside what others use.

python benchmarks/pictures.py [FOLDER_OF_JPEGS] [--small]

Without a folder it draws photographs of 640 x 480 pixels. All ways take turns on the same eight pictures; a figure is
the median over these turns of the process's own CPU time, which another program on the machine hardly changes.
`torchvision` is its usual training transform: Pillow, convert, RandomResizedCrop, ToTensor, Normalize. Ours gives
bytes, to be normalised on the device. --small takes half a minute.
"""

import os
import platform
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
import transformers
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision import transforms
from transformers import ViTImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from captioning.batch import PictureFormat
from captioning.data.pictures import decode_picture
from captioning.data.preparation import make_pack
from captioning.data.prepared import find_prepared, packs_in
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


def report(taken: dict[str, list[float]]) -> int:
    """Print the table; 1 if a bound is missed."""
    print(f"{'':44} pictures/s   x torchvision   cores for {GPU_PICTURES}/s")
    missed = 0
    for name, values in taken.items():
        a_second = 1000 / statistics.median(values)
        ratio = statistics.median(base / mine for base, mine in zip(taken["torchvision"], values, strict=True))
        print(f"{name:44} {a_second:10.0f}   {ratio:13.2f}   {GPU_PICTURES / a_second:16.1f}", end="")
        if bound := BOUNDS.get(name):
            print(f"   >= {bound} {'met' if ratio >= bound else 'MISSED'}", end="")
            missed += ratio < bound
        print()
    return int(missed > 0)


def main(source: Path | None, small: bool) -> int:
    """Draw or find the photographs, prepare them, time every way."""
    torch.set_num_threads(1)
    processor = platform.processor() or platform.machine()
    print(
        f"one of {os.cpu_count()} CPU cores, {processor}; Python {platform.python_version()}, Pillow {PIL.__version__}"
    )
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, transformers {transformers.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = sorted(source.rglob("*.jpg"))[:256] if source else [folder / f"{i:03d}.jpg" for i in range(32)]
        if source is None:
            for seed, path in enumerate(paths):
                draw(path, seed)
        kilobytes = statistics.mean(path.stat().st_size for path in paths) / 1000
        print(f"{len(paths)} JPEGs of {kilobytes:.0f} kB: {source or 'drawn, 640 x 480'}")
        prepare(paths, folder)
        return report(milliseconds(paths, ways(paths, folder), repeats=2 if small else 10))


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--small"]
    sys.exit(main(Path(given[0]) if given else None, "--small" in sys.argv))
