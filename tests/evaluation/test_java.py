"""METEOR is the official one where Java is; what can't run is left out with a sentence, and harms nothing else."""

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from captioning.evaluation import java
from captioning.evaluation.java import java_scores, one_line

CANDIDATES = ["a dog runs", "two cats"]
REFERENCES = [["a dog is running", "the dog runs"], ["two cats sleep"]]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A `pycocoevalcap` whose Java programs are the test's own, and the folder that `java` is found in."""
    folder = tmp_path / "site" / "pycocoevalcap"
    for part in ("meteor", "spice/lib"):
        (folder / part).mkdir(parents=True)
    (folder / "meteor" / "meteor-1.5.jar").touch()
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: _Spec(folder))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return folder


class _Spec:
    def __init__(self, folder: Path):
        self.submodule_search_locations = [str(folder)]


def give_java(package: Path, program: str = "", version: str = "17.0.1") -> None:
    """A `java` that states its version, and else runs this Python program."""
    script = package.parents[1] / "bin" / "java"
    head = f"#!{sys.executable}\nimport json, os, sys, time\n"
    stated = f"if '-version' in sys.argv:\n    sys.exit(print('openjdk version \"{version}\"', file=sys.stderr))\n"
    script.write_text(head + stated + program, encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


METEOR = """
if "meteor" in sys.argv[sys.argv.index("-jar") + 1]:
    for line in sys.stdin:
        kind, *fields = line.rstrip("\\n").split(" ||| ")
        if kind == "SCORE":
            print(len(fields), flush=True)
        else:
            print(*[float(field) / 10 for field in fields], 0.5, sep="\\n", flush=True)
"""
SPICE = """
if "spice-1.0.jar" in sys.argv:
    given, out = sys.argv[sys.argv.index("spice-1.0.jar") + 1], sys.argv[sys.argv.index("-out") + 1]
    rows = json.load(open(given))
    assert os.path.exists("lib") and [row["test"] for row in rows] == ["a dog runs", "two cats"]
    figures = [{"image_id": row["image_id"], "scores": {"All": {"f": len(row["refs"]) / 4}}} for row in rows]
    json.dump(figures[::-1], open(out, "w"))
"""


def give_models(package: Path) -> None:
    for name in java.SPICE_MODELS:
        (package / "spice" / "lib" / name).touch()


def test_meteor_and_spice_come_from_the_java_programs(package):
    give_java(package, METEOR + SPICE, version="1.8.0_402")
    give_models(package)
    scores = java_scores(CANDIDATES, REFERENCES)
    assert scores.per_picture == {"METEOR": [0.3, 0.2], "SPICE": [0.5, 0.25]}
    assert scores.corpus == {"METEOR": 0.5, "SPICE": 0.375}
    assert scores.versions["java"] == "1.8.0_402"
    assert scores.left_out == []


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    (sentence,) = java_scores(CANDIDATES, REFERENCES).left_out
    assert sentence == "METEOR and SPICE are left out; for METEOR, pip install pycocoevalcap and install Java"


def test_without_java_one_sentence_says_what_to_install(package):
    scores = java_scores(CANDIDATES, REFERENCES)
    (sentence,) = scores.left_out
    assert "there is no java command; install one" in sentence
    assert scores.corpus == {}


def test_without_spices_models_nothing_is_downloaded_and_meteor_is_there(package):
    give_java(package, METEOR)
    scores = java_scores(CANDIDATES, REFERENCES)
    assert list(scores.corpus) == ["METEOR"]
    (sentence,) = scores.left_out
    assert "python -m pycocoevalcap.spice.get_stanford_models" in sentence


def test_spice_is_left_out_on_a_java_that_it_does_not_run_on(package):
    give_java(package, METEOR + SPICE, version="17.0.15")
    give_models(package)
    (sentence,) = java_scores(CANDIDATES, REFERENCES).left_out
    assert sentence.startswith("SPICE is left out, since it runs on Java 8 to 11 and this is 17.0.15")


def test_a_program_that_fails_takes_only_its_own_metric_down(package):
    give_java(
        package, "print('no memory', file=sys.stderr)\nif 'meteor' in str(sys.argv): sys.exit(1)\n" + SPICE, "11.0.2"
    )
    give_models(package)
    scores = java_scores(CANDIDATES, REFERENCES)
    assert list(scores.corpus) == ["SPICE"]
    assert scores.left_out == ["METEOR is left out, since its Java program failed: no memory"]


def test_spice_that_fails_leaves_meteor(package):
    give_java(package, METEOR + "else:\n    sys.exit('bad class file')\n", version="11")
    give_models(package)
    scores = java_scores(CANDIDATES, REFERENCES)
    assert list(scores.corpus) == ["METEOR"]
    (sentence,) = scores.left_out
    assert sentence.startswith("SPICE is left out, since its Java program failed")


def test_a_program_that_hangs_is_ended(package, monkeypatch):
    give_java(package, "time.sleep(600)")
    monkeypatch.setattr(java, "SECONDS_TO_START", 0.2)
    monkeypatch.setattr(java, "SECONDS_PER_CAPTION", 0)
    scores = java_scores(CANDIDATES, REFERENCES)
    assert scores.corpus == {}
    assert "ended for taking too long" in scores.left_out[0]


def test_a_broken_java_is_told_apart(package):
    give_java(package)
    (package.parents[1] / "bin" / "java").write_text("#!/bin/sh\nexit 3\n")
    (sentence,) = java_scores(CANDIDATES, REFERENCES).left_out
    assert "java -version fails; install a working Java" in sentence


def test_nothing_in_a_caption_ends_its_line_or_field():
    assert one_line("a ||| b\u2028c\r\nd|||e") == "a b c d e"


@pytest.mark.slow
def test_the_real_meteor_gives_the_official_figures(shared_data):
    pytest.importorskip("pycocoevalcap.meteor.meteor")
    metrics = shared_data.parent / "metrics"
    if shutil.which("java") is None or not metrics.is_dir():
        pytest.skip("no java, or no official scores")
    from captioning.data.readers.coco import read_references, read_results
    from captioning.evaluation.scoring import score

    official = json.loads((metrics / "official_scores_200.json").read_text(encoding="utf-8"))["small_noisy_loo"]
    os.environ.pop("JAVA_TOOL_OPTIONS", None)
    scores = score(
        read_results(metrics / "cand_noisy_200.json"), read_references(metrics / official["refs"]), java=True
    )
    assert scores.corpus["METEOR"] == pytest.approx(official["corpus"]["METEOR"], abs=1e-6)
    for picture, row in scores.per_picture.items():
        assert row["METEOR"] == pytest.approx(official["per_image"][str(picture)]["METEOR"], abs=1e-6)
