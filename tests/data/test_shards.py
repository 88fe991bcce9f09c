"""Pictures in tars: what is found there, as webdataset finds it, and what is said of shards that are not whole."""

import io
import json
import logging
import os
import pickle
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_sets import draw_photograph

from captioning.data import index as indices
from captioning.data import remote, shards
from captioning.data.batch import PictureFormat
from captioning.data.datamodule import ShardsDataModule
from captioning.data.images import UnreadablePicture
from captioning.data.index import Columns, Index, usable
from captioning.data.remote import Blocks
from captioning.data.rows import EpochBatches
from captioning.data.shards import ShardPictures, index_of, shard_names
from captioning.errors import UserError

NO_AUGMENTATION = {"crop_scale": None, "brightness": 0.0, "contrast": 0.0, "flip": False}
USUAL = Columns(None, None, lines=False)
JPEG = b"\xff\xd8\xff not decoded \xff\xd9"  # both ends of one


@pytest.fixture
def blocks(tmp_path) -> Blocks:
    return Blocks(tmp_path / "blocks", 10**9)


@pytest.fixture
def indexed(tmp_path, blocks):
    """`indexed(tar)`: its index."""
    return lambda tar, columns=USUAL: index_of(str(tar), columns, tmp_path / "cache", blocks)


def captioned(indices: list[Index], on_missing: str) -> ShardPictures:
    return usable(indices, ShardPictures(indices, Blocks(Path(), 0)), on_missing)


