"""Everything of the package that benchmarks/gpu.py uses, so that what moves there is changed here alone."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import captioning.model.captioner as captioner_module  # in which the mask is made
from captioning.batch import IGNORE, CaptionBatch, PictureFormat
from captioning.data.packing import Row, pack
from captioning.data.tokenizer import END_OF_TEXT, CaptionTokenizer
from captioning.model.captioner import GROUPS, ImageCaptioner, group_of
from captioning.model.generation import Beam, Greedy, generate
from captioning.model.switches import switched
from captioning.training.optimizer import build_optimizer, scale_and_clip

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
    "build_optimizer",
    "captioner_module",
    "generate",
    "group_of",
    "pack",
    "parts_of_a_run",
    "scale_and_clip",
    "switched",
]


def parts_of_a_run() -> tuple[Any, Any, Any, Any]:
    """train.py and predict.py, and the classes of theirs that are timed: a step, and what writes checkpoints."""
    import predict
    import train
    from captioning.training.checkpointing import AtomicCheckpointIO
    from captioning.training.module import CaptioningModule

    return train, predict, CaptioningModule, AtomicCheckpointIO
