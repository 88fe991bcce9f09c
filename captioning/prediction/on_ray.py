"""The engine of a cluster: Ray Data reads parts of the input by tasks on CPUs, and captions them by actors with GPUs.

A task opens a part and gives batches of decoded pictures, as far ahead as the cluster's memory allows; an actor holds
the model. Rows come back here, where `PartFiles` makes files of them. What ends a process, such as a picture that a
decoder can't survive, fails its task `tries` times; then what is missing of its part is read batch by batch, and of
the batch that fails again picture by picture, so that one picture is named and the rest captioned.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import tempfile
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

import captioning
from captioning.config import PredictConfig
from captioning.data.batch import PictureFormat
from captioning.data.readers.tables import needed
from captioning.errors import UserError
from captioning.machine import Machine, cores
from captioning.model.build import load_captioner
from captioning.model.generation import decoding_of
from captioning.prediction.caption import Model, PictureItems, autocast, caption_batch, collate, placed
from captioning.prediction.engines import Failure, Job, Rows
from captioning.prediction.inputs import InputPictures, JoinedPictures
from captioning.prediction.journal import CaptionedPicture
from captioning.prediction.parts import Part
from captioning.weights import HuggingFaceModel

pyarrow, ray, ray_data = (needed(name, "ray") for name in ("pyarrow", "ray", "ray.data"))

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5
WAIT_SECONDS = 10  # until a cluster that has lost a node knows of it
BLOCK_BYTES = 2**20  # a batch is more, and so a block of its own, which is captioned while the next is read


def batched(things: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """So many after each other."""
    left = iter(things)
    while some := list(islice(left, size)):
        yield some


class Piece(NamedTuple):
    """Places of a part that one task reads; `stop` is None for all to its end."""

    number: int
    part: Part
    start: int = 0
    stop: int | None = None


class Row(NamedTuple):
    """What passes between tasks: a batch of a part that has `total` pictures, or the problem that there is none."""

    number: int
    total: int = 0
    pictures: Sequence[CaptionedPicture] = ()
    pixels: Any = None  # (B, 3, H, W) uint8 of those that can be read
    problem: str = ""

    def table(self) -> Any:
        """As Ray Data passes it."""
        return pyarrow.table({"row": [pickle.dumps(tuple(self), protocol=5)]})

    @classmethod
    def of(cls, table: Any) -> Iterator[Row]:
        """The rows of such a table."""
        return (cls(*pickle.loads(cell.as_buffer())) for cell in table["row"])


def _require_answer(address: str) -> None:
    """Raise UserError where nothing listens; Ray itself waits for half a minute and then aborts the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # `auto`, of which Ray says what is wrong
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"ray.address={address}: no cluster answers ({error.strerror or error}); name the head's HOST:6379, or "
            "ray.address=null starts one on this machine"
        ) from error