def written(path: Path, **members: bytes | str | dict) -> Path:
    """A tar of these members; `a__jpg` is a.jpg."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = json.dumps(content) if isinstance(content, dict | list) else content
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def found(index: Index) -> dict[str, list[str]]:
    return {name: list(captions) for name, captions in zip(index.rows.names, index.rows.captions, strict=True)}


def test_rows_are_those_that_webdataset_yields(tmp_path, indexed, blocks):
    wds = pytest.importorskip("webdataset", reason="webdataset writes and reads these shards")
    with wds.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=3, verbose=0) as sink:
        for i in range(7):
            picture = draw_photograph(tmp_path / f"{i}.jpg", i).read_bytes()
            key = f"some/folder.{i}/{i:03d}" if i == 5 else f"{i:03d}"  # a key may hold folders
            sink.write({"__key__": key, "jpg": picture, "txt": f"caption {i} ünï", "json": {"caption": "x", "n": i}})
    names = shard_names(str(tmp_path / "{00000..00002}.tar"), "data.root")
    theirs = [
        (row["__key__"] + ".jpg", row["jpg"], row["txt"].decode()) for row in wds.WebDataset(names, shardshuffle=False)
    ]
    pictures = ShardPictures([indexed(name) for name in names], blocks)
    pictures = pickle.loads(pickle.dumps(pictures.part(range(len(pictures)))))  # as it travels to a spawned worker
    captions = [list(one) for one in pictures.rows.captions]
    ours = [(pictures.rows.names[i], pictures.read(i), *captions[i]) for i in range(len(pictures))]
    assert ours == theirs and pictures.name(4) == f"{names[1]}/004.jpg"


@pytest.mark.parametrize(
    ("texts", "columns", "captions"),
    [
        ({"a__json": {"caption": " a  dog ", "url": "x"}}, USUAL, ["a dog"]),
        ({"a__json": {"captions": ["a dog", "", "two"]}, "a__txt": "a dog"}, USUAL, ["a dog", "two"]),
        ({"a__json": ["a dog", "two"]}, USUAL, ["a dog", "two"]),
        ({"a__txt": "first\r\nsecond\n"}, USUAL, ["first second"]),
        ({"a__txt": "first\r\nsecond\n"}, Columns(None, None, lines=True), ["first", "second"]),
        ({"a__json": {"caption": "no", "alt": "yes"}, "a__txt": "no"}, Columns(None, "alt", lines=False), ["yes"]),
        ({"a__json": {"caption": "no"}, "a__words": "yes"}, Columns(None, "words", lines=False), ["yes"]),
        ({"a__txt": "no"}, Columns(None, "alt", lines=False), []),
        ({"a__json": {"caption": None}}, USUAL, []),
    ],
)
def test_captions_are_in_texts_beside_pictures(tmp_path, indexed, texts, columns, captions):
    assert found(indexed(written(tmp_path / "a.tar", a__jpg=JPEG, **texts), columns)) == {"a.jpg": captions}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"a__jpg": JPEG[:-1], "a__txt": "x"}, "not a picture|truncated"),
        ({"a__txt": "x"}, "a caption without a picture"),
        (
            {"a__jpg": JPEG, "a__png": JPEG, "a__txt": "x"},
            "key a has 2 pictures, a.jpg and a.png; data.image_column=SUF",
        ),
        ({"a__jpg": JPEG, "a__json": "{"}, "a.json is not valid JSON"),
        ({"a__jpg": JPEG, "a__txt": b"\xff"}, "a.txt is not UTF-8"),
    ],
)
def test_what_is_no_picture_with_a_caption_is_named_or_left_out(tmp_path, indexed, blocks, members, reason, caplog):
    index = indexed(written(tmp_path / "a.tar", **members, b__jpg=JPEG, b__txt="sound"))
    with pytest.raises(
        UserError, match=rf"^1 of 2 pictures are unreadable, such as \S+/a\.tar/a\S* \(.*({reason})"
    ) as error:
        captioned([index], "error")
    assert str(error.value).endswith("; data.on_missing=skip leaves them out")
    assert list(captioned([index], "skip").rows.names) == ["b.jpg"] and "1 of 2 pictures" in caplog.text


def test_pictures_lie_in_the_order_of_their_places(tmp_path, indexed):
    tar = written(tmp_path / "a.tar", a__txt="x", b__jpg=JPEG, b__txt="y", a__jpg=JPEG)
    assert found(indexed(tar)) == {"b.jpg": ["y"], "a.jpg": ["x"]}
    assert list(indexed(tar).rows.names) == ["b.jpg", "a.jpg"]


def test_a_name_that_comes_twice_is_one_key_with_two_pictures(tmp_path, indexed):
    tar = written(tmp_path / "a.tar", a__jpg=JPEG, a__txt="x")
    with tarfile.open(tar, "a") as more:
        more.addfile(tarfile.TarInfo("a.jpg"))
    assert indexed(tar).rows.flaws[0] == "its key a has 2 pictures, a.jpg and a.jpg"
    chosen = written(tmp_path / "b.tar", a__jpg=JPEG, a__png=b"mask", a__txt="x")
    assert not indexed(chosen, Columns("jpg", None, lines=False)).rows.flaws[0]


def test_a_shard_cut_anywhere_is_refused_or_gives_what_is_whole(tmp_path, indexed, blocks, caplog):
    tar = written(tmp_path / "a.tar", a__jpg=JPEG * 40, a__txt="x", b__jpg=JPEG * 40, b__txt="y")
    whole = tar.read_bytes()
    for cut, keys in (
        (2600, ["a.jpg"]),
        (3 * 512 + 200, ["a.jpg"]),
        (3100, ["a.jpg"]),  # in the bytes of b.jpg
        (4096, ["a.jpg", "b.jpg"]),
        (5120, ["a.jpg", "b.jpg"]),
    ):
        tar.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"^1 of 1 shards are not whole, such as \S+a\.tar \(cut short or damaged"):
            captioned([indexed(tar)], "error")
        assert [name for name in indexed(tar).rows.names if name.endswith("jpg")] == keys, cut


def test_an_index_is_made_once_and_anew_where_the_shard_has_changed(tmp_path, indexed, monkeypatch):
    tar, made = written(tmp_path / "a.tar", a__jpg=JPEG, a__txt="x"), []
    original = shards._tar_index
    monkeypatch.setattr(shards, "_tar_index", lambda *given: made.append(1) or original(*given))
    assert found(indexed(tar)) == found(indexed(tar)) == {"a.jpg": ["x"]} and len(made) == 1
    written(tar, a__jpg=JPEG, a__txt="y")
    os.utime(tar, (1, 1))
    assert found(indexed(tar)) == {"a.jpg": ["y"]} and len(made) == 2
    for damaged in (path for path in (tmp_path / "cache").iterdir()):
        damaged.write_bytes(damaged.read_bytes()[:300])
    assert found(indexed(tar)) == {"a.jpg": ["y"]} and len(made) == 3


def test_processes_that_want_an_index_at_once_make_one(tmp_path, indexed, monkeypatch):
    tar, made = written(tmp_path / "a.tar", a__jpg=JPEG, a__txt="x"), []
    original = shards._tar_index

    def slow(*given):
        time.sleep(0.05)
        made.append(1)
        return original(*given)

    monkeypatch.setattr(shards, "_tar_index", slow)
    with ThreadPoolExecutor(3) as threads:
        assert [found(index) for index in threads.map(indexed, [tar] * 3)] == [{"a.jpg": ["x"]}] * 3
    assert len(made) == 1 and len(list((tmp_path / "cache").iterdir())) == 1


def test_a_packed_tar_is_refused(tmp_path, indexed):
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(UserError, match="is packed with gzip, so nothing in it can be read alone; unpack it"):
        indexed(tmp_path / "a.tar")


def test_patterns_name_shards(tmp_path):
    for name in ("a-0.tar", "a-1.tar", "b-0.tar", "c.tar.gz"):
        (tmp_path / name).touch()

    def names(*patterns):
        return [Path(one).name for one in shard_names([f"{tmp_path}/{p}" for p in patterns], "data.root")]

    assert names("{b,a}-0.tar", "a-{0..1}.tar") == ["b-0.tar", "a-0.tar", "a-1.tar"]
    assert names("a-*.tar") == ["a-0.tar", "a-1.tar"] and names("") == ["a-0.tar", "a-1.tar", "b-0.tar"]
    with pytest.raises(UserError, match=r"data\.root: 1 of 3 shards are missing, such as \S+/a-2\.tar; give"):
        names("a-{0..2}.tar")
    with pytest.raises(UserError, match=r"data\.root: \S+/e does not exist; give a folder of"):
        names("e")
    with pytest.raises(UserError, match=r"c\.tar\.gz is neither a \.tar nor"):
        names("c.tar.gz")
    with pytest.raises(UserError, match=r"data\.root: nothing matches \S+/d-\*\.tar, seen from"):
        names("d-*.tar")


def test_names_that_come_again_are_told_apart_and_a_picture_in_two_splits_is_refused(tmp_path, indexed, blocks, caplog):
    caplog.set_level(logging.INFO)
    one = ShardPictures([indexed(written(tmp_path / "a.tar", a__jpg=JPEG, a__txt="x"))], blocks)
    two = ShardPictures([indexed(written(tmp_path / "b.tar", a__jpg=JPEG + JPEG, a__txt="x"))], blocks)
    assert [list(ids) for ids in indices.ids_of([one, two])] == [[f"{tmp_path}/{n}.tar/a.jpg"] for n in "ab"]
    indices.refuse_shared({"train": one, "val": two})
    same = ShardPictures([indexed(written(tmp_path / "c.tar", a__jpg=JPEG, a__txt="x", b__jpg=JPEG))], blocks)
    with pytest.raises(UserError, match=r"a\.tar/a\.jpg is in train, and \S+c\.tar/a\.jpg, the same picture, in val"):
        indices.refuse_shared({"train": one, "val": same})
    indices.refuse_shared({"train": one, "val": same.part(np.array([1]))})
    assert "1 pictures of val are in train too, to the byte, such as" in caplog.text


def test_an_epoch_fetches_each_block_of_shards_elsewhere_about_once(tmp_path, monkeypatch):
    fetched = []
    for module in (remote, shards):
        monkeypatch.setattr(module, "BLOCK_BYTES", 20_000)
        monkeypatch.setattr(module, "OVERLAP_BYTES", 1000)
    original = remote.RemoteFile._fetched
    monkeypatch.setattr(remote.RemoteFile, "_fetched", lambda *given: fetched.append(given[1]) or original(*given))
    urls = []
    for shard in range(4):
        members = {f"{i}__{kind}": JPEG * 30 if kind == "jpg" else "x" for i in range(60) for kind in ("jpg", "txt")}
        urls.append(f"file://{written(tmp_path / f'{shard}.tar', **members)}")
    blocks = Blocks(tmp_path / "blocks", 8 * 21_000)
    pictures = ShardPictures([index_of(url, USUAL, tmp_path / "cache", blocks) for url in urls], blocks)
    assert len(fetched) == (there := sum(-(-Path(url[7:]).stat().st_size // 20_000) for url in urls))
    near = pictures.neighbours()
    fetched.clear()
    order = EpochBatches(len(pictures), 8, shuffle=True, seed=1, neighbours=near)
    for row in (row for batch in order for _, row in batch):
        assert pictures.read(row) == JPEG * 30
    assert there - 4 <= len(fetched) <= there, "the last block of a tar may be its end alone"
    fetched.clear()
    for row in (row for batch in EpochBatches(len(pictures), 8, shuffle=True, seed=1) for _, row in batch):
        pictures.read(row)
    assert len(fetched) > 3 * there, "without"


CPU = SimpleNamespace(root_device=torch.device("cpu"))


@pytest.fixture
def runs_of(tmp_path, monkeypatch):
    """`runs_of(machine, local rank, lanes)`: which runs this rank of two machines with two each trains on; and all."""
    monkeypatch.setattr(shards, "BLOCK_BYTES", 20_000)
    for shard in range(5):
        keys = [f"{shard}-{i}__{kind}" for i in range(40) for kind in ("jpg", "txt")]
        written(tmp_path / f"{shard}.tar", **{key: JPEG * 30 if key.endswith("jpg") else "x" for key in keys})

    def made(machine, local, lanes):
        named = {"root": f"{tmp_path}/{{0..3}}.tar", "val_root": f"{tmp_path}/4.tar", "test_root": None}
        columns = {"image_column": None, "caption_column": None, "captions_per_file": "one", "on_missing": "error"}
        cache = {"cache": str(tmp_path / "c"), "local_cache": None, "cache_gigabytes": 0.2, "lanes": lanes}
        common = {"dataset": "shards", "fraction": 1.0, "prepared": None, "augmentation": NO_AUGMENTATION, "seed": 1}
        rows = {"tokenizer": None, "batch_size": 4, "captions_per_image": 5, "max_tokens": 64, "num_workers": 0}
        module = ShardsDataModule(**named, **columns, **cache, **common, **rows, overfit_images=None)
        module.connect(module.new_tokenizer(), PictureFormat(size=(16, 16)), max_positions=64)
        place = {"global_rank": 2 * machine + local, "local_rank": local, "node_rank": machine}
        module.trainer = SimpleNamespace(num_nodes=2, world_size=4, strategy=CPU, **place)
        runs = module.splits["train"].neighbours.run_of
        return {int(runs[row]) for batch in module.train_dataloader().batch_sampler for _, row in batch}, set(
            runs.tolist()
        )

    return made


def test_the_ranks_of_a_machine_read_the_same_lanes_and_those_of_two_machines_others(runs_of, caplog):
    first, other, far, every = *(runs_of(*place, lanes=2)[0] for place in ((0, 0), (0, 1), (1, 0))), runs_of(0, 0, 2)[1]
    assert len(every) > 15 and len(first & other) > 0.7 * len(every) / 2
    assert len(first & far) <= 1 and len((first | other) - every) == 0 and len(first | other | far) > 0.8 * len(every)
    assert "no multiple" not in caplog.text
    assert len(runs_of(0, 0, lanes=1)[0]) > 0.7 * len(every)
    assert "data.lanes=1 is no multiple of the 2 machines: each fetches 1/1 of the shards, not 1/2; take lanes=2" in (
        caplog.text
    )
    with pytest.raises(
        UserError, match=r"^data\.lanes=500: each machine reads 250 of them, .* and \d+ fit; raise data\."
    ):
        runs_of(0, 0, lanes=500)


def test_a_shard_that_becomes_shorter_in_training_is_named(tmp_path, indexed, blocks):
    pictures = ShardPictures([indexed(tar := written(tmp_path / "a.tar", a__jpg=JPEG, a__txt="x"))], blocks)
    os.truncate(tar, 520)
    with pytest.raises(UnreadablePicture, match="shorter since it was indexed"):
        pictures.read(0)
