"""Everything of the package that benchmarks/gpu.py uses, so that what moves there is changed here alone."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import captioning.model.captioner as captioner_module  # in which the mask is made
from captioning.data.batch import IGNORE, CaptionBatch, PictureFormat, Row, pack
from captioning.data.tokenizer import END_OF_TEXT, CaptionTokenizer
from captioning.model.build import switched
from captioning.model.captioner import GROUPS, ImageCaptioner, group_of
from captioning.model.generation import Beam, Greedy, generate
from captioning.training.module import build_optimizer, scale_and_clip

ROOT = Path(__file__).resolve().parents[2]
MASK = "same_caption_causal_mask"  # of captioner_module
GRAPHS = "captioning.model.generation.graphs"  # its `generate` replays CUDA graphs, where there is one
COMMANDS_NEED = ("hydra", "omegaconf", "simplejpeg", "pycocotools", "lightning", "matplotlib")

__all__ = [
    "COMMANDS_NEED",
    "END_OF_TEXT",
    "GRAPHS",
    "GROUPS",
    "IGNORE",
    "MASK",
    "ROOT",
    "Beam",
    "CaptionBatch",
    "CaptionTokenizer",
    "Greedy",
    "ImageCaptioner",
    "PictureFormat",
    "Row",
    "batches_of_epoch",
    "build_optimizer",
    "captioner_module",
    "commands",
    "generate",
    "group_of",
    "pack",
    "scale_and_clip",
    "switched",
]


class Commands(NamedTuple):
    """What train.py and predict.py run, and the classes whose work is timed there."""

    train: Callable[[Any], Any]  # of a configuration
    predict: Callable[[Any], Any]
    module: Any  # its training_step is a step
    checkpoint_writer: Any
    caption_writer: Any  # entered when the model is ready


def commands() -> Commands:
    """Imported late: they need more than the other phases."""
    from captioning.prediction.results import CaptionWriter
    from captioning.training.checkpoints import AtomicCheckpointIO
    from captioning.training.module import CaptioningModule
    from captioning.training.run import train
    from predict import predict

    return Commands(train, predict, CaptioningModule, AtomicCheckpointIO, CaptionWriter)


def batches_of_epoch(cfg: Any, side: int) -> Any:
    """The training loader of a configuration, for a model of pictures of so many pixels."""
    import hydra

    datamodule = hydra.utils.instantiate(cfg.data)
    tokenizer = CaptionTokenizer.from_pretrained(cfg.data.tokenizer)
    datamodule.connect(tokenizer, PictureFormat((side, side)), max_positions=1024)
    return datamodule.train_dataloader()
