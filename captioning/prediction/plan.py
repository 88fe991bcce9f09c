"""What a prediction is to do, checked as far as that takes no time: no torch and no weights are loaded for it."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from captioning.config import PredictConfig, checked, require_loggers
from captioning.data.datasets import require_data
from captioning.errors import UserError
from captioning.prediction.inputs import InputPictures, find_pictures
from captioning.prediction.journal import (
    Journal,
    May,
    beside,
    has_lines,
    journal_path,
    journal_settings_path,
    lines_of,
    settings_path,
)
from captioning.prediction.outputs import check_output, counts_if_complete, format_of
from captioning.prediction.outputs.files import Sink, real_file
from captioning.prediction.outputs.gallery import Gallery, gallery_path
from captioning.prediction.outputs.heat_maps import HeatMaps, chosen_pictures
from captioning.prediction.outputs.scores import SplitScores, check_score_files
from captioning.prediction.outputs.text_files import TextFiles, text_path
from captioning.runs import is_run
from captioning.weights import HuggingFaceModel, find_weights, stamp_of

log = logging.getLogger(__name__)


@dataclass
class Prediction:
    """How many pictures got a caption, how many could not be read, the file of captions, and a split's scores."""

    captioned: int
    failed: int
    output: Path
    scores: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """A prediction whose paths are checked.

    Attributes:
        config: where it goes on from what a stopped one left, with what that has chosen in the place of `auto`.
        pictures: None where they are a split's, which is read when the model's tokenizer is known.
        settings: what the captions depend on, see `settings_of`; None where the pictures are not known yet.
        sinks: what is made beside the output, likewise.
        complete: what there is, where it leaves nothing to do.
    """

    config: PredictConfig
    output: Path
    weights: Path | HuggingFaceModel
    pictures: InputPictures | None
    settings: dict[str, object] | None
    sinks: "Sinks | None"
    complete: Prediction | None


def predict_config(cfg: DictConfig) -> PredictConfig:
    """The configuration checked; scores of a split join what W&B has of the run in whose own folder they lie."""
    return checked(cfg, PredictConfig, run_dir=cfg.run_dir or run_dir_of(str(cfg.output)))


def run_dir_of(output: str) -> str:
    """Where loggers write: the run's folder that the output lies in, or else a folder beside it."""
    path = Path(output)
    return str(path.parent if is_run(path.parent) else beside(path, "wandb"))


def planned(config: PredictConfig) -> Plan:
    """Raise UserError for paths that are not there, and files that can't be written."""
    output = Path(config.output)
    check_output(output, config.overwrite or config.resume, config.resume)
    config = _going_on(config, real_file(output)) if config.resume else config
    weights = find_weights(config.checkpoint, allow_pickle=config.allow_pickle)
    complete = pictures = settings = sinks = None
    if config.input is not None:
        pictures = InputPictures(find_pictures(config.input))
        if config.text_files.write == "missing":
            pictures = _still_without_texts(config, output, pictures)
        format_of(output).check(output, pictures)
        settings = settings_of(config, weights, pictures.paths)
        complete = _complete(config, output, settings, pictures) if len(pictures) else Prediction(0, 0, output, {})
    elif config.data is not None:
        require_loggers(config.logger.values())
        require_data(config.data)
    if not complete:
        check_output(output, config.overwrite, config.resume)
        if config.data is not None:
            check_score_files(output, config.overwrite or (config.resume and has_lines(real_file(output))))
        if pictures and settings:
            sinks = Sinks.of(config, output, pictures, settings)
    return Plan(config, output, weights, pictures, settings, sinks, complete)


def _going_on(config: PredictConfig, output: Path) -> PredictConfig:
    """With the precision and the batches of before in the place of `auto`: on them a caption's last digits depend."""
    files = (path for path in (journal_settings_path(output), settings_path(output)) if path.is_file())
    saved = json.loads(path.read_text(encoding="utf-8")) if (path := next(files, None)) else {}
    before = {key: saved[key] for key in ("precision", "batch_size") if getattr(config, key) == "auto" and key in saved}
    return config.model_copy(update=before)


