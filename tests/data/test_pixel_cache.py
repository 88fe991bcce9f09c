"""Pictures stored once, upright and small; one that has changed since is never served; and `prepare.py`."""

import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from data_sets import draw_photograph, flickr8k
from PIL import Image

from captioning.data import pixel_cache
from captioning.data.images import read_picture
from captioning.data.pixel_cache import (
    ABANDONED_SECONDS,
    find_prepared,
    make_pack,
    packs_in,
    prepare_pictures,
    read_pack,
)
from captioning.data.stored import PictureFiles
from captioning.errors import UserError

# What a pack says, and that a picture which has changed since is never served.


@pytest.fixture
def packed(tmp_path) -> list[Path]:
    """Five photographs with a pack of them in `prepared`."""
    paths = [draw_photograph(tmp_path / "Images" / f"{seed}.jpg", seed) for seed in range(5)]
    (tmp_path / "prepared").mkdir()
    make_pack(tmp_path / "prepared", tmp_path, PictureFiles(paths), size=48)
    return paths


def found(paths: list[Path]) -> pixel_cache.Places:
    root = paths[0].parents[1]
    return find_prepared(root / "prepared", root, PictureFiles(paths))


def only_pack(paths: list[Path]) -> Path:
    (path,) = packs_in(paths[0].parents[1] / "prepared")
    return path


def test_every_photograph_is_its_own_prepared_one(packed):
    places = pickle.loads(pickle.dumps(found(packed)))  # as it travels to a spawned worker
    assert (len(places), places.size) == (5, 48)
    for i, path in enumerate(packed):
        assert places.load(i).size == (64, 48)
        expected = read_picture(path).resize((64, 48))
        assert np.abs(np.asarray(places.load(i), int) - np.asarray(expected, int)).mean() < 3


def test_photographs_in_any_order_and_others_between_them_are_found(packed):
    stranger = draw_photograph(packed[0].parent / "new.jpg", 9)
    chosen = [packed[3], stranger, packed[1]]
    places = found(chosen)
    assert places.pack_of.tolist() == [0, -1, 0]
    apart = [
        np.abs(np.asarray(places.load(i), int) - np.asarray(found(packed).load(j), int)).max()
        for i, j in ((0, 3), (2, 1))
    ]
    assert apart == [0, 0]


