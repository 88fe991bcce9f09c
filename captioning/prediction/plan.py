"""What a prediction is to do, checked as far as that takes no time: no torch and no weights are loaded for it."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from captioning.config import UNRULED, PredictConfig, checked, require_loggers
from captioning.data.datasets import require_data
from captioning.data.index import Columns, WrongColumn
from captioning.data.remote import fetch, is_remote, names_in
from captioning.errors import UserError
from captioning.prediction.inputs import TABLES, Found, InputPictures, JoinedPictures, Shard, find_inputs
from captioning.prediction.journal import (
    Journal,
    May,
    beside,
    has_lines,
    journal_path,
    journal_settings_path,
    lines_of,
    settings_path,
    to_json,
)
from captioning.prediction.outputs import FORMATS, check_output, counts_if_complete, format_of
from captioning.prediction.outputs.elsewhere import FileElsewhere
from captioning.prediction.outputs.files import Sink, real_file
from captioning.prediction.outputs.gallery import Gallery, gallery_path
from captioning.prediction.outputs.heat_maps import HeatMaps, chosen_pictures
from captioning.prediction.outputs.read_back import captioned_names
from captioning.prediction.outputs.scores import SplitScores, check_score_files
from captioning.prediction.outputs.text_files import TextFiles, text_path
from captioning.prediction.parts import SETTINGS as OF_FOLDER
from captioning.prediction.parts import Choice, Part, PartFiles, Reading, limited, parts_of
from captioning.runs import is_run
from captioning.weights import HuggingFaceModel, find_weights, stamp_of

log = logging.getLogger(__name__)


SETTINGS = ("checkpoint", "input", "data", "split", "decoding", "precision", "batch_size")


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
        parts: of the input, where the output is a folder, or a cluster captions it; else None, as is `reading`.
        reading: how they are opened.
        spans: where each begins among `pictures`, and how many it has; None where the output is a folder.
        elsewhere: where the output is put at last, if that is no file of this machine.
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
    parts: list[Part] | None = None
    reading: Reading | None = None
    spans: Mapping[str, tuple[int, int]] | None = None
    elsewhere: FileElsewhere | None = None


def predict_config(cfg: DictConfig) -> PredictConfig:
    """The configuration checked; scores of a split join what W&B has of the run in whose own folder they lie."""
    return checked(cfg, PredictConfig, run_dir=cfg.run_dir or run_dir_of(str(cfg.output)))


def run_dir_of(output: str) -> str:
    """Where loggers write: the run's folder that the output lies in, or else a folder beside it."""
    path = Path(output)
    return str(path.parent if is_run(path.parent) else beside(path, "wandb"))


def planned(config: PredictConfig) -> Plan:
    """Raise UserError for paths that are not there, and files that can't be written."""
    if writes_folder(config.output):
        return _planned_in_parts(config)
    if config.format != "jsonl":
        raise UserError(
            f"format={config.format} is of the files in a folder, and output={config.output} is a file, whose suffix "
            f"says its format; name a folder, {config.output}/, or a file that ends in .{config.format}"
        )
    format_of(config.output)
    elsewhere = _elsewhere(config) if is_remote(config.output) else None
    if config.engine == "ray" and config.heat_maps:
        raise UserError(f"heat_maps={config.heat_maps}: engine=ray draws none; leave them out, or say engine=local")
    output = elsewhere.file if elsewhere else Path(config.output)
    check_output(output, config.overwrite or config.resume, config.resume)
    config = _going_on(config, real_file(output)) if config.resume else config
    weights = find_weights(config.checkpoint, allow_pickle=config.allow_pickle)
    complete = pictures = settings = sinks = chosen = None
    if config.input is not None:
        pictures, chosen = _chosen(config, _found(config), weights)
        if config.text_files.write == "missing":
            pictures = _still_without_texts(config, output, pictures)
        format_of(output).check(output, pictures)
        settings = settings_of(config, weights, pictures.paths)
        complete = _complete(config, output, settings, pictures) if len(pictures) else Prediction(0, 0, output, {})
        if elsewhere and (counts := elsewhere.counts_if_complete(settings)):
            complete = Prediction(*counts, output, {})
    elif config.data is not None:
        require_loggers(config.logger.values())
        require_data(config.data)
    if not complete:
        check_output(output, config.overwrite, config.resume)
        if config.data is not None:
            check_score_files(output, config.overwrite or (config.resume and has_lines(real_file(output))))
        if pictures and settings:
            sinks = Sinks.of(config, output, pictures, settings)
    plan = Plan(config, output, weights, pictures, settings, sinks, complete, elsewhere=elsewhere)
    return _for_cluster(plan, chosen) if config.engine == "ray" and chosen else plan