def _complete(
    config: PredictConfig, output: Path, settings: Mapping[str, object], pictures: InputPictures
) -> Prediction | None:
    """Where there is nothing to resume since a run came to its end: what it made; only text files may be lacking."""
    counts = counts_if_complete(output, settings) if config.resume else None
    if counts is None:
        return None
    captioned, failed = counts
    if config.text_files.write and format_of(output).is_journal:
        text_files = text_files_of(config, pictures.paths, May(config.overwrite, resume=True))
        for record, _ in lines_of(real_file(output)):
            text_files.add(record)
        text_files.finish()
    elif config.text_files.write and len(_with_texts(config, pictures.paths)) < captioned:
        raise UserError(
            f"output={output} is complete, and text files are made of a .jsonl file or together with the output; "
            "begin anew with overwrite=true and without resume"
        )
    log.info("%s is complete: %d captions; overwrite=true without resume makes it anew", output, captioned)
    return Prediction(captioned, failed, output, {})


def text_files_of(config: PredictConfig, paths: Sequence[Path], may: May) -> TextFiles:
    """The captions beside these pictures, as the section `text_files` has them."""
    return TextFiles(paths, config.input, may, mode=config.text_files.mode, suffix=config.text_files.suffix)


def _with_texts(config: PredictConfig, paths: Sequence[Path]) -> set[Path]:
    return {path for path in paths if text_path(path, config.text_files.suffix).is_file()}


def _still_without_texts(config: PredictConfig, output: Path, pictures: InputPictures) -> InputPictures:
    """The pictures that no text file lies beside, save those that this output's own run has written."""
    file = real_file(output)
    lines = journal_path(file) if has_lines(file) else file if format_of(output).is_journal else None
    own = {record.path for record, _ in lines_of(lines)} if config.resume and lines and lines.is_file() else set()
    done = {path for path in _with_texts(config, pictures.paths) if str(path) not in own}
    log.info("%d of %d pictures have text files already, and are passed over", len(done), len(pictures))
    paths = [path for path in pictures.paths if path not in done]
    return InputPictures(paths)


def settings_of(config: PredictConfig, weights: Path | HuggingFaceModel, paths: Sequence[Path]) -> dict[str, object]:
    """What the captions depend on: goes beside the output, and is compared with by a run that resumes."""
    keys = ("checkpoint", "input", "data", "split", "decoding", "precision", "batch_size")
    settings: dict[str, Any] = {key: value for key, value in config.plain().items() if key in keys}
    names = "\0".join(map(str, paths)).encode("utf-8", "surrogateescape")
    settings["pictures"] = {"number": len(paths), "digest": hashlib.blake2b(names, digest_size=8).hexdigest()}
    if stamp := stamp_of(weights):
        settings["weights"] = stamp
    return settings


@dataclass(frozen=True)
class Sinks:
    """What is made beside the output, each None where it is not asked for.

    Attributes:
        heat_map_places: of the pictures that have heat maps.
    """

    split: SplitScores | None
    heat_maps: HeatMaps | None
    gallery: Gallery | None
    text_files: TextFiles | None
    heat_map_places: frozenset[int]

    @classmethod
    def of(
        cls, config: PredictConfig, output: Path, pictures: InputPictures, settings: Mapping[str, object]
    ) -> "Sinks":
        """Those that are asked for; raises UserError for one that can't be written."""
        may = May(config.overwrite, config.resume and has_lines(real_file(output)))
        places = chosen_pictures(config.heat_maps, pictures.paths)
        page = gallery_path(config.gallery, output)
        split = None
        if pictures.references:
            split = SplitScores(output, len(pictures), config.java, settings, may)
        return cls(
            split,
            HeatMaps(output, pictures.paths, places, may) if places else None,
            Gallery(page, split, may) if page else None,
            text_files_of(config, pictures.paths, may) if config.text_files.write else None,
            frozenset(places),
        )

    @property
    def on_the_way(self) -> list[Sink]:
        """Those that show more than the journal keeps, so that all is captioned again where they are resumed."""
        return [sink for sink in (self.split, self.heat_maps, self.gallery) if sink is not None]

    def finish(self, journal: Journal) -> None:
        """Put all of it in place."""
        for sink in self.on_the_way:
            sink.finish()
        if self.text_files:
            for record in journal:
                self.text_files.add(record)
            self.text_files.finish()
