"""What predictions are written as: the formats by their suffix, and what may be written where.

A new format is an entry in `FORMATS`.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from captioning.errors import UserError
from captioning.prediction.inputs import InputPictures
from captioning.prediction.journal import (
    COUNTS,
    Journal,
    May,
    check_journal,
    disk_errors,
    finish_completing,
    has_lines,
    journal_settings_path,
    other_settings,
    refuse_while_written,
    settings_path,
)
from captioning.prediction.outputs.coco import CocoResults
from captioning.prediction.outputs.csv import Csv
from captioning.prediction.outputs.files import Format, check_file, new_file, real_file
from captioning.prediction.outputs.jsonl import JsonLines
from captioning.prediction.outputs.parquet import ParquetTable
from captioning.prediction.outputs.tar import Tar

log = logging.getLogger(__name__)

FORMATS: dict[str, type[Format]] = {
    ".jsonl": JsonLines,
    "": JsonLines,
    ".csv": Csv,
    ".json": CocoResults,
    ".parquet": ParquetTable,
    ".tar": Tar,
}


def format_of(output: str | Path) -> type[Format]:
    """The format that the suffix of `output` names; raises UserError for a suffix that names none."""
    suffix = Path(output).suffix
    if suffix.lower() not in FORMATS:
        raise UserError(
            f"output={output} ends in {suffix}; name a .jsonl, a .csv or a .json file (COCO results), a .parquet, a "
            ".tar (with the pictures), or a folder, which ends in /"
        )
    return FORMATS[suffix.lower()]


def check_output(output: str | Path, overwrite: bool, resume: bool = False) -> None:
    """Raise UserError unless `output` and its settings file can be written, before any time is spent on captions.

    A missing parent folder is made. Files that exist are refused unless `overwrite`, and so is a suffix that names no
    format, an output that another process is writing, and one of which a stopped run left lines, unless that or
    `resume` is said. With `resume`, what a run did that was killed in its last steps is ended.
    """
    made_in = format_of(output)
    with disk_errors("output", output):
        path = real_file(output)
        if resume:
            finish_completing(output, path)
        refuse_while_written(output, path)
    # A run killed in its last steps may have put a table in place: `finish` looks whether it is the same.
    may_exist = resume and not made_in.is_journal and has_lines(path)
    check_file("output", output, overwrite, settings_path(path), may_exist=may_exist)
    with disk_errors("output", output), suppress(FileNotFoundError):
        check_journal(output, path, May(overwrite, resume))
        longest = journal_settings_path(path)
        longest.with_name(f".{longest.name}.1234567.tmp").lstat()


def counts_if_complete(output: str | Path, settings: Mapping[str, object]) -> tuple[int, int] | None:
    """Pictures with and without a caption where there is nothing to resume: `output` is whole, of these settings.

    Raises:
        UserError: if it was made with others.
    """
    path = real_file(output)
    if has_lines(path) or not (path.is_file() and settings_path(path).is_file()):
        return None
    return counts_said(output, settings_path(path), settings)


def counts_said(output: str | Path, beside: Path, settings: Mapping[str, object]) -> tuple[int, int] | None:
    """The same from the settings that lie beside a complete output; None where it does not say them."""
    if differing := other_settings(beside, settings):
        raise UserError(
            f"output={output} is complete and was made otherwise: {differing}; replace it with overwrite=true alone, "
            "or name another"
        )
    captioned, failed = map(json.loads(beside.read_text(encoding="utf-8")).get, COUNTS)
    return None if captioned is None else (captioned, failed)


def put_in_place(journal: Journal, pictures: InputPictures | None = None, *, says: bool = True) -> None:
    """End a prediction: its output is the journal itself, or is made of it, and of the pictures where it holds them.

    Raises:
        UserError: if something else has got its name meanwhile, unless that may be overwritten.
    """
    given, may, made_in = journal.given, journal.may, format_of(journal.given)
    may_exist = may.resume and not made_in.is_journal
    check_file("output", given, may.overwrite, settings_path(journal.output), may_exist=may_exist)
    if not made_in.is_journal:
        with new_file("output", given, may) as file:
            sink = made_in(file, pictures)
            for record in journal:
                sink.add(record)
            sink.finish()
    journal.complete(becomes_output=made_in.is_journal)
    if not says:
        return
    if journal.failed:
        why, total = made_in.about_failures.format(reasons=journal.reasons), journal.captioned + journal.failed
        log.warning("%d of %d pictures could not be read; %s", journal.failed, total, why)
    if journal.has_alternatives and not made_in.holds_alternatives:
        log.warning("%s holds the best caption of each picture; the others need a .jsonl file", given)
