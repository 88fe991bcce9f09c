"""The two graphs in int8, about a third of their size, given away where their captions are as good.

Weights are rounded once, what flows between them at every step (`quantize_dynamic` of ONNX Runtime). Who judges depends
on what is known: of drawn shapes, whether captions are true; of other data sets, how likely the captions of people are.
What flows is rounded by the range of a whole batch, so batches, as here, have it harder than the single pictures of a
page.

Letters: B pictures, K captions of one, T tokens, V vocabulary.
"""

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from captioning.cli import built
from captioning.config import Data, ExportConfig, data_set_of
from captioning.data.datamodule import CaptionDataModule
from captioning.data.rows import spread
from captioning.data.tokenizer import CaptionTokenizer
from captioning.errors import UserError
from captioning.export.card import RunRecord
from captioning.export.onnx import DECODER, ENCODER, QUANTIZED, OnnxCaptioner, errors_alone
from captioning.metrics import perplexity
from captioning.model.captioner import ImageCaptioner
from captioning.shapes.judge import is_true
from captioning.shapes.scenes import draw, scene_of, split_indices

log = logging.getLogger(__name__)

HEAD = "head_stays"  # a key of `WAYS`: the product that gives logits, which decides between tokens, is left in float32

# Settings of `quantize_dynamic`, in the order in which they are tried. 7 bits: a processor without VNNI adds pairs of
# products in 16 bits, which those of 8 bits overflow.
WAYS: dict[str, dict[str, bool]] = {
    "a scale for each channel": {},
    "a scale for each channel, 7 bits": {"reduce_range": True},
    "a scale for each channel, the decoder's head in float32": {HEAD: True},
    "a scale for each channel, 7 bits, the decoder's head in float32": {"reduce_range": True, HEAD: True},
}

DRAWN_PICTURES = 500  # held out: no run is trained on them
MAY_LOSE = 0.01  # of all captions that are true
PICTURES = 100  # of validation, with up to
CAPTIONS = 5  # captions each: some 6,000 tokens, of which int8 moves the mean by 0.001 nats more or less
MAY_RISE = 0.01  # the perplexity, as a part of it: trainings that differ in their seed alone differ by 0.001 to 0.035
MOST = 0.5  # of greedy captions stay, or it is another captioner
BATCH = 50  # drawn pictures at once; of photographs, whose models are larger, a fifth


@dataclass(frozen=True)
class Found:
    """What a judge finds of a pair of graphs."""

    value: float  # the share of true captions, or the perplexity
    captions: list[list[int]]  # token ids, greedily


class Judge(ABC):
    """Says of graphs in int8 whether they may stand for those in float32.

    Args:
        captioner: whose graphs they are.
    """

    def __init__(self, captioner: ImageCaptioner):
        self._captioner = captioner
        picture_format = captioner.picture_format
        of_channels = (np.array(of, np.float32)[:, None, None] for of in (picture_format.mean, picture_format.std))
        self._mean, self._std = of_channels

    @abstractmethod
    def find(self, graphs: OnnxCaptioner) -> Found:
        """What it holds against others."""

    @abstractmethod
    def holds(self, before: Found, after: Found) -> bool:
        """Whether those of `after` may stand for those of `before`."""

    @abstractmethod
    def says(self, before: Found, after: Found) -> str:
        """The figures, as half a sentence."""

    def greedy(self, graphs: OnnxCaptioner, levels: np.ndarray, max_new_tokens: int) -> list[list[int]]:
        """The graphs' captions of pictures (B, 3, H, W) uint8."""
        return graphs.greedy(self.normalised(levels), *self._captioner.end_of_text, max_new_tokens)

    def normalised(self, levels: np.ndarray) -> np.ndarray:
        """Pictures (B, 3, H, W) uint8 as the encoder takes them, float32."""
        return (levels / np.float32(255) - self._mean) / self._std


