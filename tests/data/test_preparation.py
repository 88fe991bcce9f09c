"""Pictures are stored once, upright and small; what is there stays, what has changed is made again."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from data_sets import draw_photograph
from PIL import Image

from captioning.data import pixel_cache as prepared
from captioning.data.pixel_cache import ABANDONED_SECONDS, find_prepared, make_pack, packs_in, prepare_pictures
from captioning.errors import UserError


@pytest.fixture(autouse=True)
def small_packs(monkeypatch):
    monkeypatch.setattr(prepared, "PORTION", 3)


def photographs(root: Path, count: int = 8) -> list[Path]:
    return [draw_photograph(root / f"{seed}.jpg", seed) for seed in range(count)]


def prepare(root: Path, paths: list[Path], size: int = 48, num_workers: int = 0):
    return prepare_pictures(root / "prepared", root, paths, size, num_workers)


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in packs_in(root / "prepared")}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_pictures_are_stored(tmp_path, num_workers):
    paths = photographs(tmp_path)
    assert prepare(tmp_path, paths, num_workers=num_workers).stored == 8
    assert len(packs_in(tmp_path / "prepared")) == 3
    places = find_prepared(tmp_path / "prepared", tmp_path, paths)
    assert len(places) == 8
    assert {places.load(i).size for i in range(8)} == {(64, 48)}


def test_a_second_time_writes_nothing(tmp_path):
    paths = photographs(tmp_path)
    prepare(tmp_path, paths)
    before = contents(tmp_path)
    assert prepare(tmp_path, paths).stored == 8
    assert contents(tmp_path) == before


def test_what_a_killed_preparation_stored_is_kept(tmp_path):
    paths = photographs(tmp_path)
    (tmp_path / "prepared").mkdir()
    make_pack(tmp_path / "prepared", tmp_path, paths[:3], 48)
    left = contents(tmp_path)
    young, old = (tmp_path / "prepared" / f".{name}.pictures.77.tmp" for name in ("young", "old"))
    young.write_bytes(b"another process is writing this")
    old.write_bytes(b"half a pack")
    os.utime(old, (0, time.time() - ABANDONED_SECONDS - 9))
    assert prepare(tmp_path, paths).stored == 8
    assert contents(tmp_path).items() >= left.items()
    assert young.exists() and not old.exists()


def test_changed_and_new_pictures_are_stored_as_they_are_now(tmp_path):
    paths = photographs(tmp_path)
    prepare(tmp_path, paths)
    Image.new("RGB", (100, 80), "lime").save(paths[4])
    paths.append(draw_photograph(tmp_path / "new.jpg", 99))
    assert prepare(tmp_path, paths).stored == 9
    places = find_prepared(tmp_path / "prepared", tmp_path, paths)
    assert len(places) == 9
    red, green, blue = places.load(4).getpixel((20, 20))
    assert green > 240 and max(red, blue) < 20


def test_packs_of_which_everything_has_changed_are_removed(tmp_path):
    paths = photographs(tmp_path)
    prepare(tmp_path, paths)
    before = contents(tmp_path)
    for path in paths[:6]:
        os.utime(path, (1, 1))
    prepare(tmp_path, paths)
    assert len(contents(tmp_path)) == 3
    assert len(contents(tmp_path).keys() & before.keys()) == 1


def test_preparing_a_part_leaves_the_rest_alone(tmp_path):
    paths = photographs(tmp_path)
    prepare(tmp_path, paths)
    before = contents(tmp_path)
    prepare(tmp_path, paths[:2])
    assert contents(tmp_path) == before


def test_another_size_replaces_what_is_there(tmp_path):
    paths = photographs(tmp_path)
    prepare(tmp_path, paths)
    prepare(tmp_path, paths, size=60)
    places = find_prepared(tmp_path / "prepared", tmp_path, paths)
    assert places.size == 60 and len(packs_in(tmp_path / "prepared")) == 3
    assert places.load(7).size == (80, 60)


def test_pictures_are_stored_upright_and_in_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the left
    turned = draw_photograph(tmp_path / "turned.jpg", exif=exif)
    grey, clear = tmp_path / "grey.png", tmp_path / "clear.png"
    Image.new("I;16", (100, 80), 65535).save(grey)
    Image.new("RGBA", (100, 80), (0, 0, 0, 0)).save(clear)
    prepare(tmp_path, [turned, grey, clear])
    places = find_prepared(tmp_path / "prepared", tmp_path, [turned, grey, clear])
    assert places.load(0).size == (48, 64)
    assert all(np.asarray(places.load(i)).min() > 250 for i in (1, 2))
    assert all(places.load(i).mode == "RGB" for i in range(3))


def test_a_picture_smaller_than_asked_keeps_its_size(tmp_path):
    path = draw_photograph(tmp_path / "a.jpg", size=(40, 30))
    prepare(tmp_path, [path])
    assert find_prepared(tmp_path / "prepared", tmp_path, [path]).load(0).size == (40, 30)


def test_pictures_that_cannot_be_read_are_named_and_the_others_stored(tmp_path):
    paths = photographs(tmp_path, 5)
    paths[1].write_bytes(paths[1].read_bytes()[:-400])
    paths[3].unlink()
    outcome = prepare(tmp_path, paths)
    assert outcome.stored == 3
    assert outcome.unreadable == {paths[1]: "truncated JPEG", paths[3]: "no such file"}


def test_a_place_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    paths = photographs(tmp_path, 2)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/prepared cannot be written: .*data\.prepared=PATH"):
        prepare_pictures(tmp_path / "file" / "prepared", tmp_path, paths, 48, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("captioning.files.os.fsync", full)
    with pytest.raises(UserError, match="prepared cannot be written: No space left on device"):
        prepare(tmp_path, paths)
    assert not packs_in(tmp_path / "prepared")


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    paths = photographs(tmp_path)
    with pytest.raises(UserError, match=r"8 pictures of 48 pixels take about 0\.0 GB, and .* has 0\.0 GB left"):
        prepare(tmp_path, paths)
    assert not packs_in(tmp_path / "prepared")
    assert prepare(tmp_path, paths[:2]).stored == 2
