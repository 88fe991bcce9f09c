"""Do damaged picture files ever end, hang or bloat the process that reads them?

python benchmarks/fuzz_pictures.py [--small] [--files N] [--seed N]

12,000 files are made from small pictures of all formats that are read, by flips of bits, cuts, insertions, numbers set
to extremes (lengths and sizes among them), pieces of other files, and several of these at once; the seed decides them.
They are read in a process of its own, with a limit on its memory and an alarm for each. An end other than a picture
or a reason counts as a crash. Besides, a PNG of 60,000 x 60,000 pixels in 400 kB, and JPEGs with thousands of scans.
"""

import argparse
import json
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from io import BytesIO

import numpy as np
from measuring import Ratio, at_most, publish, ratio_table, setting
from PIL import Image

from captioning.data.images import FORMATS, UnreadablePicture, decode_picture, read_picture

FILES, SMALL_FILES = 12_000, 1_500
MOST_SECONDS = 10  # for one file
MOST_BYTES = 4 * 2**30  # of address space, most of which is libraries
MOST_PIXELS = 4_000_000  # of the fuzzed ones, so that a number set to an extreme does not cost seconds
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def main() -> int:
    """Read them all in a child, and say how it went."""
    parser = argparse.ArgumentParser(description="damaged picture files")
    parser.add_argument("--small", action="store_true", help=f"{SMALL_FILES} files")
    parser.add_argument("--files", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    files = arguments.files or (SMALL_FILES if arguments.small else FILES)
    if arguments.child:
        return child(files, arguments.seed)
    print(f"{setting()}\n")
    command = [sys.executable, __file__, "--child", "--files", str(files), "--seed", str(arguments.seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"the process that read them ended with status {done.returncode}: {done.stdout[-500:]}")
        return publish([at_most("fuzzed pictures: crashes", "1", "none", 1, 0)])
    told = json.loads(done.stdout)
    print(f"{files} files: {told['read']} read, {files - told['read']} refused; {told['seconds']:.0f} s")
    for reason, count in told["reasons"]:
        print(f"  {count:6d} {reason}")
    print(f"slowest {told['slowest']:.2f} s; peak memory {told['peak_mb']:.0f} MB, before {told['before_mb']:.0f} MB")
    for name, (reason, seconds) in told["bombs"].items():
        print(f"{name}: {reason}, in {seconds * 1000:.1f} ms")
    more_mb = told["peak_mb"] - told["before_mb"]
    ratios: list[Ratio] = [
        at_most("fuzzed pictures: crashes and hangs", str(told["crashes"]), f"{files} files", told["crashes"], 0),
        at_most("their peak memory, MB above the start", f"{more_mb:.0f}", "one of 4 megapixels", more_mb, 300),
    ]
    for name, trace in told["traces"].items():
        print(name, trace, sep="\n")
    print(f"\n{ratio_table(ratios)}")
    return publish(ratios)


def child(files: int, seed: int) -> int:
    """What the process does that is put at risk."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process: a decoder in C hears nothing else
    before, start = peak_mb(), time.perf_counter()
    seeds, draw = sound_files(), random.Random(seed)
    told: dict = {"read": 0, "crashes": 0, "slowest": 0.0, "traces": {}}
    reasons: Counter[str] = Counter()
    for number in range(files):
        data = damaged(draw, seeds)
        signal.alarm(MOST_SECONDS)
        began = time.perf_counter()
        try:
            assert decode_picture(data, MOST_PIXELS).mode == "RGB"
            told["read"] += 1
        except UnreadablePicture as reason:
            reasons[kind_of(str(reason))] += 1
        except Exception as error:
            told["crashes"] += 1
            told["traces"].setdefault(type(error).__name__, f"file {number}: {error!r}")
        told["slowest"] = max(told["slowest"], time.perf_counter() - began)
    signal.alarm(0)
    told["peak_mb"] = peak_mb()  # making the bombs takes much itself
    told["bombs"] = {name: timed(data) for name, data in bombs().items()}
    told |= {"reasons": reasons.most_common(25), "before_mb": before}
    print(json.dumps(told | {"seconds": time.perf_counter() - start}))
    return 0


def sound_files() -> list[bytes]:
    """A small picture in every format, in their common kinds."""
    y, x = np.mgrid[0:40, 0:52]
    picture = Image.fromarray(np.stack([x * 4, y * 5, x + y], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, Image.Image, dict]] = [
        ("JPEG", picture, {"exif": exif}),
        ("JPEG", picture, {"progressive": True, "quality": 40}),
        ("JPEG", picture.convert("L"), {}),
        ("JPEG", picture.convert("CMYK"), {}),
        ("PNG", picture, {"exif": exif}),
        ("PNG", picture.convert("P"), {"transparency": 3}),
        ("PNG", picture.convert("I;16") if hasattr(Image, "I16") else picture.convert("LA"), {}),
        ("WEBP", picture, {"exif": exif}),
        ("WEBP", picture, {"lossless": True}),
        ("WEBP", picture, {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}),
        ("BMP", picture, {}),
        ("GIF", picture, {"save_all": True, "append_images": [picture.rotate(90)] * 3}),
        ("TIFF", picture, {"compression": "tiff_lzw"}),
        ("TIFF", picture, {"compression": "tiff_deflate"}),
        ("TIFF", picture.convert("F"), {}),
        ("AVIF", picture, {}),
        ("JPEG2000", picture, {}),
        ("PPM", picture, {}),
    ]
    Image.init()
    return [saved(image, kind, options) for kind, image, options in kinds if kind in FORMATS and kind in Image.SAVE]


def saved(image: Image.Image, kind: str, options: dict) -> bytes:
    """The file's bytes."""
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def damaged(draw: random.Random, seeds: list[bytes]) -> bytes:
    """One of them, with one to four pieces of damage."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(data)) if len(data) else 0
        if draw.random() < 0.5:
            place = min(place, draw.randrange(4, 96))  # headers, but for what says the format
        match draw.randrange(7):
            case 0:
                data[place : place + 1] = bytes([draw.randrange(256)])
            case 1:
                data[place : place + 1] = bytes([(data[place] if place < len(data) else 0) ^ 1 << draw.randrange(8)])
            case 2:
                del data[place:]
            case 3:
                del data[place : place + draw.randrange(1, 40)]
            case 4:
                data[place:place] = draw.randbytes(draw.randrange(1, 40))
            case 5:
                width = draw.choice((1, 2, 4))
                value = draw.choice(EXTREMES) % (1 << 8 * width)
                data[place : place + width] = value.to_bytes(width, draw.choice(("big", "little")))
            case 6:
                other = draw.choice(seeds)
                start = draw.randrange(len(other))
                data[place : place + draw.randrange(1, 200)] = other[start : start + draw.randrange(1, 200)]
    return bytes(data)


def bombs() -> dict[str, bytes]:
    """Files whose pixels, frames, scans or texts are out of proportion to their bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width: int, height: int, *chunks: bytes) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")

    rows = chunk(b"IDAT", zlib.compress(bytes(60_001) * 6_700, 9))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9))
    scan = saved(Image.new("L", (4000, 4000)), "JPEG", {"progressive": True})
    start = scan.rfind(b"\xff\xda")
    again = scan[start:-2]
    frames = [Image.new("P", (16, 16), n % 2) for n in range(2000)]
    return {
        f"a PNG of 60000 x 60000 pixels in {len(png(60_000, 60_000, rows)) // 1000} kB": png(60_000, 60_000, rows),
        "a PNG with 200 MB of text": png(4, 4, text, chunk(b"IDAT", zlib.compress(bytes(20)))),
        "a JPEG of 16 megapixels with 5000 scans": scan[:-2] + again * 5000 + scan[-2:],
        "a GIF of 2000 frames": saved(frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
    }


def timed(data: bytes) -> tuple[str, float]:
    """What becomes of a file, and in how many seconds."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        start = time.perf_counter()
        try:
            size = "{} x {}".format(*read_picture(file.name).size)
            return f"read, {size}", time.perf_counter() - start
        except UnreadablePicture as reason:
            return str(reason), time.perf_counter() - start


def kind_of(reason: str) -> str:
    """Reasons that differ in numbers alone are one."""
    return "".join("N" if letter.isdigit() else letter for letter in reason)[:90]


def peak_mb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    sys.exit(main())
