"""From the configuration of a prediction to the parts that `predict.py` puts together.

Torch is imported inside the functions, since it takes seconds and a mistake in the configuration is answered before.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from captioning.cli import built, plain, require
from captioning.data.datasets import recognise
from captioning.errors import UserError
from captioning.prediction.formats import check_image_ids
from captioning.prediction.score_files import check_files
from captioning.prediction.sources import FoundPictures, find_pictures
from captioning.prediction.text_files import TextFiles
from captioning.runs import data_set_of, seed_of_run
from captioning.weights import HuggingFaceModel, stamp_of

if TYPE_CHECKING:
    from captioning.data.tokenizer import CaptionTokenizer
    from captioning.model.captioner import ImageCaptioner
    from captioning.prediction.splits import CaptionedSplit

log = logging.getLogger(__name__)


def one_path(cfg: DictConfig, key: str, example: str) -> str:
    """The value of a key that must name one file or folder."""
    value = require(cfg, key, example)
    if isinstance(value, list | dict):
        raise UserError(f"{key}={value} must be one path, for example {example}")
    return str(value)


def found_pictures(cfg: DictConfig, output: Path) -> FoundPictures | None:
    """The pictures that `input` names; None where `data` names a split instead, whose files are looked for here."""
    if "data" not in cfg:
        source = require(cfg, "input", "input=my_photos, or data=coco split=val")
        found = find_pictures([str(one) for one in source] if isinstance(source, list) else source)
        check_image_ids(output, found)
        return FoundPictures(found)
    if cfg.input is not None:
        raise UserError(f"input={cfg.input} and data={data_set_of(cfg.data)} are both given; leave one out")
    if cfg.text_files:
        raise UserError("text_files=true writes beside the pictures of input=..., not into a data set; leave it out")
    check_files(output, cfg.overwrite)
    if cfg.data.get("root") and cfg.data.get("dataset"):
        recognise(cfg.data.dataset, Path(str(cfg.data.root)).expanduser(), cfg.data.layout)
    return None


def split_of(cfg: DictConfig, captioner: ImageCaptioner, tokenizer: CaptionTokenizer) -> CaptionedSplit:
    """The split that `data` and `split` name, as the captioner wants it."""
    from captioning.prediction.splits import CaptionedSplit

    warn_of_other_seed(cfg)
    datamodule = built(cfg.data, "data")
    datamodule.connect(tokenizer, captioner.picture_format, captioner.max_positions, only=cfg.split)
    return CaptionedSplit(datamodule, cfg.split)


def warn_of_other_seed(cfg: DictConfig) -> None:
    """Where a seed divides the photographs, another one puts pictures that were trained on into `val` and `test`."""
    trained_with = seed_of_run(Path(cfg.checkpoint))
    if trained_with not in (None, cfg.seed):
        log.warning("the run divided its data with seed=%s and this is seed=%s; say the same", trained_with, cfg.seed)


def text_files_of(cfg: DictConfig, paths: Sequence[Path]) -> TextFiles:
    """The captions beside their pictures, if they are asked for."""
    options = {"overwrite": cfg.overwrite, "resume": cfg.resume}
    return TextFiles(cfg.text_files, paths, plain(cfg, "input")["input"], **options)


def settings_of(cfg: DictConfig, weights: Path | HuggingFaceModel, paths: Sequence[Path]) -> dict[str, object]:
    """What the captions depend on: goes beside the output, and is compared with by a run that resumes."""
    settings = plain(cfg, "checkpoint", "input", "data", "split", "decoding", "precision", "batch_size")
    names = "\0".join(map(str, paths)).encode("utf-8", "surrogateescape")
    settings["pictures"] = {"number": len(paths), "digest": hashlib.blake2b(names, digest_size=8).hexdigest()}
    if stamp := stamp_of(weights):
        settings["weights"] = stamp
    return settings
