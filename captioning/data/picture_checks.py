"""Before a model is built: are the picture files there, and can they be read?"""

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from captioning.data.pictures import UnreadablePicture, read_picture
from captioning.data.readers.folders import names_in
from captioning.data.records import Photograph
from captioning.errors import UserError

log = logging.getLogger(__name__)

Splits = dict[str, list[Photograph]]
NAMED = 3  # files that a message names; their number says the rest
PORTION = 256  # files that a thread checks before it reports
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"  # what COCO and Flickr are made of


def check_on_missing(on_missing: str) -> None:
    """Raise UserError for anything but `error` and `skip`."""
    if on_missing not in ("error", "skip"):
        raise UserError(f"data.on_missing={on_missing} must be error or skip")


def without_missing(divided: Mapping[str, list[Photograph]], on_missing: str) -> Splits:
    """The splits without photographs of which there is no file (`skip`), or a UserError that counts them (`error`)."""
    paths = [photograph.path for photograph in chain(*divided.values())]
    listings = {folder: names_in(folder) for folder in {path.parent for path in paths}}
    missing = {path: "" for path in paths if path.name not in listings[path.parent]}
    if paths and len(missing) == len(paths):
        raise UserError(
            f"all {len(paths)} picture files are missing, such as {_first(missing)}; unpack the pictures there"
        )
    return _without(divided, missing, "missing", on_missing)


def without_unreadable(divided: Mapping[str, list[Photograph]], on_missing: str) -> Splits:
    """The same for files that are no whole pictures.

    A file with the first and last bytes of a JPEG is taken as whole, the others are decoded, so this finds empty,
    truncated and foreign files; damage in the middle of a JPEG is met in training. Takes about 20 microseconds a file
    (866 Flickr8k photographs, two CPU cores, files cached), and 3 s for 123,287 files, as many as COCO has; where
    opening a file takes long, as on a network drive, 16 threads wait at once.
    """
    paths = [photograph.path for photograph in chain(*divided.values())]
    portions = [paths[start : start + PORTION] for start in range(0, len(paths), PORTION)]
    unreadable: dict[Path, str] = {}
    with (
        ThreadPoolExecutor(16) as threads,
        tqdm(desc="checking pictures", total=len(paths), unit="", delay=2, leave=False, disable=None) as progress,
    ):
        for portion, found in zip(portions, threads.map(_unreadable_among, portions), strict=True):
            unreadable |= found
            progress.update(len(portion))
    return _without(divided, unreadable, "unreadable", on_missing)


def _unreadable_among(paths: Sequence[Path]) -> dict[Path, str]:
    return {path: reason for path in paths if (reason := why_unreadable(path))}


def why_unreadable(path: Path) -> str | None:
    """One short reason why there is no picture in this file, as far as its ends tell."""
    if _is_whole_jpeg(path):
        return None
    try:
        read_picture(path)
    except UnreadablePicture as error:
        return str(error)
    return None


def _is_whole_jpeg(path: Path) -> bool:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or not status.st_size:  # opening a pipe would wait for ever
            return False
        with path.open("rb", buffering=0) as file:
            if file.read(len(JPEG_START)) != JPEG_START:
                return False
            file.seek(-len(JPEG_END), os.SEEK_END)
            return file.read() == JPEG_END
    except OSError:  # read_picture says why
        return False


def _without(divided: Mapping[str, list[Photograph]], bad: Mapping[Path, str], what: str, on_missing: str) -> Splits:
    if bad:
        count = sum(map(len, divided.values()))
        found = f"{len(bad)} of {count} picture files are {what}, such as {_first(bad)}"
        if on_missing == "error":
            raise UserError(f"{found}; data.on_missing=skip leaves them out")
        log.warning("%s; they are left out", found)
    return {name: [p for p in photographs if p.path not in bad] for name, photographs in divided.items()}


def _first(bad: Mapping[Path, str]) -> str:
    return ", ".join(f"{path} ({reason})" if reason else str(path) for path, reason in islice(bad.items(), NAMED))
