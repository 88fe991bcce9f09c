"""Files that lie elsewhere, `s3://`, `gs://`, `hf://`, `https://`: read by ranges through fsspec, kept in blocks here.

A block is fetched once for all processes of a machine, written whole or not at all, and makes room for later ones when
the folder is full. What the network objects to is tried again, then said in a sentence.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from captioning.data.images import MAX_FILE_BYTES
from captioning.errors import UserError, writing
from captioning.files import atomic_file, unlocked

log = logging.getLogger(__name__)
for library in ("botocore", "aiobotocore"):  # they say where they have found credentials
    logging.getLogger(library).setLevel(logging.WARNING)

BLOCK_BYTES = 2**23  # of a file, fetched together: some hundred photographs, a fifth of a second
OVERLAP_BYTES = 2**18  # more, so that a photograph which begins in a block does not need the next one too
TRIES = 5
FIRST_WAIT_SECONDS = 0.5  # between tries, doubled each time
LEAST_BLOCKS = 4  # two windows of two: the one in use, and what is fetched in advance
SUFFIX = ".block"
WAY_OUT = "make room, or name another folder: data.local_cache for training, cache for prediction"

Given = TypeVar("Given")


def is_remote(path: str) -> bool:
    """Whether this is a URL."""
    return "://" in path


@dataclass(frozen=True)
class Blocks:
    """The folder of blocks, and how many bytes of them it may hold."""

    folder: Path
    limit: int

    def require_room(self) -> None:
        """Raise UserError where an epoch could not hold the blocks that it reads from at once, and the next ones."""
        if self.limit < (least := LEAST_BLOCKS * (BLOCK_BYTES + OVERLAP_BYTES)):
            raise UserError(
                f"data.cache_gigabytes={self.limit / 1e9:g} is too small: of shards elsewhere {LEAST_BLOCKS} ranges of "
                f"{least / LEAST_BLOCKS / 1e6:.1f} MB are held at once; give {ceil(least / 1e7) / 100} or more"
            )

    def read(self, name: str, start: int, count: int, fetch: Callable[[], bytes]) -> bytes:
        """Bytes of the block of this name, fetched where it isn't there; other processes that want it wait for it."""
        path = self.folder / (name + SUFFIX)
        if (data := _read(path, start, count)) is not None:
            return data
        with writing(self.folder, WAY_OUT):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
        try:
            if (data := _read(path, start, count)) is not None:
                return data
            block = fetch()
            self._keep(path, block)
            return block[start : start + count]
        finally:
            unlocked(lock)

    def _keep(self, path: Path, block: bytes) -> None:
        """Write it, one process at a time: together they hold no more than the limit."""
        with writing(self.folder, WAY_OUT):
            lock = FileLock(self.folder / ".writing.lock")
            lock.acquire()
        try:
            self._make_room(len(block))
            with (
                writing(self.folder, WAY_OUT),
                atomic_file(path) as file,
            ):
                file.write(block)
        finally:
            unlocked(lock)

    def _make_room(self, needed: int) -> None:
        """Count so many bytes as held, behind those that are; where that is too much, the oldest go.

        An epoch's order is done with a block before it comes to much later ones. A sixteenth goes at once: to look
        at all of 200 GB takes half a second. A process that is killed leaves too high a count, which is then made anew.
        """
        count = self.folder / ".held"
        held = _number_in(count)
        if held is None or held + needed > self.limit:
            for unfinished in self.folder.glob(f".*{SUFFIX}.*.tmp"):  # of a killed process: none else writes now
                unfinished.unlink(missing_ok=True)
            files = [(path.stat(), path) for path in self.folder.glob(f"*{SUFFIX}")]
            there = sorted((status.st_mtime_ns, status.st_size, path) for status, path in files)
            held = sum(size for _, size, _ in there)
            room = max(needed, self.limit // 16) if held + needed > self.limit else 0
            for _, size, path in there:
                if held + room <= self.limit:
                    break
                path.unlink(missing_ok=True)
                held -= size
        count.write_text(f"{held + needed:020}")


def _number_in(path: Path) -> int | None:
    with suppress(FileNotFoundError, ValueError):
        return int(path.read_text())
    return None


def _read(path: Path, start: int, count: int) -> bytes | None:
    try:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), count, start)
    except FileNotFoundError:
        return None


