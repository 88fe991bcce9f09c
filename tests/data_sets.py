"""Small data sets in the layouts that users have, written by the tests: four photographs, `a` to `d`."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def heard(caplog):
    """What readers say, down to how many captions they found, for each test file that imports this."""
    caplog.set_level(logging.INFO)


def by_id(photographs):
    return {photograph.image_id: photograph for photograph in photographs}


def draw(path: Path, colour: str = "red") -> None:
    """A small JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), colour).save(path, "JPEG")


def draw_photograph(path: Path, seed: int = 0, size: tuple[int, int] = (120, 90), **options: object) -> Path:
    """Smooth waves whose colours are drawn by the seed, as a JPEG; `options` are Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0 : size[1], 0 : size[0]] / max(size)
    phases = np.random.default_rng(seed).uniform(1, 8, (3, 2))
    waves = np.stack([np.sin(6 * x + a) * np.cos(4 * y + b) for a, b in phases], axis=-1)
    Image.fromarray((127 + 100 * waves).astype(np.uint8)).save(path, "JPEG", quality=95, **options)
    return path


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    """A text file of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")
    return path


def write_json(path: Path, value: object) -> Path:
    return write(path, json.dumps(value))


def flickr8k(root: Path, lists: bool = True) -> Path:
    """The original release, two captions a photograph: a and b train, c val, d test."""
    for name in "abcd":
        draw(root / "Images" / f"{name}.jpg")
    rows = [f"{name}.jpg#{number}\tcaption {number} of {name} ." for name in "abcd" for number in (0, 1)]
    write(root / "Flickr8k_text" / "Flickr8k.token.txt", *rows)
    for split, names in {"train": "ab", "dev": "c", "test": "d"}.items() if lists else ():
        write(root / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt", *(f"{name}.jpg" for name in names))
    return root


def flickr30k(root: Path) -> Path:
    """Kaggle's file, without lists."""
    rows = [f"{name}.jpg| {number}| caption {number} of {name} ." for name in "abcd" for number in (0, 1)]
    write(root / "results.csv", "image_name| comment_number| comment", *rows)
    for name in "abcd":
        draw(root / "flickr30k_images" / f"{name}.jpg")
    return root


def karpathy(path: Path, splits: dict[str, str], **extra: object) -> Path:
    """Karpathy's JSON of these file names and their splits; the n-th photograph's cocoid is n."""
    images = [
        {
            "filename": name,
            "imgid": number,
            "cocoid": number,
            "split": split,
            "sentences": [{"raw": f"caption {k} of {name}", "sentid": 2 * number + k} for k in (0, 1)],
            **extra,
        }
        for number, (name, split) in enumerate(splits.items(), start=1)
    ]
    return write_json(path, {"images": images, "dataset": "x"})


def coco_file(ids: list[int]) -> dict[str, list[dict]]:
    """A COCO captions file of these image ids, two captions each."""
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "caption": f"caption {k} of {i}"} for i in ids for k in (0, 1)
        ],
    }


def coco(root: Path) -> Path:
    """COCO 2017's layout: 1 and 2 train, 3 val."""
    for split, ids in {"train": [1, 2], "val": [3]}.items():
        write_json(root / "annotations" / f"captions_{split}2017.json", coco_file(ids))
        for i in ids:
            draw(root / f"{split}2017" / f"{i:012d}.jpg")
    return root