class Truth(Judge):
    """Of held-out drawn pictures about as many captions are true."""

    def __init__(self, captioner: ImageCaptioner, tokenizer: CaptionTokenizer):
        super().__init__(captioner)
        self._tokenizer = tokenizer
        self._scenes = [scene_of(42, index) for index in split_indices("test", DRAWN_PICTURES)]

    def find(self, graphs: OnnxCaptioner) -> Found:
        """The share of true captions, 0..1."""
        (side, _), most, ids = self._captioner.picture_format.size, self._captioner.max_positions - 1, []
        for scenes in _parts(self._scenes, BATCH):
            levels = np.stack([draw(scene, side).transpose(2, 0, 1) for scene in scenes])
            ids += self.greedy(graphs, levels, most)
        true = [is_true(self._tokenizer.decode(row), scene) for row, scene in zip(ids, self._scenes, strict=True)]
        return Found(sum(true) / len(true), ids)

    def holds(self, before: Found, after: Found) -> bool:
        """At most one caption of a hundred is lost."""
        return after.value >= before.value - MAY_LOSE

    def says(self, before: Found, after: Found) -> str:
        """With both shares."""
        count = len(self._scenes)
        return (
            f"{after.value:.1%} of captions of {count} held-out drawn pictures are true, {before.value:.1%} in float32"
        )


