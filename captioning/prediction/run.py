"""A prediction from its configuration: `predict(config)` captions pictures and writes what was asked for."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from captioning.cli import built, quiet_libraries
from captioning.config import DRAWN, Data, PredictConfig, WandbConfig, data_set_of
from captioning.data.datamodule import Photographs
from captioning.data.remote import is_remote
from captioning.data.tokenizer import CaptionTokenizer
from captioning.errors import UserError
from captioning.machine import data_for_one_process, for_prediction
from captioning.model.build import load_captioner
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import decoding_of
from captioning.prediction.caption import (
    CaptionedBatch,
    Model,
    Work,
    autocast,
    captioned,
    placed,
)
from captioning.prediction.engines import Engine, Failure, Job, Rows, in_order, on_this_machine
from captioning.prediction.inputs import InputPictures
from captioning.prediction.journal import Journal, May, settings_path
from captioning.prediction.outputs import FORMATS, format_of, put_in_place
from captioning.prediction.outputs.files import check_file, real_file
from captioning.prediction.outputs.scores import SCORES, TABLE, SplitScores
from captioning.prediction.parts import Part, PartFiles, Reading
from captioning.prediction.plan import Plan, Prediction, Sinks, planned, settings_of, settings_of_parts
from captioning.prediction.strips import checked_layers
from captioning.progress import progress
from captioning.runs import is_run, read_checkpoint, seed_of_run
from captioning.training.loggers import log_split
from captioning.training.wandb import ID_FILE, wandb_runs
from captioning.weights import HuggingFaceModel

log = logging.getLogger(__name__)


def predict(config: PredictConfig, plan: Plan | None = None) -> Prediction:
    """Caption the pictures batch by batch: a line for each in the journal, of which the output is made at the end."""
    plan = plan or planned(config)
    if not plan.complete and plan.spans is None and plan.parts is not None:
        return _predict_parts(plan, plan.parts)
    made = plan.complete or (_by_cluster(plan) if plan.config.engine == "ray" else _by_this_machine(plan))
    if plan.elsewhere:
        plan.elsewhere.put()
        log.info("%d captions in %s", made.captioned, plan.elsewhere.url)
    return made


def _by_this_machine(plan: Plan) -> Prediction:
    """Caption into one file."""
    quiet_libraries()
    config, devices = for_prediction(plan.config)
    decoding, output, made_in = built(config.decoding.plain(), "decoding"), plan.output, format_of(plan.output)
    autocast(devices[0], config.precision)  # refuses what this device can't compute in
    captioner, tokenizer = load_captioner(plan.weights)
    decoding = decoding_of(captioner, tokenizer, decoding)
    if words := knows_no_photographs(plan.weights, config.data):
        log.info("%s", words)
    layers = checked_layers(config.heat_maps_layers, captioner)
    pictures = plan.pictures or _split_of(config, captioner, tokenizer)
    settings = plan.settings or settings_of(config, plan.weights, pictures.paths)
    settings |= {"precision": config.precision, "batch_size": config.batch_size}  # no `auto`
    sinks = plan.sinks or Sinks.of(config, output, pictures, settings)
    batch_size = int(config.batch_size)
    devices = devices[: max(1, math.ceil(len(pictures) / batch_size))]  # not more of them than batches
    if len(devices) == 1:
        captioner = placed(captioner, devices[0], config.precision)
    with _written(config, output, pictures, settings, sinks) as journal:
        work = Work(
            pictures=pictures,
            decoding=decoding,
            precision=config.precision,
            batch_size=batch_size,
            num_workers=int(config.num_workers),
            first=0 if sinks.on_the_way else journal.done - journal.done % batch_size,
            thumbnails=sinks.gallery is not None,
            heat_maps=sinks.heat_map_places,
            layers=layers,
            min_size=config.min_size,
            sizes=made_in.holds_sizes,
            around=(config.caption_prefix, config.caption_suffix),
        )
        model = Model(captioner, tokenizer, devices[0])
        with captioned(work, model, devices, plan.weights) as batches:
            _write(batches, len(pictures), work.first, journal, sinks)
    _report(config, output, journal, sinks)
    return Prediction(journal.captioned, journal.failed, output, sinks.split.scores.corpus if sinks.split else {})


@contextmanager
def _written(
    config: PredictConfig, output: Path, pictures: InputPictures, settings: Mapping[str, object], sinks: Sinks
) -> Iterator[Journal]:
    """The journal, of which the output is made when the block ends well, and what goes beside it."""
    with ExitStack() as stack:
        may = May(config.overwrite, config.resume)
        journal = stack.enter_context(Journal(output, real_file(output), settings, may))
        if journal.done < len(pictures):
            check_file("output", output, config.overwrite)
        for sink in sinks.on_the_way:
            stack.enter_context(sink)
        yield journal
        sinks.finish(journal)
        put_in_place(journal, pictures if format_of(output).holds_pictures else None)


def _by_cluster(plan: Plan) -> Prediction:
    """Caption into one file: rows of parts come in any order, and go into the journal in that of the input."""
    from captioning.prediction.on_ray import Cluster  # needs the extra

    assert plan.parts is not None and plan.reading and plan.spans is not None
    assert plan.pictures is not None and plan.settings and plan.sinks
    quiet_libraries()
    output, pictures, sinks, spans = plan.output, plan.pictures, plan.sinks, plan.spans
    if words := knows_no_photographs(plan.weights, None):
        log.info("%s", words)
    with Cluster(plan.config) as cluster:
        config = cluster.settled()
        settings = plan.settings | {"precision": config.precision, "batch_size": config.batch_size}
        job = job_of(config, plan.weights, plan.reading, sizes=format_of(output).holds_sizes)
        job = replace(job, thumbnails=sinks.gallery is not None)
        with _written(config, output, pictures, settings, sinks) as journal:
            first = 0 if sinks.on_the_way else journal.done
            todo = [part for part in plan.parts if sum(spans[part.name]) > first]
            with closing(cluster.caption(todo, job)) as rows:
                batches = map(CaptionedBatch, in_order(rows, spans, first))
                _write(batches, len(pictures), first, journal, sinks)
    _report(config, output, journal, sinks)
    return Prediction(journal.captioned, journal.failed, output, {})


def _predict_parts(plan: Plan, parts: list[Part]) -> Prediction:
    """Caption the input part by part into a folder; a part that can't be read is said at the end."""
    quiet_libraries()
    if plan.config.engine == "ray":
        from captioning.prediction.on_ray import Cluster  # needs the extra

        with Cluster(plan.config) as cluster:
            return _into_folder(plan, parts, cluster.settled(), lambda todo, job, _: cluster.caption(todo, job))
    config, devices = for_prediction(plan.config)
    autocast(devices[0], config.precision)
    return _into_folder(plan, parts, config, partial(on_this_machine, devices=devices))


