"""Caption photographs: `python predict.py checkpoint=RUN_DIR input=FOLDER`, or a data set: `data=coco split=val`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from captioning.commands import built, one_sentence_errors, plain, quiet_libraries, require, whole
from captioning.data.layouts import recognise
from captioning.errors import UserError
from captioning.overrides import prepared_arguments
from captioning.prediction.formats import check_image_ids
from captioning.prediction.outputs import check_output
from captioning.prediction.partial import settings_path
from captioning.prediction.results import CaptionWriter
from captioning.prediction.score_files import SCORES, TABLE, check_files
from captioning.prediction.sources import FoundPictures, find_pictures
from captioning.prediction.text_files import TextFiles
from captioning.prediction.views import planned_views
from captioning.run_folder import is_run, seed_of_run
from captioning.weights import find_weights

if TYPE_CHECKING:
    from captioning.data.tokenizer import CaptionTokenizer
    from captioning.model.captioner import ImageCaptioner
    from captioning.prediction.describing import Described
    from captioning.prediction.scored import Result, ScoredSplit
    from captioning.prediction.splits import CaptionedSplit

log = logging.getLogger("predict")

CONF = Path(__file__).parent / "conf"
VIEWS = ("gallery", "heat_maps", "heat_maps_layers")


@dataclass
class Prediction:
    """How many pictures got a caption, how many could not be read, the file of rows, and the scores of a split."""

    captioned: int
    failed: int
    output: Path
    scores: dict[str, float]


def predict(cfg: DictConfig) -> Prediction:
    """Find the pictures, caption them batch by batch, write a row for each in order, and score those of a split."""
    output = Path(one_path(cfg, "output", "output=captions.jsonl"))
    check_output(output, cfg.overwrite)
    weights = find_weights(one_path(cfg, "checkpoint", "checkpoint=runs/MY_RUN"))
    found = found_pictures(cfg, output)
    paths = found.paths if found else []
    text_files = TextFiles(cfg.text_files, paths, plain(cfg, "input")["input"], overwrite=cfg.overwrite)
    views = planned_views(output, paths, cfg.overwrite, **plain(cfg, *VIEWS)) if found else None
    batch_size = whole(cfg, "batch_size", 1)

    # Imported here, since they take seconds: help, a typo or a wrong path is answered before.
    from tqdm import tqdm

    from captioning.data.randomness import addressed_seed
    from captioning.model.generation import require_room
    from captioning.prediction.batches import picture_loader
    from captioning.prediction.describing import describe
    from captioning.prediction.devices import autocast, chosen_device, placed, reading_processes
    from captioning.prediction.loading import load_captioner
    from captioning.prediction.scored import ScoredSplit

    quiet_libraries()
    decoding = built(cfg.decoding, "decoding")
    device = chosen_device(cfg.device)
    num_workers = reading_processes(device, cfg.num_workers)
    precision = autocast(device, cfg.precision)
    captioner, tokenizer = load_captioner(weights)
    require_room(captioner, decoding)
    split = None if found else split_of(cfg, captioner, tokenizer)
    pictures = found or split
    assert pictures
    captioner = placed(captioner, device, cfg.precision)
    views = views or planned_views(output, pictures.paths, cfg.overwrite, **plain(cfg, *VIEWS))
    views.attach(captioner, tokenizer, decoding.max_new_tokens)
    loader = picture_loader(
        pictures.load,
        len(pictures),
        captioner.picture_format,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        thumbnails=views.gallery is not None,
    )
    settings = plain(cfg, "checkpoint", "input", "data", "split", "decoding", "precision", "batch_size")
    scored = ScoredSplit(split, captioner) if split else None
    references = dict(enumerate(split.captions)) if split else None
    with (
        text_files,
        CaptionWriter(output, settings, overwrite=cfg.overwrite) as writer,
        views,
        tqdm(total=len(pictures), unit=" pictures", desc="captioning") as progress,
    ):
        addresses = [addressed_seed(path.name) for path in pictures.paths]
        for described in describe(loader, captioner, decoding, addresses.__getitem__, device, precision):
            texts = write_rows(writer, described, pictures, tokenizer.decode)
            text_files.add_all([pictures.paths[place] for place in described.batch.indices], texts)
            views.add(described.batch, described.captions, references)
            if scored:
                scored.add(described, texts)
            progress.update(len(described.batch.indices) + len(described.batch.unreadable))
        result = scored.result(cfg.java) if scored else None
        if result:
            views.score(result.scores.per_picture)
    log.info("%d captions in %s, how they were made in %s", writer.captioned, output, settings_path(output))
    for made in views.made:
        log.info("%s: %s", *made)
    if scored and result:
        scored.write(result, output, settings)
        log_scores(cfg, output, scored, result)
    return Prediction(writer.captioned, writer.failed, output, result.scores.corpus if result else {})


def found_pictures(cfg: DictConfig, output: Path) -> FoundPictures | None:
    """The pictures that `input` names; None where `data` names a split instead, whose files are looked for here."""
    if "data" not in cfg:
        source = require(cfg, "input", "input=my_photos, or data=coco split=val")
        found = find_pictures([str(one) for one in source] if isinstance(source, list) else source)
        check_image_ids(output, found)
        return FoundPictures(found)
    if cfg.input is not None:
        raise UserError(f"input={cfg.input} and data={cfg.data.get('dataset', 'shapes')} are both given; leave one out")
    if cfg.text_files:
        raise UserError("text_files=true writes beside the pictures of input=..., not into a data set; leave it out")
    check_files(output, cfg.overwrite)
    if cfg.data.get("root"):
        recognise(cfg.data.dataset, Path(str(cfg.data.root)).expanduser(), cfg.data.layout)
    return None


def split_of(cfg: DictConfig, captioner: ImageCaptioner, tokenizer: CaptionTokenizer) -> CaptionedSplit:
    """The split that `data` and `split` name, as the captioner wants it."""
    from captioning.prediction.splits import read_split

    if "image_size" in cfg.data:  # drawn at the size that the model takes
        cfg.data.image_size = max(captioner.picture_format.size)
    warn_of_other_seed(cfg)
    datamodule = built(cfg.data, "data")
    datamodule.use_tokenizer(tokenizer)
    return read_split(datamodule, cfg.split, tokenizer)


def warn_of_other_seed(cfg: DictConfig) -> None:
    """Where a seed divides the photographs, another one puts pictures that were trained on into `val` and `test`."""
    trained_with = seed_of_run(Path(cfg.checkpoint))
    if trained_with not in (None, cfg.seed):
        log.warning("the run divided its data with seed=%s and this is seed=%s; say the same", trained_with, cfg.seed)


def write_rows(
    writer: CaptionWriter, described: Described, pictures: FoundPictures | CaptionedSplit, decode: Callable
) -> list[str]:
    """A row for each picture of the batch; the captions' texts."""
    batch, ids = described.batch, pictures.image_ids
    texts = [decode(caption.token_ids) for caption in described.captions]
    for place, reason in batch.unreadable:
        writer.write_error(place, pictures.paths[place], reason, image_id=ids[place] if ids else None)
    for place, caption, text in zip(batch.indices, described.captions, texts, strict=True):
        others = [(decode(one.token_ids), one.log_probability) for one in caption.alternatives]
        writer.write_caption(
            place, pictures.paths[place], text, caption.log_probability, others, image_id=ids[place] if ids else None
        )
    return texts


