"""Files, and folders, that are either whole or not there."""

import filecmp
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when the block ends well: written aside, synced, renamed.

    If the block raises, what was under the name before is untouched and the part written is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)  # or a power cut could take the new name back
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def link_atomically(source: Path, path: Path) -> None:
    """Let `path` be another name of the file `source`, which takes no room; what was under the name stays until then.

    Raises:
        OSError: where the file system has no hard links.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.link(source, aside)
        aside.replace(path)
        _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)  # renaming leaves it where both names are the file's already


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Delete what processes that were killed in `atomic_file` have left beside these files; none may be writing one."""
    known = set(paths)
    for folder in {path.parent for path in known}:
        for aside in folder.glob(".*.*.tmp"):
            name, process, _ = aside.name[1:].rsplit(".", 2)
            if process.isdecimal() and folder / name in known:  # not `.NAME.heat_maps.tmp`
                aside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder that appears under the name `path` only when the block ends well.

    Yields where it lies until then. What was under the name before is replaced as a whole, or, if the block raises,
    untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, replaced = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if path.exists():
            path.replace(replaced)
        try:
            aside.replace(path)
        except OSError:
            if replaced.exists():
                replaced.replace(path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def locked(path: Path) -> FileLock | None:
    """The lock at `path`, None while another process has it; it is freed with the process, however that ends."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.5, poll_interval=0.05)
    except Timeout:
        return None
    return lock


def unlocked(lock: FileLock) -> None:
    """Leave it to others, and no file behind.

    Deleted while it is held: a process that has opened the deleted file and gets its lock finds that it has no name
    any more, and takes another (filelock does so).
    """
    with suppress(OSError):  # a file that is open can't be deleted on Windows
        Path(lock.lock_file).unlink()
    lock.release()


HEAT_MAPS = "heat_maps"  # how folders of strips end, which lie beside outputs and are no input


def is_passed_over(name: str) -> bool:
    """Whether a file or a folder of this name is no input: a hidden one, or one of strips."""
    return name.startswith(".") or name.endswith(f".{HEAT_MAPS}")


def files_below(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """All files below a folder but those passed over; no folder twice, whatever circles its links make."""
    seen = {_identity(folder)}
    for root, folders, files in os.walk(folder, followlinks=True, onerror=on_error):
        here = Path(root)
        visible = [here / name for name in sorted(folders) if not is_passed_over(name)]
        new = []
        for child in sorted(visible, key=Path.is_symlink):  # real folders first: their own names are the better ones
            identity = _identity(child)
            if identity not in seen:
                seen.add(identity)
                new.append(child.name)
        folders[:] = new
        yield from (here / name for name in files if not name.startswith("."))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def is_same_file(path: Path, other: Path) -> bool:
    """Whether both are there and hold the same bytes."""
    return path.is_file() and other.is_file() and filecmp.cmp(path, other, shallow=False)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's whole text, UTF-8."""
    with atomic_file(path) as file:
        file.write(text.encode())


def readable(path: Path) -> str:
    """The path as a person in the current folder would type it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