def facts_of(url: str) -> tuple[int, str]:
    """A file's bytes, and what changes with its content: its ETag or, of servers without, the time of its change."""
    facts = _tried(url, lambda: _file_system(url).info(url))
    if facts.get("type") == "directory" or facts.get("size") is None:
        raise UserError(f"{url} is no file of a known size; name the files themselves, such as {url}/*.tar")
    names = ("ETag", "etag", "md5Hash", "blob_id", "commit_hash", "LastModified", "Last-Modified", "mtime")
    return int(facts["size"]), str(next((facts[name] for name in names if facts.get(name)), ""))


class RemoteFile(io.RawIOBase):
    """A file elsewhere, read from anywhere in it; `size` and `mark` are as `facts_of` gave them."""

    def __init__(self, url: str, size: int, mark: str, blocks: Blocks):
        self._url, self.size, self._mark, self._blocks, self._at = url, size, mark, blocks, 0

    def read_at(self, start: int, count: int) -> bytes:
        """So many bytes from there, or those that there are."""
        end = min(start + count, self.size)
        pieces = []
        while start < end:
            number, begin = divmod(start, BLOCK_BYTES)
            address = f"{self._url}\n{self._mark}\n{self.size}\n{number}"
            name = hashlib.blake2b(address.encode(), digest_size=16).hexdigest()
            count = min(BLOCK_BYTES + OVERLAP_BYTES - begin, end - start)
            pieces.append(self._blocks.read(name, begin, count, partial(self._fetched, number)))
            start += count
        return b"".join(pieces)

    def _fetched(self, number: int) -> bytes:
        start = number * BLOCK_BYTES
        end = min(start + BLOCK_BYTES + OVERLAP_BYTES, self.size)

        def fetch() -> bytes:
            data: bytes = _file_system(self._url).cat_file(self._url, start=start, end=end)
            if len(data) != end - start:
                raise OSError(f"{len(data)} bytes came instead of those from {start} to {end}")
            return data

        return _tried(self._url, fetch)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next `readinto` begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of every file."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As of every file."""
        data = self.read_at(self._at, min(len(buffer), BLOCK_BYTES))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def matching(pattern: str) -> list[str]:
    """The files elsewhere that a pattern with `*` names, sorted."""
    scheme = pattern.partition("://")[0]
    found = _tried(pattern, lambda: _file_system(pattern).glob(pattern))
    return sorted(path if is_remote(path) else f"{scheme}://{path}" for path in map(str, found))


def listed(folder: str) -> list[str]:
    """All files below a folder elsewhere, sorted."""
    scheme = folder.partition("://")[0]
    found = _tried(folder, lambda: _file_system(folder).find(folder))
    return sorted(path if is_remote(path) else f"{scheme}://{path}" for path in map(str, found))


def names_in(folder: str) -> list[str]:
    """What files directly in a folder elsewhere are called; none where there is no such folder."""

    def ask() -> list[str]:
        system = _file_system(folder)
        system.invalidate_cache()
        try:
            found = system.ls(folder.rstrip("/"), detail=False)
        except FileNotFoundError as error:
            if "bucket" in str(error).lower():
                raise
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    return _tried(folder, ask, "written")


def put(file: Path, url: str) -> None:
    """A file of this machine to a place elsewhere, whole."""
    _tried(url, lambda: _file_system(url).put_file(str(file), url), "written")


def fetch(url: str, file: Path) -> None:
    """A file elsewhere to this machine."""
    _tried(url, lambda: _file_system(url).get_file(url, str(file)))


