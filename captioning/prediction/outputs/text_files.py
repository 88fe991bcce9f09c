"""A caption beside each picture: `a.txt` for `a.jpg`, as trainers of LoRAs and of text-to-image models read them."""

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from captioning.errors import UserError, writing
from captioning.files import remove_unfinished, write_atomically
from captioning.prediction.journal import NOTHING, CaptionedPicture, May
from captioning.prediction.outputs.files import Sink

log = logging.getLogger(__name__)

SHOWN = 3  # names in a sentence about many


def text_path(picture: Path) -> Path:
    """Where the caption of a picture lies: beside the name that the input has, also where that is a link."""
    return picture.with_suffix(".txt")


class TextFiles(Sink):
    """Writes the captions beside their pictures at the end, when nothing can go wrong any more.

    A file holds its caption on one line, since trainers read the first line only, and appears under its name whole. A
    picture without a caption gets none. Where an existing file may be overwritten and is a link, the link is replaced
    and not the file behind it, which may belong to another folder of links.

    Args:
        paths: of all pictures that may get a caption.
        sources: the key `input`, which may name lists of pictures; they are never replaced.
        may: what is done with a file that exists.

    Raises:
        UserError: at once, if a file exists, two pictures would share one, or a folder can't be written; at the end,
            if a file can't be written.
    """

    def __init__(self, paths: Sequence[Path], sources: object = (), may: May = NOTHING):
        self._may = may
        self._captions: dict[Path, str] = {}
        _check_inputs(paths, sources)
        _check_distinct(paths)
        _check_free([text_path(path) for path in paths], any(may))
        _check_folders({path.parent for path in paths})

    def add(self, record: CaptionedPicture) -> None:
        """The next picture."""
        if record.caption is not None:
            self._captions[text_path(Path(record.path))] = record.caption

    def finish(self) -> None:
        """Write them."""
        failures = []
        if self._may.resume:
            remove_unfinished(self._captions)
        for target, caption in self._captions.items():
            text = " ".join(caption.splitlines()) + "\n"
            try:
                if not self._may.overwrite and os.path.lexists(target):
                    if self._may.resume and target.read_bytes() == text.encode():
                        continue
                    happened = "it holds something else" if self._may.resume else "it appeared meanwhile"
                    raise FileExistsError(None, happened)
                write_atomically(target, text)
            except OSError as error:
                failures.append(f"{target} ({error.strerror})")
        if failures:
            counted = f"{len(failures)} of {len(self._captions)} can't be written: {_some(failures)}"
            raise UserError(
                f"text_files=true: {counted}; all captions are kept: go on with resume=true, or without them"
            )
        log.info("%d text files beside their pictures", len(self._captions))


def _check_distinct(paths: Iterable[Path]) -> None:
    """No two pictures of a folder, by whatever names it goes, with the same name but for the suffix."""
    folders: dict[Path, str] = {}
    known: dict[tuple[str, str], Path] = {}
    shared = []
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        other = known.setdefault((folders[path.parent], text_path(path).name), path)
        if other is not path:
            shared.append(f"{other} and {path}")
    if shared:
        counted = f"{len(shared)} captions would replace the text file of another: {_some(shared)}"
        raise UserError(f"text_files=true: {counted}; rename one of each pair, or caption them apart")


def _check_inputs(paths: Iterable[Path], sources: object) -> None:
    """Every picture has a name, and none of them, and no list that the input names, is what would be written."""
    named = sources if isinstance(sources, list | tuple) else [sources]
    lists = {os.path.realpath(os.path.expanduser(str(one))) for one in named}  # noqa: PTH111  # as the input is read
    lists = {one for one in lists if one.lower().endswith(".txt")}
    for path in paths:
        if not path.name:
            raise UserError(f"text_files=true: the input names {path}, which is no picture; take it out")
        target = text_path(path)
        if target == path or (lists and os.path.realpath(target) in lists):
            raise UserError(f"text_files=true: the caption of {path} would replace {target}, an input; rename one")


def _check_free(targets: Sequence[Path], overwrite: bool) -> None:
    existing = [str(target) for target in targets if os.path.lexists(target)]
    in_the_way = [target for target in existing if not Path(target).is_file() and not Path(target).is_symlink()]
    if in_the_way:
        raise UserError(f"text_files=true: {_some(in_the_way)} would be replaced and is no file; move it")
    if existing and not overwrite:
        counted = f"{len(existing)} of {len(targets)} text files exist already: {_some(existing)}"
        raise UserError(f"text_files=true: {counted}; replace them with overwrite=true, or move them")


def _check_folders(folders: Iterable[Path]) -> None:
    way_out = "change its permissions, or leave the captions in the output alone with text_files=false"
    for folder in sorted(folders):
        with writing(f"text_files=true: {folder}", way_out):
            if folder.is_dir():  # else its pictures can't be read either, and get no caption
                tempfile.TemporaryFile(dir=folder).close()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