class Cluster:
    """A Ray cluster that is joined, or started here, between `with` and its end.

    Raises:
        UserError: it can't be reached, or has fewer GPUs than are asked for.
    """

    def __init__(self, config: PredictConfig):
        self._keys, self._config = config.ray, config

    def __enter__(self) -> Self:
        address = self._keys.address
        environment: dict[str, Any] = {}
        where: dict[str, Any] = {"address": "local", "num_cpus": cores(), "include_dashboard": self._keys.dashboard}
        if self._keys.dashboard and find_spec("aiohttp_cors") is None:
            raise UserError("ray.dashboard=true needs pip install 'ray[default]'; or leave it out")
        if address is not None:  # its machines need not have this package
            _require_answer(address)
            where, environment["py_modules"] = {"address": address}, [captioning]
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ says much, and all that ends is said here
        try:
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
            joined = ray.init(**where, **quiet, runtime_env=environment)
        except Exception as error:  # it raises nearly all that there is
            line = str(error).strip().split("\n")[0]
            raise UserError(
                f"ray.address={address}: no cluster can be used ({line}); ray.address=null starts one on this machine"
            ) from error
        if url := getattr(joined, "dashboard_url", ""):
            log.info("Ray's dashboard: http://%s", url)
        try:
            self._size_up()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def _size_up(self) -> None:
        """How many captioners there are, and where."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        on_gpus = gpus > 0 and not self._config.device.startswith("cpu")
        self.device = torch.device("cuda" if on_gpus else "cpu")
        asked = self._config.trainer.devices
        most = gpus if on_gpus else len(nodes)
        self._captioners = most if asked == "auto" else int(asked)
        if on_gpus and self._captioners > gpus:
            raise UserError(f"trainer.devices={asked}, and the cluster has {gpus} GPUs; take so many or fewer")
        least = int(min(node.get("CPU", 0) for node in nodes if node.get("CPU")))
        each = max(1, -(-self._captioners // len(nodes)))  # captioners of a node
        self._threads = max(1, least // each)
        # Next to no CPU is claimed: on a cluster that has lost a node the captioners would leave none for what reads.
        self._needs = {"num_gpus": int(on_gpus), "num_cpus": 0.1, "scheduling_strategy": "SPREAD"}
        cpus, several = int(sum(node.get("CPU", 0) for node in nodes)), "s" if len(nodes) > 1 else ""
        self._words = f"{len(nodes)} node{several}, {cpus} CPUs and {gpus} GPUs"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ray.shutdown()

    def settled(self) -> PredictConfig:
        """The configuration without `auto`, as the cluster has it."""
        on_gpus = self.device.type == "cuda"
        auto: dict[str, Any] = {
            "precision": "bf16" if on_gpus else 32,
            "batch_size": 128 if on_gpus else Machine("cpu").captioned_pictures(),
            "num_workers": 0,
        }
        config = self._config.model_copy(update={k: v for k, v in auto.items() if getattr(self._config, k) == "auto"})
        autocast(self.device, config.precision)
        words = "Ray on %s: trainer.devices=%d, precision=%s, batch_size=%s"
        log.info(words, self._words, self._captioners, config.precision, config.batch_size)
        return config

    def caption(self, parts: Sequence[Part], job: Job) -> Generator[Rows | Failure, None, None]:
        """Rows of the parts, as they come; at last those that no process survived to read, with the reason."""
        context = ray_data.DataContext.get_current()
        context.max_errored_blocks = -1  # what fails is looked after here
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = BLOCK_BYTES
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        captioner, tokenizer = load_captioner(job.weights)
        job = replace(job, decoding=decoding_of(captioner, tokenizer, job.decoding))
        seen = captioner.picture_format
        shipped = _kept(Shipped.of(job.weights))
        del captioner
        for some in batched(parts, self._keys.parts_at_once):
            yield from self._some(some, job, seen, shipped)

    def _some(self, parts: Sequence[Part], job: Job, seen: PictureFormat, shipped: bytes) -> Iterator[Rows | Failure]:
        """Parts that are given to the cluster together; what fails of them, again in ever smaller pieces."""
        missing: dict[int, set[int]] = {}  # places, of the parts whose number of pictures is known
        failed: set[int] = set()
        sizes, broken = iter((job.batch_size, 1, 0)), 0
        pieces = [Piece(number, part) for number, part in enumerate(parts)]
        while pieces:
            try:
                for row in self._rows(pieces, job, seen, shipped):
                    if row.problem:
                        failed.add(row.number)
                        yield Failure(parts[row.number], row.problem)
                        continue
                    places = missing.setdefault(row.number, set(range(row.total)))
                    places.difference_update(picture.place for picture in row.pictures)
                    yield Rows(parts[row.number], row.total, row.pictures)
                at_once = next(sizes)
            except ray.exceptions.RayError as error:  # of the cluster, such as a node that went; or of all captioners
                broken, at_once = broken + 1, job.batch_size
                words = [line.strip() for line in str(error).split("\n") if line.strip()]
                reason = words[-1] if words else type(error).__name__
                if broken > self._keys.tries:
                    raise UserError(f"Ray gave up {broken} times: {reason}; resume=true goes on") from error
                log.warning("Ray gave up: %s; again in %d s", reason, WAIT_SECONDS)
                time.sleep(WAIT_SECONDS)
            for number in set(range(len(parts))) - missing.keys() - failed:
                if (total := self._count(job, parts[number])) is None:
                    failed.add(number)
                    what = parts[number].shard or parts[number].name
                    yield Failure(parts[number], f"{what}: opening it ended the process that did, {self._tried()}")
                else:
                    missing[number] = set(range(total))
            left = {number: sorted(places) for number, places in missing.items() if places and number not in failed}
            if not at_once:
                yield from (self._given_up(parts[number], job, places) for number, places in left.items())
                return
            pieces = [one for number, places in left.items() for one in _cut(number, parts[number], places, at_once)]
            if pieces and not broken:
                count = sum(map(len, left.values()))
                log.warning("%d pictures were lost with the processes that read them; again", count)

    def _rows(self, pieces: Sequence[Piece], job: Job, seen: PictureFormat, shipped: bytes) -> Iterator[Row]:
        once_more, kept = self._keys.tries - 1, _kept(job)  # with all names of `skip_existing`
        about = {"shipped": shipped, "job": kept, "device": self.device.type, "threads": self._threads}
        with warnings.catch_warnings():  # that max_retries will have another name
            warnings.simplefilter("ignore")
            pictures = ray_data.read_datasource(
                _Pictures(pieces, kept, seen),
                override_num_blocks=len(pieces),
                num_cpus=1,
                ray_remote_args={"max_retries": once_more},
            )
            captioned = pictures.map_batches(
                _Captioner,
                batch_size=1,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ray_data.ActorPoolStrategy(size=self._captioners),
                fn_constructor_kwargs=about,
                max_task_retries=once_more,
                **self._needs,
            )
        for table in captioned.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from Row.of(table)

    def _count(self, job: Job, part: Part) -> int | None:
        """How many pictures a part has; None where what is asked ends."""
        try:
            total: int = ray.get(_counted.options(max_retries=self._keys.tries - 1).remote(job, part))
        except ray.exceptions.RayError:
            return None
        return total

    def _tried(self) -> str:
        return f"{self._keys.tries} times" if self._keys.tries > 1 else "once"

    def _given_up(self, part: Part, job: Job, places: Sequence[int]) -> Rows:
        pictures = InputPictures.of(job.reading.opened(part))
        reason = f"reading it ended the process that did, {self._tried()}"
        rows = []
        for place in places:
            shard, key = pictures.origin(place)
            rows.append(CaptionedPicture(place, pictures.called(place), error=reason, key=key, shard=shard))
            log.warning("%s: %s", pictures.called(place), reason)
        return Rows(part, len(pictures), rows)


def _cut(number: int, part: Part, places: Sequence[int], at_once: int) -> Iterator[Piece]:
    """Pieces of at most so many places that follow each other.

    >>> [(one.start, one.stop) for one in _cut(0, None, [0, 1, 2, 3, 8, 9], 3)]
    [(0, 3), (3, 4), (8, 10)]
    """
    start = stop = places[0]
    for place in places:
        if place != stop or place - start == at_once:
            yield Piece(number, part, start, stop)
            start = place
        stop = place + 1
    yield Piece(number, part, start, stop)


class _Pictures(ray_data.Datasource):  # type: ignore[name-defined]
    """A task for each piece, which gives batch after batch."""

    def __init__(self, pieces: Sequence[Piece], job: bytes, seen: PictureFormat):
        self._pieces, self._job, self._seen = pieces, job, seen

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known."""
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, **_: Any) -> list[Any]:
        """As many as there are pieces."""
        about = ray_data.block.BlockMetadata(None, None, None, None)
        read = [lambda piece=piece, how=(self._job, self._seen): _read(piece, *how) for piece in self._pieces]
        return [ray_data.ReadTask(one, about) for one in read]


