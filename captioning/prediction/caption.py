"""From pictures to `CaptionedPicture`s: read, captioned batch by batch, each decoded once; by one process or several.

Letters: B pictures of a batch that can be read, H and W picture height and width.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.data.batch import CaptionBatch, PictureFormat, Row, pack
from captioning.data.images import UnreadablePicture
from captioning.data.tokenizer import CaptionTokenizer
from captioning.data.transforms import EvaluationTransform
from captioning.errors import UserError
from captioning.model.build import load_captioner
from captioning.model.captioner import ImageCaptioner
from captioning.model.cpu import keep_freed_memory, with_int8_weights, with_packed_weights
from captioning.model.generation import Caption, Decoding, generate_from
from captioning.model.generation.graphs import with_half_weights
from captioning.prediction.inputs import InputPictures
from captioning.prediction.journal import LEFT_OUT, CaptionedPicture
from captioning.prediction.outputs.gallery import thumbnail
from captioning.prediction.strips import draw_heat_maps, seen_part
from captioning.randomness import addressed_seed
from captioning.weights import HuggingFaceModel

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16, "int8": None}
AHEAD = 2  # batches that a process may have made before theirs is written
LOOK_SECONDS = 1.0  # between looks at whether the other side still lives


@dataclass(frozen=True)
class Work:
    """Which pictures are captioned, and how; can be sent to another process.

    Args:
        pictures: where they have captions of their own, the loss of these is measured too.
        decoding: how captions are made.
        precision: what is computed in, see `autocast`.
        batch_size: pictures captioned together.
        num_workers: processes that read pictures ahead.
        first: the place to begin at, a batch's first: what a picture is batched with can move its log-probability's
            last digits.
        thumbnails: whether each picture comes with a small one.
        heat_maps: places of the pictures that come with heat maps.
        layers: of the decoder, whose heat maps these are; None averages all.
        min_size: pixels of a shorter side below which a picture gets no caption.
        sizes: whether each picture comes with its width and height.
        around: texts before and behind each caption.
    """

    pictures: InputPictures
    decoding: Decoding
    precision: str | int
    batch_size: int
    num_workers: int
    first: int = 0
    thumbnails: bool = False
    heat_maps: Collection[int] = ()
    layers: Sequence[int] | None = None
    min_size: int = 0
    sizes: bool = False
    around: tuple[str, str] = ("", "")


class CaptionedBatch(NamedTuple):
    """Pictures in the order of the input, and the loss of their own captions, where they have some."""

    pictures: list[CaptionedPicture]
    nats: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class Model:
    """A captioner in eval mode on its device, and its tokenizer."""

    captioner: ImageCaptioner
    tokenizer: CaptionTokenizer
    device: torch.device


def caption(work: Work, model: Model, process: int = 0, processes: int = 1) -> Iterator[CaptionedBatch]:
    """Caption the batches in order: all, or of `processes` that take turns the share of number `process`."""
    for pictures, pixel_values in picture_loader(
        work, model.captioner.picture_format, model.device, process, processes
    ):
        yield caption_batch(work, model, pictures, pixel_values)


@torch.inference_mode()
def caption_batch(
    work: Work, model: Model, pictures: list[CaptionedPicture], pixel_values: Tensor | None
) -> CaptionedBatch:
    """These pictures with captions; the pixels (B, 3, H, W) uint8 are of those among them that can be read."""
    if pixel_values is None:
        return CaptionedBatch(pictures)
    captioner = model.captioner
    pixel_values = pixel_values.to(model.device, non_blocking=True)
    readable = [picture for picture in pictures if picture.error is None]
    nats, tokens = 0.0, 0
    with autocast(model.device, work.precision):
        attended = captioner.encode(pixel_values)
        addresses = [addressed_seed(Path(picture.path).name) for picture in readable]
        captions = generate_from(captioner, attended, work.decoding, addresses)
        if work.pictures.tokens is not None:
            own = own_captions(work.pictures, [picture.place for picture in readable])
            loss = captioner.loss_from(attended, own.to(model.device))
            nats, tokens = loss.nats.item(), int(loss.tokens)
        made = zip(captions, pixel_values, strict=True)
        done = [_captioned(work, model, one, *next(made)) if one.error is None else one for one in pictures]
    return CaptionedBatch(done, nats, tokens)


def own_captions(pictures: InputPictures, places: Sequence[int]) -> CaptionBatch:
    """All captions that a data set has for the pictures at these places: a row each, in this order, without pixels."""
    assert pictures.tokens is not None and pictures.image_ids is not None
    return pack([Row(pictures.image_ids[place], None, pictures.tokens.captions_of(place)) for place in places])


def _captioned(
    work: Work, model: Model, picture: CaptionedPicture, made: Caption, pixel_values: Tensor
) -> CaptionedPicture:
    """The picture with its caption as text, and its heat map if it has one."""
    before, behind = work.around

    def decode(token_ids: list[int]) -> str:
        return f"{before}{model.tokenizer.decode(token_ids)}{behind}"

    strip = None
    if picture.place in work.heat_maps:
        ended = len(made.token_ids) < work.decoding.longest
        options: dict[str, Any] = {"seen": picture.heat_map, "ended": ended, "layers": work.layers}
        strip = draw_heat_maps(model.captioner, model.tokenizer, pixel_values, made.token_ids, **options)
    return replace(
        picture,
        caption=decode(made.token_ids),
        log_probability=made.log_probability,
        alternatives=[(decode(one.token_ids), one.log_probability) for one in made.alternatives],
        heat_map=strip,
    )


Item = tuple[CaptionedPicture, Tensor | None]  # without its caption; its pixels (3, H, W) uint8, if it can be read


class PictureItems(Dataset[Item]):
    """Item i is picture i, read and transformed; what is shown of it later is made while it is at hand."""

    def __init__(self, work: Work, picture_format: PictureFormat):
        self._work, self._format = work, picture_format
        self._transform = EvaluationTransform(picture_format)

    def __len__(self) -> int:
        return len(self._work.pictures)

    def __getitems__(self, places: Sequence[int]) -> list[Item]:
        """These items, read by as many threads at once as torch computes with: in a loader worker that is one."""
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return list(threads.map(self.__getitem__, places))

    def __getitem__(self, place: int) -> Item:
        pictures = self._work.pictures
        image_id = pictures.image_ids[place] if pictures.image_ids else None
        shard, key = pictures.origin(place)
        known = CaptionedPicture(place, pictures.called(place), image_id, key=key, shard=shard)
        try:
            image = pictures.load(place)
        except UnreadablePicture as reason:
            return replace(known, error=str(reason)), None
        if self._work.sizes:
            known = replace(known, width=image.width, height=image.height)
        if min(image.size) < self._work.min_size:
            words = f"{LEFT_OUT}{image.width} x {image.height} pixels, and min_size={self._work.min_size}"
            return replace(known, error=words), None
        shown = replace(
            known,
            references=pictures.references[place] if pictures.references else (),
            thumbnail=thumbnail(image) if self._work.thumbnails else None,
            heat_map=seen_part(image, self._format) if place in self._work.heat_maps else None,
        )
        return shown, self._transform(image)


def collate(items: Sequence[Item]) -> tuple[list[CaptionedPicture], Tensor | None]:
    """Items -> pictures, and the pixels (B, 3, H, W) uint8 of those that can be read, if there are any."""
    pixels = [one for _, one in items if one is not None]
    return [picture for picture, _ in items], torch.stack(pixels) if pixels else None


def share(first: int, count: int, batch_size: int, process: int = 0, processes: int = 1) -> list[list[int]]:
    """Batches of the places from `first` on: of `processes` that take turns, those of number `process`.

    >>> share(first=4, count=11, batch_size=2, process=1, processes=2)
    [[6, 7], [10]]
    """
    starts = range(first + process * batch_size, count, processes * batch_size)
    return [list(range(start, min(count, start + batch_size))) for start in starts]


def picture_loader(
    work: Work, picture_format: PictureFormat, device: torch.device, process: int = 0, processes: int = 1
) -> DataLoader:
    """Batches of pictures, see `collate`, read ahead by `num_workers` processes while the model is at work.

    Without any, pictures are read between the model's batches by all cores.
    """
    batches = share(work.first, len(work.pictures), work.batch_size, process, processes)
    return DataLoader(
        PictureItems(work, picture_format),
        batch_sampler=batches,
        num_workers=min(work.num_workers, len(batches)),
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )


def captioned(
    work: Work, model: Model, devices: list[torch.device], weights: Path | HuggingFaceModel
) -> AbstractContextManager[Iterator[CaptionedBatch]]:
    """The batches in order, from as many processes as there are devices; one device needs none but this.

    Batch n is made by process n modulo their number, from the same places and by as many threads as in a single
    process, for the last digits of a sum can depend on both.

    Args:
        work: what there is to do.
        model: on the one device; where there are several, each process loads its own.
        devices: one for each process.
        weights: where from.

    Raises:
        UserError: while batches are taken, if a process ends before its share is done.
    """
    if len(devices) == 1 or work.first >= len(work.pictures):
        return nullcontext(caption(work, model))
    return _by_processes(work, devices, weights)


@contextmanager
def _by_processes(
    work: Work, devices: list[torch.device], weights: Path | HuggingFaceModel
) -> Iterator[Iterator[CaptionedBatch]]:
    processes = len(devices)
    total = len(share(work.first, len(work.pictures), work.batch_size))
    # No process that uses a GPU can be forked, but one can that has imported everything and uses none: imports once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
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
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        torch.set_num_threads(threads)
        captioner, tokenizer = load_captioner(weights)
        model = Model(placed(captioner, device, work.precision), tokenizer, device)
        for one in caption(work, model, process, processes):
            results.put(one)
    except Exception as error:
        results.put(error if isinstance(error, UserError) else RuntimeError(traceback.format_exc()))
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # nobody will ever take what this one makes


def _taken(results: Any, process: Any) -> CaptionedBatch:
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
        return one


def autocast(device: torch.device, precision: str | int) -> AbstractContextManager:
    """The context in which a model runs at `precision`: 32, bf16, 16 or int8.

    Raises:
        UserError: if it is int8, and the device or the build of torch has no int8 layers.
    """
    if str(precision) == "int8" and device.type != "cpu":
        raise UserError(f"precision=int8 is for device=cpu alone; on device={device} take precision=bf16 or 16")
    if str(precision) == "int8" and not torch.backends.mkldnn.is_available():
        raise UserError("precision=int8 needs oneDNN, which this build of torch lacks; take precision=32")
    dtype = PRECISIONS[str(precision)]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def placed(captioner: ImageCaptioner, device: torch.device, precision: str | int) -> ImageCaptioner:
    """The captioner on its device, for inference at `precision` only: weights of linear layers are cast or laid out."""
    captioner = captioner.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    if dtype := PRECISIONS[str(precision)]:
        return with_half_weights(captioner, dtype)
    if device.type != "cpu":
        return captioner
    return with_int8_weights(captioner) if str(precision) == "int8" else with_packed_weights(captioner)