def _elsewhere(config: PredictConfig) -> FileElsewhere:
    """One file that lies elsewhere; raises UserError for what would lie beside it, or if it may not be written."""
    beside = {"data": config.data, "gallery": config.gallery is True, "heat_maps": config.heat_maps}
    if asked := [name for name, value in beside.items() if value]:
        raise UserError(
            f"{asked[0]} writes files beside the output, and output={config.output} lies elsewhere; name a file of "
            f"this machine, or leave {asked[0]} out"
        )
    may = May(config.overwrite, config.resume)
    elsewhere = FileElsewhere(config.output, Path(config.cache).expanduser(), may)
    elsewhere.check()
    return elsewhere


def _for_cluster(plan: Plan, chosen: "_Chosen") -> Plan:
    """The pictures in parts, as a cluster is given them."""
    assert plan.pictures is not None
    parts, reading, sizes = chosen.parts, chosen.reading, chosen.sizes
    if plan.pictures.stored is None:  # they are files of this machine, and all chosen
        parts, reading = parts_of(list(plan.pictures.paths), plan.config.part_size), replace(reading, choice=Choice())
        sizes = [len(part.names) for part in parts]
    starts = [0, *accumulate(sizes)]
    spans = {part.name: (start, size) for part, start, size in zip(parts, starts, sizes, strict=False)}
    return replace(plan, parts=parts, reading=reading, spans=spans)


def writes_folder(output: str) -> bool:
    """Whether it names a folder of files.

    Raises:
        UserError: it is on a web server; or lies elsewhere and may be either.
    """
    if output.startswith(("http://", "https://")):
        raise UserError(f"output={output}: a web server takes no files; name a file or a folder here, or s3://, gs://")
    if is_remote(output) and not output.endswith("/") and not Path(output).suffix:
        raise UserError(f"output={output}: say {output}/ for a folder of files, or {output}.jsonl for one")
    return output.endswith("/") or (not is_remote(output) and Path(output).is_dir())


def _planned_in_parts(config: PredictConfig) -> Plan:
    if config.input is None:
        raise UserError(f"output={config.output} is a folder, and a split of a data set goes into one file; name one")
    beside = {"text_files": config.text_files.write, "gallery": config.gallery, "heat_maps": config.heat_maps}
    if asked := [name for name, value in beside.items() if value]:
        raise UserError(
            f"{asked[0]} goes with one file of captions, and output={config.output} is a folder of them; name a file "
            f"such as captions.jsonl, or leave {asked[0]} out"
        )
    FORMATS[f".{config.format}"].check(config.output, InputPictures([]))
    weights = find_weights(config.checkpoint, allow_pickle=config.allow_pickle)
    reading, may = reading_of(config, weights), May(config.overwrite, config.resume)
    PartFiles(config.output, f".{config.format}", reading.cache, reading, {}, may).check()
    found = _found(config)
    parts = limited(parts_of(found, config.part_size, config.every_nth), reading, config.limit)
    if config.input_column and parts and parts[0].shard:
        try:
            reading.opened(parts[0])
        except WrongColumn:
            raise
        except UserError as error:  # it will be said again when the others are captioned
            log.warning("%s", error)
    return Plan(config, Path(config.output), weights, None, None, None, None, parts, reading)


def _found(config: PredictConfig) -> list[Found]:
    assert config.input is not None
    found = find_inputs(config.input, config.input_column)
    sources = [config.input] if isinstance(config.input, str) else config.input
    is_table = any(source.lower().endswith(TABLES) for source in sources)
    if config.input_column and not is_table and not any(isinstance(one, Shard) for one in found):
        raise UserError(
            f"input_column={config.input_column}: there is no table and no shard in the input; leave it out"
        )
    return found


def reading_of(config: PredictConfig, weights: Path | HuggingFaceModel) -> Reading:
    """How the input is opened, and which of it is captioned."""
    done = captioned_before(config, weights) if config.skip_existing else frozenset()
    return Reading(
        Columns(config.input_column, None, lines=False, predicted=True),
        Path(config.cache).expanduser(),
        int(config.cache_gigabytes * 1e9),
        config.on_missing,
        config.private_urls,
        Choice(config.every_nth, config.sample, config.seed, done),
    )


