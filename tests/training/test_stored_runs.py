"""A run learns the same from the same pictures, wherever they are stored; and resumes exactly there too."""

import json
import os
import signal
import tarfile
from pathlib import Path

import fsspec
import pytest
from data_sets import draw_photograph, write
from interrupted import at_call, die, differences, forked
from small_runs import TINY, configured

from captioning.config import TrainConfig
from captioning.data.remote import facts_of
from captioning.errors import UserError
from captioning.training.module import CaptioningModule
from captioning.training.run import train

SPLITS = {"train": range(6), "val": range(6, 8), "test": range(8, 9)}
LISTS = {"train": "train", "val": "dev", "test": "test"}


def captions_of(i: int) -> list[str]:
    return [f"photograph {i} of {kind}" for kind in ("waves", "colours", "the left")[: 1 + i % 3]]


@pytest.fixture(scope="session")
def stored(once) -> Path:
    """The same nine photographs, with one to three captions each, as files of Flickr8k's and as tars."""

    def make(root: Path) -> None:
        rows = [f"{i}.jpg#{n}\t{caption}" for i in range(9) for n, caption in enumerate(captions_of(i))]
        write(root / "files/Flickr8k.token.txt", *rows)
        for split, numbers in SPLITS.items():
            write(root / f"files/Flickr_8k.{LISTS[split]}Images.txt", *(f"{i}.jpg" for i in numbers))
            for i in numbers:
                draw_photograph(root / f"files/Images/{i}.jpg", i, size=(48, 36))
                texts = write(root / f"{i}.json", json.dumps({"captions": captions_of(i)}))
                (root / "tars").mkdir(exist_ok=True)
                with tarfile.open(root / f"tars/{split}-{i // 2}.tar", "a") as tar:
                    tar.add(root / f"files/Images/{i}.jpg", f"{i}.jpg")
                    tar.add(texts, f"{i}.json")

    return once("stored", make)


def run(run_dir: Path, data: str, *overrides: str, workers: int = 0) -> Path:
    """Train a tiny model on this data; the folder of the run."""
    tiny = [one for one in TINY if not one.startswith(("data", "trainer.val_check"))]
    common = ("data.tokenizer=null", "data.batch_size=2", "data.prepared=null", f"data.num_workers={workers}")
    train(configured(TrainConfig, *tiny, data, *common, f"run_dir={run_dir}", *overrides))
    return run_dir


def shards(folder: Path | str, cache: Path) -> tuple[str, ...]:
    patterns = {"root": "train-{0..2}.tar", "val_root": "val-*.tar", "test_root": "test-4.tar"}
    return (*(f"data.{key}='{folder}/{pattern}'" for key, pattern in patterns.items()), f"data.cache={cache}")


@pytest.fixture(scope="session")
def from_files(once, stored) -> Path:
    """A run from files of their own."""
    return once("from_files", lambda folder: run(folder / "run", "data=flickr8k", f"data.root={stored}/files")) / "run"


def killed_and_resumed(run_dir: Path, *data: str, kind: str = "data=shards") -> Path:
    """A run that is killed in its second epoch, while a worker loads, and goes on."""

    def killed():
        at_call(6, die, CaptioningModule, "training_step")
        run(run_dir, kind, *data, workers=1)

    assert os.WTERMSIG(forked(killed)) == signal.SIGKILL
    return run(run_dir, kind, *data, f"resume={run_dir}")


DATA_SETS_NAME = ["results.md"]  # names the data set, and so alone differs


def test_a_run_from_shards_is_the_run_from_files_to_the_bit_also_killed_and_resumed(stored, from_files, tmp_path):
    resumed = killed_and_resumed(tmp_path / "run", *shards(stored / "tars", tmp_path / "cache"))
    assert differences(resumed, from_files) == DATA_SETS_NAME


def test_so_is_a_run_from_a_folder_of_ones_own(stored, from_files, tmp_path):
    rows = [
        json.dumps({"image": f"{i}.jpg", "text": caption, "split": split})
        for split, numbers in SPLITS.items()
        for i in numbers
        for caption in captions_of(i)
    ]
    captions = write(tmp_path / "mine.jsonl", *rows)
    data = (f"data.root={stored}/files/Images", f"data.captions={captions}")
    assert differences(killed_and_resumed(tmp_path / "run", *data, kind="data=folder"), from_files) == DATA_SETS_NAME


@pytest.mark.slow  # that batches are equal is shown where tables are tested
def test_so_is_a_run_from_tables(stored, from_files, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets writes this data set")
    of = {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    rows = datasets.DatasetDict()
    for split, numbers in SPLITS.items():
        pictures = [(stored / f"files/Images/{i}.jpg").read_bytes() for i in numbers]
        images = [{"bytes": one, "path": f"{i}.jpg"} for i, one in zip(numbers, pictures, strict=True)]
        columns = {"image": images, "caption": [captions_of(i) for i in numbers]}
        rows[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(of))
        rows[split].to_parquet(str(tmp_path / f"{split}.parquet"), batch_size=2)
    rows.save_to_disk(str(tmp_path / "saved"))
    cache = f"data.cache={tmp_path / 'cache'}"
    parquet = (
        f"data.{key}={tmp_path / split}.parquet"
        for key, split in (("root", "train"), ("val_root", "val"), ("test_root", "test"))
    )
    run(tmp_path / "parquet", "data=shards", *parquet, cache)
    run(tmp_path / "hub", "data=hub", f"data.name={tmp_path / 'saved'}", cache, workers=1)
    assert differences(tmp_path / "parquet", from_files) == differences(tmp_path / "hub", from_files) == DATA_SETS_NAME


@pytest.fixture(scope="module")
def bucket():
    """`s3://shards` of a server of moto's on the loopback, with credentials in the environment."""
    server_of = pytest.importorskip("moto.server", reason="moto serves s3:// on the loopback")
    pytest.importorskip("s3fs", reason="s3fs reads s3://")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**dict.fromkeys(keys, "test"), "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        fsspec.filesystem("s3").mkdir("shards")
        yield "s3://shards"
    server.stop()


def test_so_is_a_run_from_shards_that_lie_in_s3(bucket, stored, from_files, tmp_path):
    fsspec.filesystem("s3").put(f"{stored}/tars/", "shards/set/", recursive=True)
    resumed = killed_and_resumed(tmp_path / "run", *shards(f"{bucket}/set", tmp_path / "cache"))
    assert differences(resumed, from_files) == DATA_SETS_NAME


def test_what_keeps_shards_in_s3_from_being_read_is_said(bucket, tmp_path, monkeypatch):
    def refused(url: str) -> str:
        with pytest.raises(UserError) as error:
            facts_of(url)
        return str(error.value)

    assert refused("s3://nowhere/a.tar").startswith("s3://nowhere/a.tar: there is no bucket nowhere; check")
    assert refused(f"{bucket}/a.tar") == f"{bucket}/a.tar does not exist"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fsspec.filesystem("s3").clear_instance_cache()
    assert "there are no credentials for s3://; set AWS_ACCESS_KEY_ID and" in refused(f"{bucket}/a.tar")
