"""Shards of pictures, and what was made of them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(number: int, side: int = 24) -> bytes:
    """A picture of noise, another for each number."""
    noise = np.random.default_rng(number).integers(0, 256, (side, side + 8, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG")
    return data.getvalue()


def tars(folder: Path, shards: int, pictures: int) -> Path:
    """As img2dataset writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = {}
        for number in range(shard * pictures, (shard + 1) * pictures):
            members |= {f"{number:09d}.jpg": jpeg(number), f"{number:09d}.json": b'{"url": "https://a.org"}'}
        tar_of(folder / f"{shard:05d}.tar", members)
    return folder


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def rows_in(folder: Path) -> dict[str, str]:
    """The lines of a folder of JSONL files, by path; none twice."""
    rows: dict[str, str] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            path = json.loads(line)["path"]
            assert path not in rows, f"{path} is there twice"
            rows[path] = line
    return rows
