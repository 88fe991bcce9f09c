"""Caption photographs: `python predict.py checkpoint=RUN_DIR input=FOLDER`, or a data set: `data=coco split=val`."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from captioning.cli import built, one_sentence_errors, plain, prepared_arguments, quiet_libraries, whole
from captioning.errors import UserError
from captioning.prediction.outputs import check_output, is_complete, real_file, rows_of
from captioning.prediction.partial import has_rows, settings_path
from captioning.prediction.results import CaptionWriter
from captioning.prediction.run import found_pictures, one_path, settings_of, split_of, text_files_of
from captioning.prediction.score_files import SCORES, TABLE
from captioning.prediction.views import planned_views
from captioning.runs import is_run
from captioning.weights import find_weights

if TYPE_CHECKING:
    from captioning.prediction.describing import Described
    from captioning.prediction.scored import Result, ScoredSplit
    from captioning.prediction.sources import FoundPictures
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
    if not isinstance(cfg.resume, bool):
        raise UserError(f"resume={cfg.resume} must be true or false: true goes on where output=... was stopped")
    output = Path(one_path(cfg, "output", "output=captions.jsonl"))
    check_output(output, cfg.overwrite or cfg.resume, cfg.resume)
    weights = find_weights(one_path(cfg, "checkpoint", "checkpoint=runs/MY_RUN"), allow_pickle=cfg.allow_pickle)
    found = found_pictures(cfg, output)
    if found and (complete := complete_before(cfg, output, settings_of(cfg, weights, found.paths), found)):
        return complete
    check_output(output, cfg.overwrite, cfg.resume)
    paths = found.paths if found else []
    text_files = text_files_of(cfg, paths)
    may = {"overwrite": cfg.overwrite, "resume": cfg.resume and has_rows(real_file(output))}
    views = planned_views(output, paths, **may, **plain(cfg, *VIEWS)) if found else None
    batch_size = whole(cfg, "batch_size", 1)

    # Imported here, since they take seconds: help, a typo or a wrong path is answered before.
    from tqdm import tqdm

    from captioning.model.build import load_captioner
    from captioning.model.generation import require_room
    from captioning.prediction.describing import Work
    from captioning.prediction.devices import autocast, chosen_devices, placed, reading_processes
    from captioning.prediction.processes import described
    from captioning.prediction.scored import ScoredSplit
    from captioning.randomness import addressed_seed

    quiet_libraries()
    decoding = built(cfg.decoding, "decoding")
    devices = chosen_devices(cfg.device, cfg.trainer.devices)
    num_workers = reading_processes(devices[0], cfg.num_workers)
    autocast(devices[0], cfg.precision)
    captioner, tokenizer = load_captioner(weights)
    require_room(captioner, decoding)
    split = None if found else split_of(cfg, captioner, tokenizer)
    pictures = found or split
    assert pictures
    views = views or planned_views(output, pictures.paths, **may, **plain(cfg, *VIEWS))
    devices = devices[: max(1, math.ceil(len(pictures) / batch_size))]  # not more of them than batches
    if len(devices) == 1 or views.looks_into_the_model:
        captioner = placed(captioner, devices[0], cfg.precision)
    views.attach(captioner, tokenizer, decoding.max_new_tokens)
    settings = settings_of(cfg, weights, pictures.paths)
    scored = ScoredSplit(split) if split else None
    references = dict(enumerate(split.captions)) if split else None
    with (
        text_files,
        CaptionWriter(output, settings, overwrite=cfg.overwrite, resume=cfg.resume, known=pictures.row) as writer,
        views,
    ):
        for place, row, _ in writer.so_far():
            text_files.add(pictures.paths[place], row.caption)
        # Scores, pages and heat maps are made of more than rows hold.
        first = 0 if scored or views.made else writer.done - writer.done % batch_size
        work = Work(
            load=pictures.load,
            addresses=[addressed_seed(path.name) for path in pictures.paths],
            decoding=decoding,
            precision=cfg.precision,
            batch_size=batch_size,
            num_workers=num_workers,
            first=first,
            thumbnails=views.gallery is not None,
            keeps_pixels=views.looks_into_the_model,
            split=split,
        )
        with (
            tqdm(total=len(pictures), initial=first, unit=" pictures", desc="captioning") as progress,
            described(work, captioner, devices, weights) as batches,
        ):
            for one in batches:
                texts = write_rows(writer, one, pictures, tokenizer.decode)
                for place, text in zip(one.batch.indices, texts, strict=True):
                    text_files.add(pictures.paths[place], text)
                views.add(one.batch, one.captions, references)
                if scored:
                    scored.add(one, texts)
                progress.update(len(one.batch.indices) + len(one.batch.unreadable))
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


def complete_before(
    cfg: DictConfig, output: Path, settings: Mapping[str, object], found: FoundPictures
) -> Prediction | None:
    """Where there is nothing to resume since a run came to its end: what it made; only text files may be lacking."""
    if not cfg.resume or not is_complete(output, settings):
        return None
    captioned = 0
    with text_files_of(cfg, found.paths) as text_files:
        for place, row, _ in rows_of(output, found.row):
            text_files.add(found.paths[place], row.caption)
            captioned += row.caption is not None
    log.info("%s is complete: %d captions; overwrite=true without resume makes it anew", output, captioned)
    return Prediction(captioned, len(found) - captioned, output, {})


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
    from captioning.training.loggers import log_split
    from captioning.training.wandb import wandb_runs

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
