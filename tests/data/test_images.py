"""Real folders hold odd files: each comes out as an upright RGB picture, or as one reason."""

import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import GifImagePlugin, Image, ImageFile, PngImagePlugin, WebPImagePlugin

from captioning.data import images
from captioning.data.images import UnreadablePicture, read_picture

# A gradient with a red corner: any wrong turn, tint or cut shows.
ROWS, COLUMNS = np.mgrid[0:48, 0:64]
COLOURS = np.stack([COLUMNS * 3, ROWS * 4, 40 + COLUMNS + ROWS], axis=-1).astype(np.uint8)
COLOURS[:12, :16] = (250, 10, 10)
PICTURE = Image.fromarray(COLOURS)
GREY = np.asarray(PICTURE.convert("L"))


def save(path: Path, image: Image.Image = PICTURE, **options) -> Path:
    image.save(path, **options)
    return path


def encoded(image: Image.Image, format: str, **options) -> bytes:
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def reason_for(path: Path, **options) -> str:
    with pytest.raises(UnreadablePicture) as caught:
        read_picture(path, **options)
    assert str(path) not in str(caught.value)
    return str(caught.value)


def distance(image: Image.Image, reference: np.ndarray) -> float:
    assert image.mode == "RGB"
    pixels = np.asarray(image).astype(int)
    assert pixels.shape[:2] == reference.shape[:2]
    return float(np.abs(pixels - (reference if reference.ndim == 3 else reference[..., None])).mean())


def test_every_awkward_file_comes_out_as_its_manifest_says(shared_data):
    folder = shared_data / "awkward-images"
    plain = np.asarray(Image.open(folder / "plain.jpg").convert("RGB"))
    grey = np.asarray(Image.open(folder / "grey.jpg"))
    for name, entry in json.loads((folder / "manifest.json").read_text(encoding="utf-8")).items():
        if not entry["readable"]:
            reason_for(folder / name)
            continue
        picture = read_picture(folder / name)
        assert picture.mode == "RGB", name
        if name == "exif-rotated.jpg":
            assert picture.size == (240, 320)
            assert distance(picture, np.rot90(plain, -1)) == 0
        elif name in ("grey.jpg", "sixteen-bit.png"):
            assert distance(picture, grey) < 2, name
        elif name == "transparent.png":
            assert picture.getpixel((160, 120)) == (255, 255, 255)
        elif picture.size == (320, 240):
            assert distance(picture, plain) < (20 if name == "palette.png" else 5), name  # the palette is dithered


def test_reasons_name_what_is_wrong(shared_data):
    folder = shared_data / "awkward-images"
    assert reason_for(folder / "truncated.jpg") == "truncated JPEG"
    assert reason_for(folder / "empty.jpg") == "empty file"
    assert reason_for(folder / "text.jpg").startswith("not a picture")
    assert reason_for(folder / "noise.png").startswith("not a picture")
    assert reason_for(folder / "bomb.png") == "60000 x 60000 pixels are more than the limit of 178956970"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_every_exif_orientation_comes_out_upright(tmp_path, orientation, name):
    stored = {  # how a camera held that way stores the upright picture
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS, 1),
        7: np.rot90(COLOURS, 2).transpose(1, 0, 2),
        8: np.rot90(COLOURS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / name, Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    picture = read_picture(path)
    assert picture.size == (64, 48)
    assert distance(picture, COLOURS) < 8


def test_an_unknown_orientation_leaves_the_picture_as_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 77
    assert distance(read_picture(save(tmp_path / "a.png", exif=exif)), COLOURS) == 0


def test_damaged_metadata_does_not_cost_a_sound_picture(tmp_path):
    path = save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's warnings name no file: none may reach the screen
        assert distance(read_picture(path), COLOURS) < 8


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
@pytest.mark.parametrize("white", [255, 4095, 65535])
def test_grey_of_more_than_eight_bits_keeps_its_greys(tmp_path, mode, white):
    values = GREY * (white / 255)
    types = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}
    image = Image.frombytes(mode, (64, 48), values.round().astype(types[mode]).tobytes())
    picture = read_picture(save(tmp_path / "a.tif", image))
    stretched = (GREY - GREY.min()) * (255 / np.ptp(GREY))  # floats above 1 have no known white
    # a picture that never reaches its white is at most as bright as its brightest pixel allows
    assert distance(picture, stretched if mode == "F" else GREY) < 2