class Likelihood(Judge):
    """Validation captions are about as likely, and of the greedy ones most stay.

    Args:
        captioner: whose graphs they are.
        tokenizer: its own.
        data: a data set with a split `val`.
        name: of the data set.

    Raises:
        UserError: if it cannot be read.
    """

    def __init__(self, captioner: ImageCaptioner, tokenizer: CaptionTokenizer, data: CaptionDataModule, name: str):
        super().__init__(captioner)
        self._name = name
        data.connect(tokenizer, captioner.picture_format, captioner.max_positions, only="val")
        rows = data.rows("val", captions_per_image=sys.maxsize)
        self._rows = [rows[0, i] for i in spread(PICTURES, len(rows))]
        self._longest = min(data.tokens["val"].longest, captioner.max_positions - 1)

    def find(self, graphs: OnnxCaptioner) -> Found:
        """The perplexity of people's captions, each token after those before it."""
        nats = tokens = 0
        ids: list[list[int]] = []
        for rows in _parts(self._rows, BATCH // 5):
            levels = np.stack([row.pixels.numpy() for row in rows])
            ids += self.greedy(graphs, levels, self._longest)
            for attended, row in zip(graphs.encode(self.normalised(levels)), rows, strict=True):
                more = nats_of(graphs, attended, row.captions[:CAPTIONS])
                nats, tokens = nats + more.sum(), tokens + len(more)
        return Found(perplexity(nats / tokens), ids)

    def holds(self, before: Found, after: Found) -> bool:
        """Perplexity rises by at most 1%, and half of the captions stay."""
        return after.value <= before.value * (1 + MAY_RISE) and _kept(before, after) >= MOST

    def says(self, before: Found, after: Found) -> str:
        """With both perplexities."""
        return (
            f"validation captions of {self._name} have a perplexity of {after.value:.3f}, {before.value:.3f} in "
            f"float32, and {_kept(before, after):.0%} of {len(self._rows)} greedy captions stay the same"
        )


def nats_of(graphs: OnnxCaptioner, attended: np.ndarray, captions: Sequence[np.ndarray]) -> np.ndarray:
    """How unlikely each token of K captions of one picture is: -ln of its probability after those before it, (N,).

    Args:
        graphs: which say so.
        attended: the encoded picture, (P, D).
        captions: each from BOS to EOS; of N tokens without BOS.
    """
    longest = max(map(len, captions))
    ids = np.zeros((len(captions), longest), np.int64)
    for row, caption in zip(ids, captions, strict=True):
        row[: len(caption)] = caption
    there = np.arange(1, longest) < np.array([[len(caption)] for caption in captions])  # (K, T - 1)
    logits = graphs.step(ids[:, :-1], np.repeat(attended[None], len(captions), 0), graphs.no_past(len(captions)))[0]
    logits = logits.astype(np.float64)  # (K, T - 1, V)
    logits -= logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    return (np.log(np.exp(logits).sum(-1)) - chosen)[there]


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _kept(before: Found, after: Found) -> float:
    same = [one == other for one, other in zip(before.captions, after.captions, strict=True)]
    return sum(same) / len(same)


def judge_of(
    config: ExportConfig, record: RunRecord, captioner: ImageCaptioner, tokenizer: CaptionTokenizer
) -> Judge | None:
    """Who judges these weights; nobody, with a sentence in the log, where there is no data to judge by.

    Args:
        config: may name a data set; else it is the run's own.
        record: of the run.
        captioner: of the weights.
        tokenizer: of the weights.

    Raises:
        UserError: if the data set that is named cannot be read, or nobody judges graphs that a page needs.
    """
    if config.data is not None:
        return Likelihood(captioner, tokenizer, _module_of(config.data), data_set_of(config.data.plain()))
    if record.is_drawn():
        return Truth(captioner, tokenizer)
    reason = "nothing is known of these weights' data"
    if record.config is not None:
        try:
            return Likelihood(captioner, tokenizer, _module_of(record.config.data), str(record.data_set()))
        except UserError as error:
            reason = f"the run's data cannot be read: {error}"
    way_out = (
        "name a data set whose validation captions can, by data=... and data.root=..., or take them unjudged by "
        "onnx_int8=unjudged"
    )
    if config.page and config.page_dtype == "q8":
        raise UserError(f"page_dtype=q8 needs graphs in int8, which nothing can judge here, since {reason}; {way_out}")
    log.warning("onnx: no graphs in int8 (q8), which nothing can judge here, since %s; %s", reason, way_out)
    return None


def _module_of(data: Data | DictConfig) -> CaptionDataModule:
    return built(data, "data", batch_size=1, num_workers=0)


def with_int8(graphs: Path, judge: Judge | None) -> str:
    """Add the graphs in int8 to those in a folder, unless the judge is against it; what the card says of them.

    The first of `WAYS` that holds is taken; without a judge the first.
    """
    ways = iter(WAYS.items())
    if judge is None:
        way, settings = next(ways)
        write_int8(graphs, settings)
        log.warning("onnx: in int8 (q8) with %s, which nobody has judged", way)
        return f'\nIn int8 (`dtype: "q8"`: {way}) nobody has judged it: its captions may be worse.\n'
    before = judge.find(OnnxCaptioner(graphs))
    for way, settings in ways:
        write_int8(graphs, settings)
        after = judge.find(OnnxCaptioner(graphs, QUANTIZED))
        if judge.holds(before, after):
            log.info("onnx: in int8 (q8) with %s, %s", way, judge.says(before, after))
            return f'\nIn int8 (`dtype: "q8"`: {way}), {judge.says(before, after)}.\n'
        log.info("onnx: in int8 (q8) with %s, %s: too much is lost", way, judge.says(before, after))
    for file in graphs.glob(f"*{QUANTIZED}.onnx*"):
        file.unlink()
    log.warning("onnx: no graphs in int8 (q8), since with all settings too much is lost")
    return ""


def write_int8(folder: Path, settings: dict[str, bool]) -> None:
    """Write both graphs of a folder once more, `*_quantized.onnx`, with settings of `WAYS`."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    settings = dict(settings)
    head_stays = settings.pop(HEAD, False)
    with errors_alone(""):  # it advises to preprocess a graph
        for name in (ENCODER, DECODER):
            graph = onnx.load(folder / f"{name}.onnx")
            spared = _head_of(graph.graph, stays=head_stays) if name == DECODER else []
            quantize_dynamic(
                *(graph, folder / f"{name}{QUANTIZED}.onnx"),
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=spared,
                **settings,
            )


def _head_of(graph: Any, stays: bool) -> list[str]:
    """The nodes to be left in float32, if the head `stays`; else it gets a matrix of its own.

    GPT-2's head is its embedding, transposed. A table to look up has one scale, and a product with it would make floats
    of the whole table at every step: 40 of 67 ms of GPT-2 small's. A copy of 39 MB has a scale for each token.
    """
    from onnx import numpy_helper

    (head,) = (node for node in graph.node if node.output[0] == "logits")
    turned = next((node for node in graph.node if node.output[0] == head.input[1]), None)
    if turned is None:  # a matrix of its own
        return [head.name] if stays else []
    (name,) = turned.input
    if stays:
        return [node.name for node in graph.node if name in node.input or node is head]
    (table,) = (weight for weight in graph.initializer if weight.name == name)
    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(table).T.copy(), head.input[1]))
    graph.node.remove(turned)
    return []
