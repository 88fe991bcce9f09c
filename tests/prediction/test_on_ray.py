"""Predictions on a Ray cluster of this machine: the rows of engine=local, whatever is killed on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT
from parts import jpeg, rows_in, tars
from small_runs import SMOKE, composed

ray = pytest.importorskip("ray", reason="ray is not installed")

# ruff: noqa: E402  # what needs ray
from captioning.cli import configured
from captioning.config import PredictConfig
from captioning.data.stored import StoredPictures
from captioning.prediction.engines import Rows
from captioning.prediction.inputs import find_inputs
from captioning.prediction.journal import Journal
from captioning.prediction.on_ray import Cluster
from captioning.prediction.parts import Part, Reading, parts_of
from captioning.prediction.plan import reading_of
from captioning.prediction.run import job_of, predict
from captioning.training.run import train
from captioning.weights import find_weights


@pytest.fixture(scope="module")
def run_dir(once) -> Path:
    return once("a run", lambda folder: train(composed(folder, run=SMOKE)))


def test_rows_are_those_of_this_machine(run_dir, tmp_path, capfd):
    folder = tars(tmp_path / "in", shards=2, pictures=5)
    here = predict(config(run_dir, folder, "here", "format=parquet"))
    there = predict(config(run_dir, folder, "there", "format=parquet", "engine=ray"))
    assert (here.captioned, here.failed) == (there.captioned, there.failed) == (10, 0)
    for name in ("00000.parquet", "00001.parquet", "_SUCCESS"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert not ray.is_initialized()


@pytest.mark.slow
def test_one_file_is_that_of_this_machine_also_where_it_was_stopped(run_dir, tmp_path):
    folder = tars(tmp_path / "in", shards=3, pictures=5)
    (tmp_path / "photo.jpg").write_bytes(jpeg(99))
    given = ("gallery=true", f"input=[{folder},{tmp_path / 'photo.jpg'}]")
    here = predict(config(run_dir, folder, "here.csv", *given))
    add, added = Journal.add, []

    def stops(journal: Journal, record) -> None:
        add(journal, record)
        added.append(record.place)
        if len(added) == 7:
            raise KeyboardInterrupt

    with mock.patch.object(Journal, "add", stops), pytest.raises(KeyboardInterrupt):
        predict(config(run_dir, folder, "there.csv", "engine=ray", *given))
    assert not (tmp_path / "there.csv").exists() and not ray.is_initialized()
    there = predict(config(run_dir, folder, "there.csv", "engine=ray", "resume=true", *given))
    assert (here.captioned, here.failed) == (there.captioned, there.failed) == (16, 0)
    for suffix in ("csv", "csv.settings.json"):
        assert (tmp_path / f"there.{suffix}").read_bytes() == (tmp_path / f"here.{suffix}").read_bytes()
    page = (tmp_path / "there.csv.html").read_text()
    assert page.replace("there.csv", "here.csv") == (tmp_path / "here.csv.html").read_text()


def config(run_dir: Path, folder: Path, output: str, *given: str) -> PredictConfig:
    usual = [
        f"checkpoint={run_dir}",
        f"input={folder}",
        f"output={folder.parent / output}{'' if '.' in output else '/'}",
        "decoding.max_new_tokens=5",
    ]
    return configured(PredictConfig, *usual, "device=cpu", "batch_size=4", f"cache={folder.parent / 'cache'}", *given)


@dataclass(frozen=True)
class Poisoned(Reading):
    """A picture ends the process that reads it; so does opening a part."""

    picture: str = ""
    part: str = ""

    def opened(self, part: Part) -> StoredPictures:
        if part.name == self.part:
            os.kill(os.getpid(), signal.SIGKILL)
        pictures = super().opened(part)
        usual = pictures.read

        def read(i: int) -> bytes:
            if self.picture and pictures.name(i).endswith(self.picture):
                os.kill(os.getpid(), signal.SIGKILL)
            return usual(i)

        pictures.read = read  # type: ignore[method-assign]
        return pictures


@pytest.mark.slow
def test_rows_are_those_of_this_machine_and_a_deadly_picture_is_named(run_dir, tmp_path, caplog):
    folder = tars(tmp_path / "in", shards=3, pictures=9)
    there = config(run_dir, folder, "there", "engine=ray", "ray.tries=1")
    here = predict(config(run_dir, folder, "here"))
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with Cluster(there) as cluster:
        weights = find_weights(there.checkpoint)
        reading = reading_of(there, weights)
        parts = parts_of(find_inputs(there.input), 100)
        job = job_of(cluster.settled(), weights, reading, sizes=False)
        made = list(cluster.caption(parts, job))
        usual = rows_in(tmp_path / "here")
        assert all(isinstance(one, Rows) for one in made)
        rows = {record.path: record.line() for one in made for record in one.records}
        assert rows == usual
        assert here.captioned == len(rows) == 27

        deadly = Poisoned(**vars(reading), picture="000000013.jpg", part=parts[2].name)
        made = list(cluster.caption(parts, job_of(cluster.settled(), weights, deadly, sizes=False)))
        failed = [one for one in made if not isinstance(one, Rows)]
        assert [(one.part.name, one.reason) for one in failed] == [
            (parts[2].name, f"{parts[2].shard}: opening it ended the process that did, once")
        ]
        records = {record.path: record for one in made if isinstance(one, Rows) for record in one.records}
        assert len(records) == 18
        (named,) = (record for record in records.values() if record.error)
        assert named.path.endswith("000000013.jpg") and "ended the process" in named.error
        others = {path: record.line() for path, record in records.items() if not record.error}
        assert others == {path: usual[path] for path in others}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_rows_are_all_there_and_none_twice_whatever_was_killed(run_dir, once, tmp_path, seed):
    psutil = pytest.importorskip("psutil")
    from ray.cluster_utils import Cluster as Nodes

    def undisturbed(folder: Path) -> None:
        predict(config(run_dir, tars(folder / "in", shards=16, pictures=40), "out"))

    whole, rng = once("undisturbed", undisturbed), random.Random(seed)
    output = tmp_path / "out"
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        second = nodes.add_node(num_cpus=2)

        def started(*given: str) -> subprocess.Popen:
            keys = [f"checkpoint={run_dir}", f"input={whole / 'in'}", f"output={output}/", "decoding.max_new_tokens=5"]
            keys += ["device=cpu", "batch_size=4", f"cache={tmp_path / 'cache'}", "engine=ray"]
            command = [sys.executable, ROOT / "predict.py", *keys, f"ray.address={nodes.address}", *given]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)

        driver = started()
        events = {"worker": rng.uniform(0, 12), "node": rng.uniform(0, 12), "driver": rng.uniform(6, 14)}
        begun = time.monotonic()
        for event, moment in sorted(events.items(), key=lambda one: one[1]):
            time.sleep(max(0, moment - (time.monotonic() - begun)))
            if event == "driver":
                driver.kill()
            elif event == "node":
                nodes.remove_node(second, allow_graceful=False)
            else:
                ours = psutil.Process().children(recursive=True)  # and no other cluster's of this machine
                workers = [
                    p for p in ours if "ray::" in name_of(p) and "Agent" not in name_of(p)
                ]  # without it a node ends
                if workers:
                    rng.choice(workers).kill()
        driver.communicate()
        complete = {path.name: path.read_bytes() for path in output.glob("*.jsonl")} if output.exists() else {}
        nodes.add_node(num_cpus=2)
        said, _ = (again := started("resume=true")).communicate(timeout=250)
        assert again.returncode == 0, said
        assert {name: (output / name).read_bytes() for name in complete} == complete, "what was complete is as it was"
        assert captions_in(output) == captions_in(whole / "out") and len(captions_in(output)) == 640
        assert (output / "_SUCCESS").exists() and not (output / ".unfinished").exists()
    finally:
        driver.kill()
        nodes.shutdown()


def name_of(process) -> str:
    try:
        return " ".join(process.cmdline())
    except Exception:  # it has ended meanwhile
        return ""


def captions_in(folder: Path) -> dict[str, str]:
    return {path: json.loads(line)["caption"] for path, line in rows_in(folder).items()}
