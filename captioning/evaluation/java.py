"""METEOR and SPICE, computed by the official Java programs that `pycocoevalcap` brings; left out where they can't run.

The programs are started here, not by `pycocoevalcap`'s own classes: SPICE's begins with a download, METEOR's waits for
ever when its process ends early. Whatever goes wrong with one leaves the other, and all else, alone.
"""

import importlib.util
import json
import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread, Timer
from typing import IO, NamedTuple

from tqdm import tqdm

log = logging.getLogger(__name__)

SECONDS_TO_START = 300  # METEOR unpacks its paraphrases, SPICE its models
SECONDS_PER_CAPTION = 1.0  # both need about a hundredth of it
SPICE_JAVA = range(8, 12)  # the versions that SPICE's libraries run on
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class JavaScores(NamedTuple):
    """Figures of the corpus and of each picture in order, by metric; versions; a sentence on what is left out."""

    corpus: dict[str, float]
    per_picture: dict[str, list[float]]
    versions: dict[str, object]
    left_out: list[str]


class Unavailable(Exception):
    """A metric that can't be computed here; the message is the sentence that says why and what to install."""


def java_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> JavaScores:
    """METEOR and SPICE of tokenised captions, those of the two that can run here; never raises for one that can't."""
    found = JavaScores({}, {}, {}, [])
    try:
        package, java = _parts()
    except Unavailable as reason:
        found.left_out.append(str(reason))
        return found
    found.versions.update(java=java.text, pycocoevalcap=_package_version())
    metrics: dict[str, Callable[[], tuple[float, list[float]]]] = {
        "METEOR": lambda: _meteor(package, candidates, references),
        "SPICE": lambda: _spice(package, java, candidates, references),
    }
    for name, compute in metrics.items():
        try:
            found.corpus[name], found.per_picture[name] = compute()
        except Unavailable as reason:
            found.left_out.append(str(reason))
        except Exception as error:  # of a program that is not ours: never worth the other scores
            log.debug("%s failed", name, exc_info=True)
            found.left_out.append(f"{name} is left out, since its Java program failed: {_last_line(error)}")
    return found


class _Java(NamedTuple):
    major: int
    text: str  # "17.0.15"


def _parts() -> tuple[Path, _Java]:
    """The package's folder and the Java there is."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("METEOR and SPICE are left out; for METEOR, pip install pycocoevalcap and install Java")
    if shutil.which("java") is None:
        raise Unavailable(
            "METEOR and SPICE are left out, since there is no java command; install one, on Debian with "
            "apt install default-jre-headless"
        )
    answer = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60, check=False)
    stated = re.search(r'version "((?:1\.)?(\d+)[^"]*)"', answer.stderr + answer.stdout)
    if answer.returncode or not stated:
        raise Unavailable("METEOR and SPICE are left out, since java -version fails; install a working Java")
    return Path(next(iter(spec.submodule_search_locations))), _Java(int(stated[2]), stated[1])


def _package_version() -> str:
    try:
        return version("pycocoevalcap")
    except PackageNotFoundError:
        return "unknown"


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def one_line(caption: str) -> str:
    """The caption without what would end its line or its field in METEOR's protocol; tokens have none of it anyway."""
    return " ".join(caption.replace("|||", " ").split())


def _seconds(captions: int) -> float:
    return SECONDS_TO_START + SECONDS_PER_CAPTION * captions


def _meteor(package: Path, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """The protocol of `meteor-1.5.jar -stdio`: a line of statistics for each SCORE line, then figures for one EVAL."""
    jar = package / "meteor" / "meteor-1.5.jar"
    if not jar.is_file():
        raise Unavailable(f"METEOR is left out, since {jar} is not there; pip install --force-reinstall pycocoevalcap")
    lines = [
        " ||| ".join(["SCORE", *map(one_line, targets), one_line(candidate)])
        for candidate, targets in zip(candidates, references, strict=True)
    ]
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, cwd=jar.parent, stdin=pipe, stdout=pipe, stderr=errors, encoding="utf-8") as process,
    ):
        assert process.stdin and process.stdout
        timer = Timer(_seconds(len(lines)), process.kill)
        timer.start()
        try:
            writer = Thread(target=_write, args=(process.stdin, lines), daemon=True)
            writer.start()  # beside the reading, or both programs would wait for the other to read
            progress = tqdm(lines, "METEOR", unit="pictures", leave=False, disable=None)
            statistics = [_answer(process.stdout, errors) for _ in progress]
            writer.join()
            _write(process.stdin, [" ||| ".join(["EVAL", *statistics])])
            figures = [float(_answer(process.stdout, errors)) for _ in range(len(lines) + 1)]
        finally:
            timer.cancel()
            process.kill()
    return figures[-1], figures[:-1]


def _write(file: IO[str], lines: Sequence[str]) -> None:
    try:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
    except OSError:  # the program has ended; the reader meets the end of its output
        log.debug("METEOR stopped reading", exc_info=True)


def _answer(file: IO[str], errors: IO[bytes]) -> str:
    line = file.readline().strip()
    if not line:
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
        raise RuntimeError(said[-1] if said else "it ended, or was ended for taking too long")
    return line


def _spice(
    package: Path, java: _Java, candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    folder = package / "spice"
    if not all((folder / "lib" / name).is_file() for name in SPICE_MODELS):
        raise Unavailable(
            "SPICE is left out, since its models are not there; python -m pycocoevalcap.spice.get_stanford_models "
            f"fetches them (0.4 GB), and SPICE also needs Java {SPICE_JAVA[0]} to {SPICE_JAVA[-1]}"
        )
    if java.major not in SPICE_JAVA:
        raise Unavailable(
            f"SPICE is left out, since it runs on Java {SPICE_JAVA[0]} to {SPICE_JAVA[-1]} and this is {java.text}; "
            "put one of these first in PATH"
        )
    rows = [
        {"image_id": number, "test": one_line(candidate), "refs": [*map(one_line, targets)]}
        for number, (candidate, targets) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch, "captions.json"), Path(scratch, "scores.json")
        given.write_text(json.dumps(rows), encoding="utf-8")
        subprocess.run(
            ["java", "-Xmx8G", "-jar", "spice-1.0.jar", given, "-out", result, "-subset", "-silent"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=_seconds(len(rows)),
        )
        figures = {row["image_id"]: row["scores"]["All"]["f"] for row in json.loads(result.read_bytes())}
    per_picture = [float(figures[number]) for number in range(len(rows))]
    return sum(per_picture) / len(per_picture), per_picture