def _kept(thing: Any) -> bytes:
    """What is sent once to each machine, and stays for tasks and actors that start again."""
    handle: bytes = ray.cloudpickle.dumps(ray.put(thing))
    return handle


@lru_cache(maxsize=1)
def _of_kept(handle: bytes) -> Any:
    return ray.get(pickle.loads(handle))


def _read(piece: Piece, kept: bytes, seen: PictureFormat) -> Iterable[Any]:
    """The batches of a piece, each a table of one row."""
    job: Job = _of_kept(kept)
    try:
        stored = job.reading.opened(piece.part)
    except UserError as error:
        yield Row(piece.number, problem=str(error)).table()
        return
    items, total = PictureItems(job.work(stored), seen), len(stored)
    places = range(piece.start, total if piece.stop is None else piece.stop)
    for batch in batched(places, job.batch_size):
        try:
            pictures, pixels = collate(items.__getitems__(batch))
        except UserError as error:  # its shard can't be fetched any more
            yield Row(piece.number, problem=str(error)).table()
            return
        yield Row(piece.number, total, pictures, None if pixels is None else pixels.numpy()).table()
    if not places:
        yield Row(piece.number, total).table()


@ray.remote
def _counted(job: Job, part: Part) -> int:
    return len(job.reading.opened(part))


@dataclass(frozen=True)
class Shipped:
    """Weights on their way to machines that don't see this one's files."""

    weights: Path | HuggingFaceModel
    data: bytes | None

    @classmethod
    def of(cls, weights: Path | HuggingFaceModel) -> Shipped:
        """With the bytes of a checkpoint; a folder of transformers' has to be seen from everywhere."""
        return cls(weights, weights.read_bytes() if isinstance(weights, Path) and weights.is_file() else None)

    def captioner(self) -> tuple[Any, Any]:
        """As `load_captioner`."""
        if self.data is None:
            return load_captioner(self.weights)
        with tempfile.NamedTemporaryFile(suffix=".ckpt") as file:
            file.write(self.data)
            file.flush()
            return load_captioner(Path(file.name))


class _Captioner:
    """An actor: the model on its device.

    One thread does all of it. Ray constructs in one and calls in another, and OpenMP, which counts the threads of both,
    would take them for more than there are cores and put each to sleep wherever it waits for the other.
    """

    def __init__(self, shipped: bytes, job: bytes, device: str, threads: int):
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(self._load, shipped, job, torch.device(device), threads).result()

    def _load(self, shipped: bytes, job: bytes, device: torch.device, threads: int) -> None:
        torch.set_num_threads(threads)
        about: Job = _of_kept(job)
        captioner, tokenizer = ray.get(pickle.loads(shipped)).captioner()
        self._model = Model(placed(captioner, device, about.precision), tokenizer, device)
        self._work = about.work(JoinedPictures([]))

    def __call__(self, table: Any) -> Any:
        """The same batches with captions."""
        return pyarrow.concat_tables([self._thread.submit(self._captioned, row).result() for row in Row.of(table)])

    def _captioned(self, row: Row) -> Any:
        if row.problem:
            return row.table()
        pixels = None if row.pixels is None else torch.from_numpy(row.pixels.copy())
        batch = caption_batch(self._work, self._model, list(row.pictures), pixels)
        return row._replace(pictures=batch.pictures, pixels=None).table()
