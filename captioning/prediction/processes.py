"""Several processes that caption one list of pictures; their batches come back in order."""

import multiprocessing
import os
import queue
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from captioning.errors import UserError
from captioning.model.build import load_captioner
from captioning.model.captioner import ImageCaptioner
from captioning.prediction.batches import Share
from captioning.prediction.describing import Described, Work, describe
from captioning.prediction.devices import placed
from captioning.weights import HuggingFaceModel

AHEAD = 2  # batches that a process may have made before theirs is written
LOOK_SECONDS = 1.0  # between looks at whether the other side still lives


@contextmanager
def described(
    work: Work, captioner: ImageCaptioner, devices: list[torch.device], weights: Path | HuggingFaceModel
) -> Iterator[Iterator[Described]]:
    """The batches in order, from as many processes as there are devices; one device needs none but this.

    Batch n is made by process n modulo their number, from the same places and by as many threads as in a single
    process, for the last digits of a sum can depend on both.

    Args:
        work: what there is to do.
        captioner: placed on the one device; where there are several, each process loads its own.
        devices: one for each process.
        weights: where from.

    Raises:
        UserError: while batches are taken, if a process ends before its share is done.
    """
    processes = len(devices)
    total = len(Share(work.first, len(work.addresses), work.batch_size))
    if processes == 1 or not total:
        yield describe(work, captioner, devices[0])
        return
    context = multiprocessing.get_context("spawn")  # no process that uses a GPU can be forked
    results: list[Any] = [context.Queue(AHEAD) for _ in range(processes)]
    threads = torch.get_num_threads()
    started = [
        context.Process(
            target=_caption_share,
            args=(work, weights, devices[n], n, processes, threads, results[n]),
            name=f"captioning process {n}",
        )
        for n in range(processes)
    ]
    try:
        with _surroundings():
            for process in started:
                process.start()
        yield (_taken(results[n % processes], started[n % processes]) for n in range(total))
    finally:
        for process in started:
            if process.pid is not None:
                process.kill()
                process.join()


@contextmanager
def _surroundings() -> Iterator[None]:
    """What is started inside ignores Ctrl-C, since the parent ends it, and its threads leave the cores while they wait.

    Else the threads of several processes on a CPU hold up one another: they take twice as long.
    """
    ignored, waiting = signal.signal(signal.SIGINT, signal.SIG_IGN), os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, ignored)
        if waiting is None:
            del os.environ["OMP_WAIT_POLICY"]
        else:
            os.environ["OMP_WAIT_POLICY"] = waiting


def _caption_share(
    work: Work,
    weights: Path | HuggingFaceModel,
    device: torch.device,
    process: int,
    processes: int,
    threads: int,
    results: Any,
) -> None:
    """The life of a process: load, caption every n-th batch, give."""
    try:
        torch.set_num_threads(threads)
        captioner, _ = load_captioner(weights)
        captioner = placed(captioner, device, work.precision)
        for one in describe(work, captioner, device, process, processes):
            _give(results, _without_tensors(one))
    except Exception as error:
        _give(results, error if isinstance(error, UserError) else RuntimeError(traceback.format_exc()))
        sys.exit(1)


def _give(results: Any, one: Described | Exception) -> None:
    parent = multiprocessing.parent_process()
    while True:
        try:
            return results.put(one, timeout=LOOK_SECONDS)
        except queue.Full:
            if parent is None or not parent.is_alive():
                os._exit(1)  # nobody will ever take it


def _taken(results: Any, process: Any) -> Described:
    """The next batch of a process; an error of its own is raised here."""
    while True:
        lives = process.is_alive()  # asked before: what it gave may still be on its way
        try:
            one = results.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            if lives:
                continue
            code = process.exitcode
            how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with status {code}"
            raise UserError(
                f"{process.name} ended {how}, most often because memory ran out; take fewer trainer.devices or a "
                "smaller batch_size"
            ) from None
        if isinstance(one, Exception):
            raise one
        return _with_tensors(one)


# A tensor would be passed as an open file of the process that sends it, which may have ended by then.
def _without_tensors(one: Described) -> Described:
    pixels = one.batch.pixel_values
    return one if pixels is None else one._replace(batch=one.batch._replace(pixel_values=cast(Any, pixels.numpy())))


def _with_tensors(one: Described) -> Described:
    pixels = one.batch.pixel_values
    return one if pixels is None else one._replace(batch=one.batch._replace(pixel_values=torch.from_numpy(pixels)))