def captioned_before(config: PredictConfig, weights: Path | HuggingFaceModel) -> frozenset[str]:
    """What `skip_existing` has captions of.

    Raises:
        UserError: it is not there, or was made by other weights or another decoding.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved, files = _made_before(str(config.skip_existing), Path(folder))
        now = settings_of(config, weights, [])
        keys = ["weights" if "weights" in now else "checkpoint", "decoding", "caption_prefix", "caption_suffix"]
        if differing := [key for key in keys if to_json(saved.get(key)) != to_json(now.get(key))]:
            what = " and ".join(differing)
            raise UserError(f"skip_existing={config.skip_existing} was made with another {what}; leave it out")
        found = frozenset(name for file in files for name in captioned_names(file))
    log.info("%s has captions of %d pictures, which are left out", config.skip_existing, len(found))
    return found


class _Chosen(NamedTuple):
    """What is captioned into one file, in parts of so many pictures."""

    parts: list[Part]
    reading: Reading
    sizes: list[int]


def _made_before(before: str, folder: Path) -> tuple[dict[str, Any], Iterator[Path]]:
    """The settings of an output and its files; what lies elsewhere is fetched into the folder, one after the other.

    Raises:
        UserError: there is no such output.
    """
    place = before.rstrip("/") if is_remote(before) else str(Path(before).expanduser().absolute())
    parent, _, name = place.rpartition("/")
    for where, said in ((place, OF_FOLDER), (parent, settings_path(Path(name)).name)):
        names = set(names_in(where)) if is_remote(where) else {path.name for path in Path(where).glob("*")}
        if said not in names or (where == parent and name not in names):
            continue
        saved = json.loads(next(_fetched(where, [said], folder)).read_text(encoding="utf-8"))
        suffix = f".{saved.get('format', 'jsonl')}"
        files = [name] if where == parent else sorted(one for one in names if one.endswith(suffix))
        return saved, _fetched(where, files, folder)
    raise UserError(
        f"skip_existing={before}: no captions of predict.py are there; name its output, or for text files say "
        "text_files=missing"
    )


def _fetched(where: str, names: Iterable[str], folder: Path) -> Iterator[Path]:
    for name in names:
        if not is_remote(where):
            yield Path(where) / name
            continue
        fetch(f"{where}/{name}", folder / name)
        yield folder / name
        (folder / name).unlink()


def _chosen(
    config: PredictConfig, found: Sequence[Found], weights: Path | HuggingFaceModel
) -> tuple[InputPictures, _Chosen]:
    """The pictures of one output, and the parts that they are in."""
    reading = reading_of(config, weights)
    parts = limited(parts_of(found, config.part_size, config.every_nth), reading, config.limit)
    opened = [reading.opened(part) for part in parts]
    stored, chosen = JoinedPictures(opened), _Chosen(parts, reading, [*map(len, opened)])
    if any(not isinstance(one, Path) for one in found):
        if config.text_files.write:
            raise UserError("text_files=true writes beside pictures that are files of this machine; name those alone")
        return InputPictures.of(stored), chosen
    return InputPictures([Path(stored.name(i)) for i in range(len(stored))]), chosen


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


def settings_of(
    config: PredictConfig, weights: Path | HuggingFaceModel, paths: Sequence[Path | str]
) -> dict[str, object]:
    """What the captions depend on: goes beside the output, and is compared with by a run that resumes."""
    settings: dict[str, Any] = {key: value for key, value in config.plain().items() if key in SETTINGS}
    decoding = settings["decoding"]
    said = ("no_repeat_ngram_size", "n_best") if "num_beams" in decoding else ()
    unsaid = {k: v for k, v in (UNRULED | {"n_best": 1}).items() if k not in said}
    settings["decoding"] = {k: v for k, v in decoding.items() if k not in unsaid or v != unsaid[k]}
    chosen = {
        "caption_prefix": "",
        "caption_suffix": "",
        "every_nth": 1,
        "sample": 1.0,
        "min_size": 0,
        "limit": None,
        "input_column": None,
        "skip_existing": None,
        "on_missing": "error",
    }  # usual ones are not said
    settings |= {key: getattr(config, key) for key, usual in chosen.items() if getattr(config, key) != usual}
    if config.sample != 1:
        settings["seed"] = config.seed
    names = "\0".join(map(str, paths)).encode("utf-8", "surrogateescape")
    settings["pictures"] = {"number": len(paths), "digest": hashlib.blake2b(names, digest_size=8).hexdigest()}
    if stamp := stamp_of(weights):
        settings["weights"] = stamp
    return settings


def settings_of_parts(
    config: PredictConfig, weights: Path | HuggingFaceModel, parts: Sequence[Part], skipped: int
) -> dict[str, object]:
    """The same of a folder; batches, and which engine makes them, are another's from one start to the next."""
    settings = settings_of(config, weights, [part.name for part in parts])
    if config.skip_existing:
        settings["skip_existing"] = f"{config.skip_existing} with {skipped} pictures"
    settings["parts"] = settings.pop("pictures")
    settings = {key: value for key, value in settings.items() if key not in ("batch_size", "data", "split")}
    return settings | {"format": config.format, "part_size": config.part_size}


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