def _into_folder(plan: Plan, parts: list[Part], config: PredictConfig, engine: Engine) -> Prediction:
    assert plan.reading is not None
    if words := knows_no_photographs(plan.weights, None):
        log.info("%s", words)
    job = job_of(config, plan.weights, plan.reading, sizes=FORMATS[f".{config.format}"].holds_sizes)
    settings = settings_of_parts(config, plan.weights, parts, len(plan.reading.choice.done))
    may = May(config.overwrite, config.resume)
    failures: list[Failure] = []
    with PartFiles(config.output, f".{config.format}", plan.reading.cache, plan.reading, settings, may) as files:
        todo = [part for part in parts if part.name not in files.complete]
        if len(todo) < len(parts):
            log.info("%d of %d parts of %s are complete", len(parts) - len(todo), len(parts), config.output)
        with counted(len(todo)) as bar, closing(engine(todo, job, files.done)) as rows:
            for one in rows:
                bar.add(one)
                if isinstance(one, Failure):
                    failures.append(one)
                else:
                    files.add(*one)
        if failures:
            raise UserError(_of_failures(failures, len(parts), config.output))
        captioned, failed = files.finish(parts)
    log.info("%d captions in %d file%s of %s", captioned, len(parts), "s" if len(parts) > 1 else "", config.output)
    if failed:
        log.warning("%d of %d pictures could not be read; their rows say why", failed, captioned + failed)
    return Prediction(captioned, failed, plan.output, {})


def job_of(config: PredictConfig, weights: Path | HuggingFaceModel, reading: Reading, *, sizes: bool) -> Job:
    """What an engine is given."""
    return Job(
        reading=reading,
        weights=weights,
        decoding=built(config.decoding.plain(), "decoding"),
        precision=config.precision,
        batch_size=int(config.batch_size),
        num_workers=int(config.num_workers),
        min_size=config.min_size,
        sizes=sizes,
        around=(config.caption_prefix, config.caption_suffix),
    )


def _of_failures(failures: list[Failure], parts: int, output: str) -> str:
    some = "; ".join(one.reason for one in failures[:3]) + ("; ..." if len(failures) > 3 else "")
    made = parts - len(failures)
    return f"{some}. Of {parts} parts of the input {made} are in {output}; resume=true tries the others again"


@contextmanager
def counted(parts: int) -> Iterator[_Counted]:
    """A bar of the pictures of so many parts."""
    with progress(parts, "captioning", "pictures") as bar:
        yield _Counted(parts, bar)