def test_grey_fractions_run_from_zero_to_one(tmp_path):
    image = Image.fromarray((GREY / 255).astype(np.float32))
    assert distance(read_picture(save(tmp_path / "a.tif", image)), GREY) < 1


@pytest.mark.parametrize("low, high", [(-500, 500), (-0.01, 0.01), (0, 1e9)])
def test_other_numbers_are_stretched_from_black_to_white(tmp_path, low, high):
    values = (low + (high - low) * COLUMNS / COLUMNS.max()).astype(np.float32)
    pixels = np.asarray(read_picture(save(tmp_path / "a.tif", Image.fromarray(values))))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert abs(pixels.mean() - 127.5) < 2


def test_pixels_that_are_no_numbers_are_survived(tmp_path):
    values = (GREY / 255).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    picture = read_picture(save(tmp_path / "a.tif", Image.fromarray(values)))
    assert distance(picture, GREY) < 2


def test_sixteen_bit_png_comes_out_as_its_eight_bit_twin(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(GREY.astype(np.uint16) * 257))
    assert distance(read_picture(path), GREY) == 0


def test_transparent_parts_become_white_in_every_way_of_saying_transparent(tmp_path):
    alpha = Image.fromarray(np.where(COLUMNS < 32, 0, 255).astype(np.uint8))
    with_alpha = PICTURE.copy()
    with_alpha.putalpha(alpha)
    grey_alpha = Image.merge("LA", (PICTURE.convert("L"), alpha))
    palette = PICTURE.quantize(16)
    files = [
        save(tmp_path / "rgba.png", with_alpha),
        save(tmp_path / "rgba.webp", with_alpha, lossless=True),
        save(tmp_path / "la.png", grey_alpha),
        save(tmp_path / "palette.png", palette, transparency=palette.getpixel((0, 0))),
        save(tmp_path / "key.png", PICTURE, transparency=PICTURE.getpixel((0, 0))),
        save(tmp_path / "a.gif", palette, transparency=palette.getpixel((0, 0))),
    ]
    for path in files:
        picture = read_picture(path)
        assert picture.mode == "RGB"
        assert picture.getpixel((0, 0)) == (255, 255, 255), path.name
        assert picture.getpixel((60, 40)) != (255, 255, 255), path.name


def test_half_transparent_is_half_way_to_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(read_picture(save(tmp_path / "a.png", image)).getpixel((1, 1))[0] - 127) <= 1