def log_scores(cfg: DictConfig, output: Path, scored: ScoredSplit, result: Result) -> None:
    """Say the scores, and log them with the table of pictures: in a run's own folder, to that run."""
    from captioning.training.loggers import log_split, wandb_runs

    log.info("%s %s", cfg.split, ", ".join(f"{name} {figure:.4f}" for name, figure in result.scores.corpus.items()))
    log.info("%s perplexity %.4f", cfg.split, result.perplexity)
    log.info("scores: %s, of each picture: %s", *(output.with_name(name) for name in (SCORES, TABLE)))
    for sentence in result.scores.left_out:
        log.warning("%s", sentence)
    # In a run's own folder they join what was logged there.
    run_dir = output.parent if is_run(output.parent) else output.with_name(f"{output.stem}.wandb")
    cfg.run_dir = str(run_dir)
    loggers = [built(logger, "logger") for logger in cfg.logger.values()]
    metrics = {"perplexity": result.perplexity, "loss": result.loss, **result.scores.corpus}
    with wandb_runs(loggers, run_dir):
        log_split(loggers, cfg.split, metrics, [*scored.HEAD, *result.scores.corpus], scored.rows(result))


def one_path(cfg: DictConfig, key: str, example: str) -> str:
    """The value of a key that must name one file or folder."""
    value = require(cfg, key, example)
    if isinstance(value, list | dict):
        raise UserError(f"{key}={value} must be one path, for example {example}")
    return str(value)


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Ends with status 0 if every picture got a caption, 1 after a user's mistake, 2 if some could not be read."""
    with one_sentence_errors():
        if predict(cfg).failed:
            sys.exit(2)


if __name__ == "__main__":
    with one_sentence_errors():
        sys.argv[1:] = prepared_arguments(sys.argv[1:], CONF, "predict")
    main()
