"""A caption beside each picture: `a.txt` for `a.jpg`, as trainers of LoRAs and of text-to-image models read them."""

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from captioning.errors import UserError, writing
from captioning.files import atomic_file, remove_unfinished
from captioning.prediction.journal import NOTHING, CaptionedPicture, May
from captioning.prediction.outputs.files import Sink

log = logging.getLogger(__name__)

SHOWN = 3  # names in a sentence about many


def text_path(picture: Path, suffix: str = ".txt") -> Path:
    """Where the caption of a picture lies: beside the name that the input has, also where that is a link."""
    return picture.with_suffix(suffix)


def joined(before: str, caption: str, mode: str) -> str:
    """A caption behind (`append`) or before (`prepend`) the text that a file has, on one line as trainers read it.

    >>> joined("red, car", "a car", "append"), joined("red, car", "a car", "prepend"), joined("", "a car", "append")
    ('red, car, a car', 'a car, red, car', 'a car')
    """
    texts = [before, caption] if mode == "append" else [caption, before]
    return ", ".join(filter(None, texts))


class TextFiles(Sink):
    """Writes the captions beside their pictures at the end, when nothing can go wrong any more.

    A file holds its caption on one line, since trainers read the first line only, and appears under its name whole. A
    picture without a caption gets none. Where an existing file may be overwritten and is a link, the link is replaced
    and not the file behind it, which may belong to another folder of links.

    Args:
        paths: of all pictures that may get a caption.
        sources: the key `input`, which may name lists of pictures; they are never replaced.
        may: what is done with a file that exists.
        mode: `replace`, or `append` or `prepend`: then the caption joins what an existing file says.
        suffix: of the files.

    Raises:
        UserError: at once, if a file exists, two pictures would share one, or a folder can't be written; at the end,
            if a file can't be written.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sources: object = (),
        may: May = NOTHING,
        *,
        mode: str = "replace",
        suffix: str = ".txt",
    ):
        self._may, self._mode, self._suffix = may, mode, suffix
        self._captions: dict[Path, str] = {}
        if nameless := [path for path in paths if not path.name]:
            raise UserError(f"text_files=true: the input names {nameless[0]}, which is no picture; take it out")
        targets = [text_path(path, suffix) for path in paths]
        _check_inputs(paths, targets, sources)
        _check_distinct(paths)
        _check_free(targets, any(may) or mode != "replace")
        _check_folders({path.parent for path in paths})

    def add(self, record: CaptionedPicture) -> None:
        """The next picture."""
        if record.caption is not None:
            self._captions[text_path(Path(record.path), self._suffix)] = record.caption

    def finish(self) -> None:
        """Write them."""
        failures = []
        if self._may.resume:
            remove_unfinished(self._captions)
        for target, caption in self._captions.items():
            try:
                self._write(target, " ".join(caption.splitlines()))
            except OSError as error:
                failures.append(f"{target} ({error.strerror})")
        if failures:
            counted = f"{len(failures)} of {len(self._captions)} can't be written: {_some(failures)}"
            raise UserError(
                f"text_files=true: {counted}; all captions are kept: go on with resume=true, or without them"
            )
        log.info("%d text files beside their pictures", len(self._captions))

    def _write(self, target: Path, text: str) -> None:
        exists = os.path.lexists(target)
        if exists and self._mode != "replace":
            before = " ".join(target.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n")).strip()
            is_in = before.endswith(text) if self._mode == "append" else before.startswith(text)
            if self._may.resume and is_in:  # by the run that is resumed
                return
            text = joined(before, text, self._mode)
        elif exists and not self._may.overwrite:
            if self._may.resume and target.read_bytes() == f"{text}\n".encode():
                return
            raise FileExistsError(None, "it holds something else" if self._may.resume else "it appeared meanwhile")
        with atomic_file(target) as file:
            file.write(f"{text}\n".encode("utf-8", "surrogateescape"))


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


def _check_inputs(paths: Iterable[Path], targets: Iterable[Path], sources: object) -> None:
    """None of the pictures, and no list that the input names, is what would be written."""
    named = sources if isinstance(sources, list | tuple) else [sources]
    lists = {os.path.realpath(os.path.expanduser(str(one))) for one in named}  # noqa: PTH111  # as the input is read
    for path, target in zip(paths, targets, strict=True):
        if target == path or os.path.realpath(target) in lists:
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