def test_a_source_with_another_size_or_time_does_not_count(packed):
    draw_photograph(packed[1], 7)
    status = packed[2].stat()
    os.utime(packed[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    packed[3].unlink()
    assert (found(packed).pack_of >= 0).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("changed", [{"version": 2}, {"pixels": "JPEG"}, {"filter": "box"}])
def test_a_pack_made_in_another_way_does_not_count(packed, monkeypatch, changed):
    monkeypatch.setattr(pixel_cache, "RECIPE", pixel_cache.RECIPE | changed)
    assert read_pack(only_pack(packed)) is None
    assert len(found(packed)) == 0


def test_a_pack_that_is_not_whole_does_not_count(packed):
    path = only_pack(packed)
    whole = path.read_bytes()
    for cut in (0, 10, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert read_pack(path) is None, cut
    path.write_bytes(b'{"recipe": 3}\n')
    assert read_pack(path) is None


def test_a_pack_that_goes_or_is_damaged_while_training_is_named(packed):
    places, path = found(packed), only_pack(packed)
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{path} cannot be read: .*python prepare\.py"):
            places.load(4)  # the last
        path.unlink(missing_ok=True)


def test_a_data_set_may_be_moved_with_what_was_made_of_it(packed, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("Images", "prepared"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert len(found([tmp_path / "elsewhere" / "Images" / path.name for path in packed])) == 5


def test_without_a_folder_nothing_is_prepared(tmp_path):
    path = draw_photograph(tmp_path / "a.jpg")
    places = find_prepared(tmp_path / "prepared", tmp_path, PictureFiles([path]))
    assert (len(places), places.size) == (0, None)
    assert PictureFiles([tmp_path / "missing.jpg"]).stamp(0) is None


# Pictures are stored once, upright and small; what is there stays, what has changed is made again.


@pytest.fixture(autouse=True)
def small_packs(monkeypatch):
    monkeypatch.setattr(pixel_cache, "PORTION", 3)


def photographs(root: Path, count: int = 8) -> list[Path]:
    return [draw_photograph(root / f"{seed}.jpg", seed) for seed in range(count)]


def prepare(root: Path, paths: list[Path], size: int = 48, num_workers: int = 0):
    return prepare_pictures(root / "prepared", root, PictureFiles(paths), size, num_workers)


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in packs_in(root / "prepared")}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_pictures_are_stored(tmp_path, num_workers):
    paths = photographs(tmp_path)
    assert prepare(tmp_path, paths, num_workers=num_workers).stored == 8
    assert len(packs_in(tmp_path / "prepared")) == 3
    places = find_prepared(tmp_path / "prepared", tmp_path, PictureFiles(paths))
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
    make_pack(tmp_path / "prepared", tmp_path, PictureFiles(paths[:3]), 48)
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
    places = find_prepared(tmp_path / "prepared", tmp_path, PictureFiles(paths))
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


def test_two_data_sets_may_share_a_folder(tmp_path):
    paths = photographs(tmp_path)
    prepare(tmp_path, paths)
    before = contents(tmp_path)
    prepare_pictures(tmp_path / "prepared", tmp_path / "other", PictureFiles([]), 48, 0)
    assert contents(tmp_path) == before


def test_another_size_replaces_what_is_there(tmp_path):
    paths = photographs(tmp_path)
    prepare(tmp_path, paths)
    prepare(tmp_path, paths, size=60)
    places = find_prepared(tmp_path / "prepared", tmp_path, PictureFiles(paths))
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
    places = find_prepared(tmp_path / "prepared", tmp_path, PictureFiles([turned, grey, clear]))
    assert places.load(0).size == (48, 64)
    assert all(np.asarray(places.load(i)).min() > 250 for i in (1, 2))
    assert all(places.load(i).mode == "RGB" for i in range(3))


def test_a_picture_smaller_than_asked_keeps_its_size(tmp_path):
    path = draw_photograph(tmp_path / "a.jpg", size=(40, 30))
    prepare(tmp_path, [path])
    assert find_prepared(tmp_path / "prepared", tmp_path, PictureFiles([path])).load(0).size == (40, 30)


def test_pictures_that_cannot_be_read_are_named_and_the_others_stored(tmp_path):
    paths = photographs(tmp_path, 5)
    paths[1].write_bytes(paths[1].read_bytes()[:-400])
    paths[3].unlink()
    outcome = prepare(tmp_path, paths)
    assert outcome.stored == 3
    assert outcome.unreadable == {str(paths[1]): "truncated JPEG", str(paths[3]): "no such file"}


def test_a_place_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    paths = photographs(tmp_path, 2)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/prepared can't be written: .*data\.prepared=PATH"):
        prepare_pictures(tmp_path / "file" / "prepared", tmp_path, PictureFiles(paths), 48, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("captioning.files.os.fsync", full)
    with pytest.raises(UserError, match="prepared can't be written: No space left on device"):
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


# `prepare.py` as a person runs it, and the training that follows.


@pytest.fixture
def root(tmp_path):
    """Flickr8k's layout, with photographs: a and b train."""
    flickr8k(tmp_path / "set")
    for seed, name in enumerate("abcd"):
        draw_photograph(tmp_path / "set" / "Images" / f"{name}.jpg", seed)
    return tmp_path / "set"


def test_pictures_are_prepared_and_training_says_that_it_reads_them(command, root, tmp_path):
    data = ("data=flickr8k", f"data.root={root}")
    status, output = command("prepare.py", *data, "size=32", "num_workers=0")
    assert status == 0
    assert "2 training pictures are in" in output and "pictures/s" in output
    assert "\r" not in output, "a bar is for terminals"
    assert len(packs_in(root / "prepared")) == 1
    small = ("model=tiny", "model.image_size=32", "model.patch_size=16", "data.tokenizer=null", "data.num_workers=0")
    status, output = command(
        "train.py", *data, *small, "logger=csv", "trainer=cpu", "trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}"
    )
    assert status == 0, output
    assert "training pictures: 2 prepared ones of 32 pixels in" in output


def test_unreadable_pictures_are_the_last_word(command, root):
    # with the ends of a sound JPEG, so that only decoding finds out
    (root / "Images" / "b.jpg").write_bytes(b"\xff\xd8\xff broken \xff\xd9")
    status, output = command("prepare.py", "data=flickr8k", f"data.root={root}", "num_workers=0")
    assert status == 1
    assert "1 training pictures are in" in output
    assert "error: 1 pictures cannot be read, such as" in output and "b.jpg (" in output


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("size=8", "size=8 must be a whole number from 32 to 4096; data.prepared=null trains on"),
        ("sizes=256", "there is no key sizes; conf/ lists them all; did you mean size?"),
        ("num_workers=many", "num_workers=many must be a whole number"),
        ("data.root=nowhere", "data.root=nowhere does not exist"),
        ("data.prepared=null", "data.prepared=null names no folder"),
    ],
)
def test_a_mistake_costs_a_sentence(command, root, override, told):
    status, output = command("prepare.py", "data=flickr8k", f"data.root={root}", override)
    assert status == 1
    assert f"error: {told}" in output.splitlines()[-1]


def test_drawn_pictures_are_not_prepared(command):
    assert command("prepare.py", "data=shapes")[1].startswith("error: data=shapes draws its pictures")
