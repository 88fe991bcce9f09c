"""Archives of the web -> files under a folder: fetched, resumed where it broke off, checked, unpacked."""

import hashlib
import logging
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from captioning.errors import UserError, writing
from captioning.files import readable
from captioning.progress import progress

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes that are read, and counted, at once
TIMEOUT_SECONDS = 60.0  # without a byte
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0  # before another try, doubled after each that brought nothing
TRIES = 8  # in a row that bring nothing
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that may be another a little later
AGENT = {"User-Agent": "captioning (urllib)"}


@dataclass(frozen=True)
class Archive:
    """A zip file on the web.

    Attributes:
        url: http is enough, since `md5` is checked.
        md5: of the whole file, as several independent projects have published it.
        size: in bytes, where that is published too; it is known before anything is fetched.
        folder: under root, into which it is unpacked.
        only: which of its members, as a regular expression of their whole names; None is all.
    """

    url: str
    md5: str
    size: int | None = None
    folder: str = ""
    only: str | None = None

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rpartition("/")[2]


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive in `folder`, whole; what is there already is kept and gone on from.

    Raises:
        UserError: the server has no such file, does not answer, or sends other bytes than are known; the disk is full.
    """
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    if path.is_file():
        part = path
    for _ in range(2):
        if part is not path:
            _fetch_part(archive, part)
        md5 = _md5(part)
        if md5 == archive.md5:
            part.replace(path)
            return path
        log.warning("%s has the MD5 %s and not %s: it is fetched anew", readable(part), md5, archive.md5)
        with writing(part, "delete it"):
            part.unlink()
        part = folder / f"{archive.name}.part"
    raise UserError(
        f"what {archive.url} sent twice is not the archive whose MD5 is {archive.md5}; something on the way changes "
        f"it. Fetch it another way, put it at {path}, and run the same command again"
    )


def _fetch_part(archive: Archive, part: Path) -> None:
    """Until the file is as long as it should be."""
    tries, wait = 0, FIRST_WAIT_SECONDS
    while True:
        before = part.stat().st_size if part.exists() else 0
        if before and before == archive.size:
            return
        try:
            with _answer(archive, before) as answer:
                if _append(archive, part, answer, before):
                    return
            problem = "the connection ended early"
        except HTTPError as error:
            if error.code == 416 and before:  # nothing is behind what is there; its MD5 says whether that is all
                return
            if error.code not in TEMPORARY:
                raise UserError(f"{archive.url} cannot be fetched: {error.code} {error.reason}") from error
            problem, wait = f"{error.code} {error.reason}", max(wait, _asked_to_wait(error))
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        after = part.stat().st_size if part.exists() else 0
        tries, wait = (tries + 1, wait) if after <= before else (0, FIRST_WAIT_SECONDS)
        if tries >= TRIES:
            raise UserError(
                f"{archive.url} cannot be fetched: {problem}, {tries} times in a row; {after:,} bytes are kept in "
                f"{part}, and the same command goes on from there"
            )
        log.warning("%s: %s; trying again in %.0f s", archive.name, problem, wait)
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def _answer(archive: Archive, start: int) -> HTTPResponse:
    headers = AGENT | ({"Range": f"bytes={start}-"} if start else {})
    answer: HTTPResponse = urlopen(Request(archive.url, headers=headers), timeout=TIMEOUT_SECONDS)
    return answer


def _asked_to_wait(error: HTTPError) -> float:
    """Seconds, as the server says; 0 where it does not, or says too many."""
    seconds = error.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() and int(seconds) <= LONGEST_WAIT_SECONDS else 0.0


def _append(archive: Archive, part: Path, answer: HTTPResponse, before: int) -> bool:
    """Write what comes behind what is there, or from the start where the server sends that; whether it is all."""
    goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {before}-")
    start = before if goes_on else 0
    length = answer.headers.get("Content-Length")
    whole = start + int(length) if length else archive.size
    if archive.size and whole != archive.size:
        raise UserError(
            f"{archive.url} has {whole or 0:,} bytes, and {archive.size:,} are published: it is another file; fetch "
            f"{archive.name} another way, and put it at {part.with_name(archive.name)}"
        )
    _refuse_full_disk(part.parent, (whole or 0) - start, archive.name)
    done = start
    bar = progress((whole or done) >> 20, archive.name, "MB", initial=done >> 20)
    with bar, part.open("ab" if start else "wb") as file:
        while chunk := answer.read(CHUNK):
            with writing(part, "make room; the same command goes on"):
                file.write(chunk)
                file.flush()
            bar.update((done + len(chunk) >> 20) - (done >> 20))
            done += len(chunk)
    return whole is None or done == whole


def _refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB more in {folder}, where {free / 1e9:.1f} GB are free; make room, or "
            "choose another folder with data.root=PATH"
        )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def unpack(archive: Archive, path: Path, root: Path) -> int:
    """Put the members of an archive that are not there yet under root; how many there are.

    Each is checked by its CRC and appears whole.

    Raises:
        UserError: the archive is damaged, a member would lie outside of root, or the disk is full.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = list(_members(archive, file))
            missing = [(member, target) for member, target in members if _size(root / target) != member.file_size]
            _refuse_full_disk(root, sum(member.file_size for member, _ in missing), f"what {archive.name} holds")
            with progress(len(missing), f"unpacking {archive.name}", "files", leave=False, delay=2) as bar:
                for member, target in missing:
                    _unpack_one(file, member, root / target)
                    bar.update()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged ({error}); delete it, and run the same command again") from error
    log.info("%s: %d files, %d of them new", archive.name, len(members), len(missing))
    return len(members)


def _members(archive: Archive, file: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, Path]]:
    """The members that are wanted, and where under root each goes."""
    for member in file.infolist():
        parts = Path(member.filename).parts
        is_wanted = archive.only is None or re.fullmatch(archive.only, member.filename)
        if member.is_dir() or "__MACOSX" in parts or parts[-1].startswith(".") or not is_wanted:
            continue
        if ".." in parts or Path(member.filename).is_absolute():
            raise UserError(f"{archive.name} holds {member.filename}, which would lie outside of its folder")
        yield member, Path(archive.folder, *parts)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _unpack_one(file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Under another name until it is whole; not synced, for what a power cut takes is found by its size."""
    aside = target.with_name(f".{target.name}.part")
    with writing(target, "make room; the same command goes on"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open(member) as source, aside.open("wb") as copy:
            shutil.copyfileobj(source, copy, CHUNK)
        os.replace(aside, target)  # noqa: PTH105