def removed(url: str) -> None:
    """Remove a file elsewhere."""
    _tried(url, lambda: _file_system(url).rm_file(url), "written")


def read_whole(url: str) -> bytes:
    """A file elsewhere that is small enough to be a picture."""
    size, _ = facts_of(url)
    if size > MAX_FILE_BYTES:
        raise UserError(f"{url}: {size} bytes are more than the limit of {MAX_FILE_BYTES}")
    data: bytes = _tried(url, lambda: _file_system(url).cat_file(url))
    return data


def _file_system(url: str) -> Any:
    """fsspec's of a URL; fsspec keeps it, and makes another in a process that was forked."""
    core = importlib.import_module("fsspec.core")
    return core.url_to_fs(url)[0]


def _tried(url: str, ask: Callable[[], Given], done: str = "read") -> Given:
    """What is asked for, after up to `TRIES` tries; raises UserError with the reason and the way out."""
    for again in range(TRIES):
        try:
            return ask()
        except UserError:
            raise
        except Exception as raised:  # each file system has exceptions of its own
            error = _behind(url, raised)
            if (sentence := _hopeless(url, error, done)) is not None:
                raise UserError(sentence) from error
            if again == TRIES - 1:
                goes_on = "; resume=true goes on" if done == "written" else ""  # of what reads, the reader knows
                raise UserError(f"{url} cannot be {done}, tried {TRIES} times: {_words(error)}{goes_on}") from error
            wait = FIRST_WAIT_SECONDS * 2**again
            log.warning("%s: %s; trying again in %g s", url, _words(error), wait)
            time.sleep(wait)
    raise AssertionError


def _behind(url: str, error: Exception) -> Exception:
    """What happened; fsspec's https:// says of all that goes wrong at first that there is no such file."""
    cause = error.__cause__
    is_other = isinstance(cause, Exception) and getattr(cause, "status", None) not in (404, 410)
    return cause if url.startswith("http") and isinstance(error, FileNotFoundError) and is_other else error  # type: ignore[return-value]


def _hopeless(url: str, error: Exception, done: str = "read") -> str | None:
    """What to say of an error that another try does not mend; None of others."""
    scheme, _, rest = url.partition("://")
    words, kind = f"{error} {error.__cause__ or ''}", type(error).__name__
    if isinstance(error, ImportError) or "Protocol not known" in words:
        package = PACKAGES.get(scheme)
        way_out = (
            f"pip install {package}" if package else f"give {', '.join(f'{one}://' for one in PACKAGES)} or a path"
        )
        return f"{url}: {scheme}:// cannot be read here; {way_out}"
    if "Credentials" in kind or "credentials" in words.lower():
        return f"{url}: there are no credentials for {scheme}://; {CREDENTIALS.get(scheme, 'log in')}"
    if "bucket does not exist" in words or "NoSuchBucket" in words:
        bucket = rest.partition("/")[0]
        return f"{url}: there is no bucket {bucket}; check its name, and AWS_ENDPOINT_URL if it is not AWS's"
    if isinstance(error, FileNotFoundError):
        return f"{url} does not exist"
    if scheme.startswith("http") and getattr(error, "status", None) in (401, 403):
        return f"{url}: the server does not give it out ({error.status}); check the address"  # type: ignore[attr-defined]
    status = error.status if hasattr(error, "status") else getattr(error, "code", None)  # gcsfs has the latter
    if isinstance(error, PermissionError) or status in (401, 403, "401", "403"):
        return f"{url} may not be {done} with these credentials; {CREDENTIALS.get(scheme, 'log in')}"
    return None


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


PACKAGES = {
    "s3": "'captioning[shards]'",
    "https": "'captioning[shards]'",
    "http": "'captioning[shards]'",
    "hf": "huggingface_hub",
    "gs": "'captioning[gs]'",
}
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "hf auth login, or set HF_TOKEN",
}