@pytest.mark.parametrize("mode, name", [("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("YCbCr", "a.tif"), ("LAB", "a.tif")])
def test_other_colour_spaces_become_rgb(tmp_path, mode, name):
    if mode == "LAB":
        image = Image.new("LAB", (64, 48), (128, 128, 128))  # the middle grey
        assert np.ptp(np.asarray(read_picture(save(tmp_path / name, image)))[0, 0]) < 4
        return
    assert distance(read_picture(save(tmp_path / name, PICTURE.convert(mode))), COLOURS) < 8


def test_an_adobe_cmyk_jpeg_is_not_a_negative(tmp_path):
    plain = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")  # no ink: white
    assert b"Adobe" in plain
    (tmp_path / "a.jpg").write_bytes(plain)
    assert read_picture(tmp_path / "a.jpg").getpixel((5, 5)) == (255, 255, 255)


def test_one_bit_and_palette_pictures_become_rgb(tmp_path):
    black_and_white = PICTURE.convert("1")
    path = save(tmp_path / "a.png", black_and_white)
    assert distance(read_picture(path), np.asarray(black_and_white) * 255) == 0
    path = save(tmp_path / "p.png", PICTURE.quantize(200))
    assert distance(read_picture(path), COLOURS) < 10


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_an_animation_gives_its_first_frame(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {}
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("blue", "white")]
    path = save(tmp_path / name, PICTURE, save_all=True, append_images=frames, **options)
    assert distance(read_picture(path), COLOURS) < 12  # GIF has a palette


def test_the_content_decides_whatever_the_name_says(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(PICTURE, "PNG"))
    assert distance(read_picture(tmp_path / "a.jpg"), COLOURS) == 0


@pytest.mark.parametrize(
    "format, options",
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {})],
)
def test_a_file_cut_anywhere_is_refused_and_never_half_grey(tmp_path, format, options):
    data = encoded(PICTURE, format, **options)
    path = tmp_path / "a.picture"
    path.write_bytes(data)
    whole = np.asarray(read_picture(path))
    refused = 0
    for cut in range(1, len(data), max(1, len(data) // 60)):
        path.write_bytes(data[:cut])
        try:
            assert (np.asarray(read_picture(path)) == whole).all()  # only an end without pixels was missing
        except UnreadablePicture:
            refused += 1
    assert refused >= 50


def test_a_truncated_file_is_refused_even_if_another_library_allows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(PICTURE, "JPEG")
    (tmp_path / "a.jpg").write_bytes(data[: len(data) * 9 // 10])
    assert reason_for(tmp_path / "a.jpg") == "truncated JPEG"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # left as it was


def test_damaged_files_raise_nothing_else(tmp_path):
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "damaged"
    for format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM"):
        options = {"exif": exif} if format in ("JPEG", "PNG", "WEBP") else {}
        sound = np.frombuffer(encoded(PICTURE, format, **options), np.uint8)
        for _ in range(100):
            damaged = sound.copy()
            damaged[random.integers(0, len(sound), 4)] = random.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                assert read_picture(path, max_pixels=10**6).mode == "RGB"
            except UnreadablePicture as reason:
                assert str(reason)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 60_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header_without_a_warning(tmp_path, side, recwarn):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(side, 20_000))
    reason = reason_for(path)
    assert reason == f"{side} x 20000 pixels are more than the limit of 178956970"
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS is not None  # Pillow's own guard stands for everybody else


def test_the_pixel_limit_includes_its_own_value(tmp_path):
    path = save(tmp_path / "a.png")
    assert read_picture(path, max_pixels=64 * 48).size == (64, 48)
    assert reason_for(path, max_pixels=64 * 48 - 1) == "64 x 48 pixels are more than the limit of 3071"


def test_a_path_that_is_no_file_gives_its_reason(tmp_path):
    assert reason_for(tmp_path / "missing.jpg") == "no such file"
    (tmp_path / "folder.jpg").mkdir()
    assert reason_for(tmp_path / "folder.jpg") == "a folder, not a file"
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    assert reason_for(tmp_path / "dangling.jpg") == "no such file"
    assert reason_for(tmp_path / ("x" * 300)) == "File name too long"
    assert "null" in reason_for(Path("a\0b.jpg"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason_for(tmp_path / "pipe.jpg") == "not a regular file"


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "a.png").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    root = os.geteuid() == 0  # for whom every file is readable
    if root:
        os.seteuid(65534)
    try:
        assert reason_for(Path("a.png")) == "no permission to read it"
    finally:
        if root:
            os.seteuid(0)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)  # takes no room on the disk
    assert reason_for(path) == "2147483649 bytes are more than the limit of 2147483648"


def test_documents_that_pillow_would_run_a_program_for_are_no_pictures(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(PICTURE, "EPS"))
    assert reason_for(path).startswith("not a picture")


JPEGS = {
    "grey": (PICTURE.convert("L"), {}),
    "every chroma sample": (PICTURE, {"subsampling": 0}),
    "half of them": (PICTURE, {"subsampling": 1}),
    "a quarter": (PICTURE, {"subsampling": 2, "quality": 40}),
    "progressive": (PICTURE, {"progressive": True, "quality": 90}),
    "odd sizes": (PICTURE.crop((0, 0, 33, 17)), {}),
}


@pytest.mark.parametrize(("image", "options"), JPEGS.values(), ids=JPEGS)
def test_a_jpegs_pixels_are_pillows_to_the_bit(tmp_path, image, options):
    path = save(tmp_path / "a.jpg", image, **options)
    assert (np.asarray(read_picture(path)) == np.asarray(Image.open(path).convert("RGB"))).all()


def test_real_jpegs_are_pillows_to_the_bit_and_none_is_taken_for_damaged(shared_data):
    paths = sorted(shared_data.glob("*/*/*.jpg"))[::10]
    assert len(paths) > 100
    for path in paths:
        assert (np.asarray(read_picture(path)) == np.asarray(Image.open(path).convert("RGB"))).all(), path


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_damaged_in_its_middle_is_no_half_grey_picture(tmp_path, progressive):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    sound = encoded(noise, "JPEG", progressive=progressive, quality=80)
    middle = len(sound) // 2
    (tmp_path / "a.jpg").write_bytes(sound[:middle] + sound[middle + len(sound) // 4 :])
    assert reason_for(tmp_path / "a.jpg").startswith("damaged JPEG: ")
    with Image.open(tmp_path / "a.jpg") as image:
        image.load()  # Pillow says nothing


def test_bytes_left_over_before_a_jpegs_end_are_no_damage(tmp_path):
    sound = encoded(PICTURE, "JPEG")
    (tmp_path / "a.jpg").write_bytes(sound[:-2] + bytes(12) + sound[-2:])
    (tmp_path / "b.jpg").write_bytes(sound + b"a thumbnail, or a film")
    for name in ("a.jpg", "b.jpg"):
        assert (np.asarray(read_picture(tmp_path / name)) == np.asarray(Image.open(BytesIO(sound)))).all()


def test_more_scans_than_any_picture_has_are_refused(tmp_path):
    sound = encoded(PICTURE, "JPEG", progressive=True)
    again = sound[sound.rfind(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(sound[:-2] + again * 501 + sound[-2:])
    assert reason_for(tmp_path / "a.jpg") == "more than 500 scans in this JPEG"


def test_of_many_frames_only_the_first_is_decoded(tmp_path, monkeypatch):
    frames = [Image.new("P", (16, 16), number % 256) for number in range(300)]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        path = tmp_path / f"a.{format.lower()}"
        frames[0].convert("RGB").save(path, format, save_all=True, append_images=[f.convert("RGB") for f in frames[1:]])
        with monkeypatch.context() as patch:
            for plugin in (GifImagePlugin.GifImageFile, WebPImagePlugin.WebPImageFile, PngImagePlugin.PngImageFile):
                patch.setattr(plugin, "seek", lambda self, frame: pytest.fail("another frame is looked for"))
            assert read_picture(path).size == (16, 16)


@pytest.mark.slow
def test_12_000_fuzzed_files_end_as_a_picture_or_a_reason():
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_pictures.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "a PNG of 60000 x 60000 pixels in 390 kB: 60000 x 60000 pixels are more than the limit" in done.stdout


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIC, which is read where pillow-heif is"),
        (b"\xff\x0a\x98\xf0", "JPEG XL, which is read where pillow-jxl-plugin is"),
        (b"8BPS\0\x01", "a Photoshop document"),
        (b"<?xml version='1.0'?><svg xmlns=''/>", "an SVG drawing"),
    ],
)
def test_a_picture_of_a_kind_that_is_not_read_says_what_it_is_whatever_its_name(tmp_path, monkeypatch, start, reason):
    monkeypatch.setattr(images, "open_formats", lambda: ("JPEG", "PNG"))
    (tmp_path / "a.jpg").write_bytes(start + bytes(100))
    with pytest.raises(UnreadablePicture, match=reason):
        read_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize(("module", "format_"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_optional_formats_are_read_where_their_package_is(tmp_path, module, format_):
    pytest.importorskip(module)
    assert format_ in images.open_formats()
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", format_)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.size == (40, 20) and picture.mode == "RGB"
    assert picture.getpixel((20, 10))[0] > 240 > 20 > picture.getpixel((20, 10))[1]
    assert {"HEIF": ".heic", "JXL": ".jxl"}[format_] in images.picture_suffixes()
