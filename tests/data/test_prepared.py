"""What a pack says, and that a picture which has changed since is never served."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_sets import draw_photograph

from captioning.data import pixel_cache as prepared
from captioning.data.images import read_picture
from captioning.data.pixel_cache import find_prepared, make_pack, packs_in, read_pack, stamp_of
from captioning.errors import UserError


@pytest.fixture
def photographs(tmp_path) -> list[Path]:
    """Five photographs with a pack of them in `prepared`."""
    paths = [draw_photograph(tmp_path / "Images" / f"{seed}.jpg", seed) for seed in range(5)]
    (tmp_path / "prepared").mkdir()
    make_pack(tmp_path / "prepared", tmp_path, paths, size=48)
    return paths


def found(paths: list[Path]) -> prepared.Places:
    root = paths[0].parents[1]
    return find_prepared(root / "prepared", root, paths)


def only_pack(paths: list[Path]) -> Path:
    (path,) = packs_in(paths[0].parents[1] / "prepared")
    return path


def test_every_photograph_is_its_own_prepared_one(photographs):
    places = pickle.loads(pickle.dumps(found(photographs)))  # as it travels to a spawned worker
    assert (len(places), places.size) == (5, 48)
    for i, path in enumerate(photographs):
        assert places.load(i).size == (64, 48)
        expected = read_picture(path).resize((64, 48))
        assert np.abs(np.asarray(places.load(i), int) - np.asarray(expected, int)).mean() < 3


def test_photographs_in_any_order_and_others_between_them_are_found(photographs):
    stranger = draw_photograph(photographs[0].parent / "new.jpg", 9)
    chosen = [photographs[3], stranger, photographs[1]]
    places = found(chosen)
    assert places.pack_of.tolist() == [0, -1, 0]
    apart = [
        np.abs(np.asarray(places.load(i), int) - np.asarray(found(photographs).load(j), int)).max()
        for i, j in ((0, 3), (2, 1))
    ]
    assert apart == [0, 0]


def test_a_source_with_another_size_or_time_does_not_count(photographs):
    draw_photograph(photographs[1], 7)
    status = photographs[2].stat()
    os.utime(photographs[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    photographs[3].unlink()
    assert (found(photographs).pack_of >= 0).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("changed", [{"version": 2}, {"pixels": "JPEG"}, {"filter": "box"}])
def test_a_pack_made_in_another_way_does_not_count(photographs, monkeypatch, changed):
    monkeypatch.setattr(prepared, "RECIPE", prepared.RECIPE | changed)
    assert read_pack(only_pack(photographs)) is None
    assert len(found(photographs)) == 0


def test_a_pack_that_is_not_whole_does_not_count(photographs):
    path = only_pack(photographs)
    whole = path.read_bytes()
    for cut in (0, 10, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert read_pack(path) is None, cut
    path.write_bytes(b'{"recipe": 3}\n')
    assert read_pack(path) is None


def test_a_pack_that_goes_or_is_damaged_while_training_is_named(photographs):
    places, path = found(photographs), only_pack(photographs)
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{path} cannot be read: .*python prepare\.py"):
            places.load(4)  # the last
        path.unlink(missing_ok=True)


def test_a_data_set_may_be_moved_with_what_was_made_of_it(photographs, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("Images", "prepared"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert len(found([tmp_path / "elsewhere" / "Images" / path.name for path in photographs])) == 5


def test_without_a_folder_nothing_is_prepared(tmp_path):
    path = draw_photograph(tmp_path / "a.jpg")
    places = find_prepared(tmp_path / "prepared", tmp_path, [path])
    assert (len(places), places.size) == (0, None)
    assert stamp_of(tmp_path / "missing.jpg") is None