class _Counted:
    """A bar of pictures, whose number is guessed from the parts that are known."""

    def __init__(self, parts: int, bar: Any):
        self._parts, self._bar = parts, bar
        self._known: dict[str, int] = {}

    def add(self, one: Rows | Failure) -> None:
        """Some more rows."""
        if isinstance(one, Failure):
            self._known.setdefault(one.part.name, 0)
            return
        self._known[one.part.name] = one.total
        self._bar.total = max(1, round(sum(self._known.values()) / len(self._known) * self._parts))
        self._bar.update(len(one.records))


def knows_no_photographs(weights: Path | HuggingFaceModel, data: Data | None) -> str:
    """Words where a checkpoint was trained on drawn shapes and photographs are asked of it; else empty."""
    trained_on = read_checkpoint(weights)["captioner"].get("data") if isinstance(weights, Path) else None
    asked = data_set_of(data.plain()) if data else None
    if trained_on != DRAWN or asked == DRAWN:
        return ""
    return (
        "this model was trained on data=shapes: it knows drawn shapes alone, and sees shapes in any photograph; for "
        "photographs take checkpoint=nlpconnect/vit-gpt2-image-captioning, or train on data=flickr8k or coco"
    )


def _write(batches: Iterable[CaptionedBatch], pictures: int, first: int, journal: Journal, sinks: Sinks) -> None:
    """Add each picture of the batches to the journal and the sinks."""
    with progress(pictures, "captioning", "pictures", initial=first) as bar:
        for batch in batches:
            for record in batch.pictures:
                journal.add(record)
                for sink in sinks.on_the_way:
                    sink.add(record)
            if sinks.split:
                sinks.split.add_loss(batch.nats, batch.tokens)
            bar.update(len(batch.pictures))


def _split_of(config: PredictConfig, captioner: ImageCaptioner, tokenizer: CaptionTokenizer) -> InputPictures:
    """The split that `data` and `split` name, as the captioner takes its pictures."""
    assert config.data is not None
    trained_with = seed_of_run(Path(config.checkpoint))
    if trained_with not in (None, config.seed):  # where a seed divides photographs, val has some of the training's
        words = "the run divided its data with seed=%s and this is seed=%s; say the same"
        log.warning(words, trained_with, config.seed)
    datamodule = built(data_for_one_process(config.data), "data")
    datamodule.connect(tokenizer, captioner.picture_format, captioner.max_positions, only=config.split)
    split, tokens = datamodule.splits[config.split], datamodule.tokens[config.split]
    if isinstance(split.load, Photographs):
        stored = split.load.stored
        names = [Path(stored.name(i)) for i in range(len(stored))]
        return InputPictures(names, split.image_ids, split.captions, tokens, stored=stored)
    names = [Path(f"{config.split}-{image_id}") for image_id in split.image_ids]
    return InputPictures(names, split.image_ids, split.captions, tokens, drawn=split.load)


def _report(config: PredictConfig, output: Path, journal: Journal, sinks: Sinks) -> None:
    """Say what was made and where, and log a split's scores."""
    if not is_remote(config.output):
        log.info("%d captions in %s, how they were made in %s", journal.captioned, output, settings_path(output))
    if sinks.gallery:
        log.info("gallery: %s", sinks.gallery.path)
    if sinks.heat_maps:
        log.info("heat maps: %s", sinks.heat_maps.path)
    if sinks.split:
        _log_scores(config, output, sinks.split)


def _log_scores(config: PredictConfig, output: Path, made: SplitScores) -> None:
    """Say the scores, and log them with the table of pictures."""
    corpus, split = made.scores.corpus, config.split
    log.info("%s %s", split, ", ".join(f"{name} {figure:.4f}" for name, figure in corpus.items()))
    log.info("%s perplexity %.4f", split, made.perplexity)
    log.info("scores: %s, of each picture: %s", *(output.with_name(name) for name in (SCORES, TABLE)))
    for sentence in made.scores.left_out:
        log.warning("%s", sentence)
    assert config.run_dir is not None
    run_dir, chosen = Path(config.run_dir), list(config.logger.values())
    if is_run(run_dir) and not (run_dir / ID_FILE).is_file():
        chosen = [one for one in chosen if not isinstance(one, WandbConfig)]
        log.info("not in W&B, as the run in %s is not; an output elsewhere has a W&B run of its own", run_dir)
    loggers = [built(one, "logger") for one in chosen]
    metrics = {"perplexity": made.perplexity, "loss": made.loss, **corpus}
    with wandb_runs(loggers, run_dir):
        log_split(loggers, split, metrics, made.head, made.table)
