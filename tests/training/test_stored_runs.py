"""A run learns the same from the same pictures, wherever they are stored; and resumes exactly there too."""

import csv
import json
import os
import signal
import tarfile
import time
from collections import Counter
from pathlib import Path
from shutil import copytree
from socket import socket

import fsspec
import pytest
import torch
from data_sets import draw_photograph, write
from interrupted import at_call, die, differences, forked
from lightning.pytorch.utilities import rank_zero_only
from small_runs import TINY, configured

from captioning.config import TrainConfig
from captioning.data import remote
from captioning.data import shards as shards_of
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
        server._server.app = counting(server._server.app)
        yield "s3://shards"
    server.stop()


SENT: Counter = Counter()  # bytes of objects, by the access key of who asked


def counting(app):
    """The WSGI application, with what it answers to GET counted in `SENT`."""

    def counted(environ, start):
        key = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0]

        def started(status, headers, *more):
            if environ["REQUEST_METHOD"] == "GET" and "HTTP_RANGE" in environ:
                SENT[key] += int(dict(headers)["Content-Length"])
            return start(status, headers, *more)

        return app(environ, started)

    return counted


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


MANY = 24  # photographs a tar, of about 3 KB each


@pytest.fixture(scope="module")
def larger(once, bucket) -> int:
    """Six tars to train on and one to validate on, in the bucket; the bytes of the six."""

    def make(folder: Path) -> None:
        for i in range(7 * MANY):
            draw_photograph(folder / f"{i}.jpg", i, size=(64, 48))
            caption = write(folder / f"{i}.txt", captions_of(i)[0])
            with tarfile.open(folder / f"{i // MANY}.tar", "a") as tar:
                tar.add(folder / f"{i}.jpg", f"{i}.jpg")
                tar.add(caption, f"{i}.txt")

    folder = once("larger", make)
    tars = sorted(folder.glob("*.tar"))
    storage = fsspec.filesystem("s3", skip_instance_cache=True)  # a test before may have made one without credentials
    for tar in tars:
        storage.put(str(tar), f"shards/larger/{tar.name}")
    return sum(tar.stat().st_size for tar in tars[:-1])


class Machines:
    """Tasks of a SLURM job, one on each of so many machines, each with a cache of its own for 16 small blocks."""

    LIMIT = 16 * 21_000

    def __init__(self, folder: Path, bucket: str):
        self.folder, self.bucket, self.most = folder, bucket, 0

    def train(self, run_dir: Path, machines: int, *overrides: str, killed_in: int | None = None) -> list[int]:
        """The bytes that each has fetched, with caches that were empty before."""
        SENT.clear()
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for machine in range(machines):
            if (child := os.fork()) == 0:
                try:
                    os.environ.update(self._job(machine, machines, port))
                    self._task(run_dir, machine, machines, overrides, killed_in)
                    os._exit(0)
                finally:
                    os._exit(70)
            children.append(child)
        statuses = dict.fromkeys(children, -1)
        while -1 in statuses.values():
            for child in [child for child, status in statuses.items() if status < 0]:
                done, status = os.waitpid(child, os.WNOHANG)
                statuses[child] = status if done else -1
            for machine in range(machines):
                files = (self.folder / f"{run_dir.name}-{machine}").glob("*.block*")  # also half-written
                self.most = max(self.most, sum(map(size_of, files)))
            time.sleep(0.002)
        assert set(statuses.values()) == {signal.SIGKILL if killed_in else 0}
        return [SENT[f"machine{machine}"] for machine in range(machines)]

    def _job(self, machine: int, machines: int, port: int) -> dict[str, str]:
        job = {"JOB_ID": 7, "JOB_NAME": "train", "NNODES": machines, "NTASKS": machines, "NODEID": machine}
        job |= {"PROCID": machine, "LOCALID": 0, "NTASKS_PER_NODE": 1, "STEP_NUM_TASKS": machines}
        job |= {"JOB_NODELIST": "localhost", "NODELIST": "localhost"}
        own = {"AWS_ACCESS_KEY_ID": f"machine{machine}", "MASTER_PORT": str(port)}
        return {f"SLURM_{name}": str(value) for name, value in job.items()} | own

    def _task(self, run_dir, machine, machines, overrides, killed_in):
        torch.set_num_threads(1)
        rank_zero_only.rank = machine
        for module in (remote, shards_of):
            module.BLOCK_BYTES, module.OVERLAP_BYTES = 20_000, 1000
        if killed_in:
            at_call(killed_in, die, CaptioningModule, "training_step")
        tiny = [one for one in TINY if not one.startswith(("data", "trainer=", "trainer.val_check", "trainer.acc"))]
        trainer = ("trainer=slurm", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32")
        data = (f"data.root='{self.bucket}/larger/{{0..5}}.tar'", f"data.val_root={self.bucket}/larger/6.tar")
        local = (f"data.local_cache={self.folder}/{run_dir.name}-{machine}", f"data.cache={self.folder}/indices")
        rows = (f"data.batch_size={8 // machines}", f"data.cache_gigabytes={self.LIMIT / 1e9}", "data.num_workers=1")
        many = ("scores.pictures=0", "data.tokenizer=null", "data.lanes=2", "model.dropout=0", "trainer.max_epochs=2")
        config = (*tiny, "data=shards", *trainer, *data, *local, *rows, *many, f"run_dir={run_dir}", *overrides)
        train(configured(TrainConfig, *config))


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def logged(run_dir: Path) -> list[dict[str, float]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        return [
            {name: float(row[name]) for name in row if row[name] and "/" in name and "perf" not in name} for row in rows
        ]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_machines_train_as_one_fetch_half_each_and_go_on_exactly_from_sigkill(bucket, larger, tmp_path):
    machines = Machines(tmp_path, bucket)
    indexing = machines.train(tmp_path / "indexed", 2, "trainer.max_epochs=1")
    assert sum(indexing) < 3 * larger, "one of them has read a shard for its index, then the epoch was halved"
    of_one = machines.train(tmp_path / "one", 1)
    of_two = machines.train(tmp_path / "two", 2)
    without_lanes = machines.train(tmp_path / "without", 2, "data.lanes=1")
    machines.train(tmp_path / "resumed", 2, killed_in=27)  # of 18 batches an epoch
    copytree(tmp_path / "resumed", tmp_path / "fewer")
    machines.train(tmp_path / "resumed", 2, f"resume={tmp_path / 'resumed'}")
    assert differences(tmp_path / "resumed", tmp_path / "two") == []
    assert Machines.LIMIT / 2 < machines.most <= Machines.LIMIT
    machines.train(
        tmp_path / "fewer", 1, f"resume={tmp_path / 'fewer'}", "data.lanes=null", "data.cache_gigabytes=0.001"
    )
    assert len(logged(tmp_path / "one")) == 20
    for run_dir in (tmp_path / "two", tmp_path / "fewer"):
        for ours, expected in zip(logged(run_dir), logged(tmp_path / "one"), strict=True):
            assert ours == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert 2 * larger < of_one[0] < 2.6 * larger, "two epochs, and what is validated on"
    assert max(of_two) < 0.55 * of_one[0] and min(without_lanes) > 0.8 * of_one[0], (of_one, of_two, without_lanes)
