"""The documents are true: links, paths, commands and keys exist, and the worked examples run."""

import json
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT
from data_sets import draw_photograph, write
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from small_runs import composition
from worked_examples import EXAMPLES

from captioning.cli import prepared_arguments, quoted
from captioning.config import PredictConfig, PrepareConfig, TrainConfig, checked
from captioning.prediction import outputs

CONF = ROOT / "conf"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*PAGES, ROOT / "benchmarks" / "RESULTS.md"]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
KINDS = {"train": TrainConfig, "predict": PredictConfig, "prepare": PrepareConfig}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"python (train|predict|prepare)\.py(.*)")
NO_KEYS = {"weights_only"}  # arguments of Python functions
KEY = re.compile(r"^\+?([a-z_]+(?:\.[a-z_]+)*)=(.*)$")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def section(title: str, page: str = ARCHITECTURE) -> str:
    """What stands under a heading, up to the next."""
    return re.split(r"^## ", page.split(f"## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    broken = []
    for page in DOCUMENTS:
        for link in LINK.findall(text_of(page)):
            if "://" in link:
                continue
            path, _, anchor = unquote(link).partition("#")
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.name}: {link}")
    assert not broken


def test_paths_that_are_named_exist():
    missing = []
    for page in DOCUMENTS:
        text = text_of(page)
        for path in re.findall(r"\b(?:captioning|benchmarks|tests|conf|docs)/[\w./*-]*\w", text):
            missing += [] if path in EXAMPLES or [*ROOT.glob(path)] else [f"{page.name}: {path}"]
        for name in re.findall(r"\btest_\w+\*?\.py", text):
            missing += [] if [*(ROOT / "tests").rglob(name)] else [f"{page.name}: {name}"]
    assert not missing


def test_the_readme_is_short_and_leads_to_every_document():
    readme = text_of(ROOT / "README.md")
    assert len(readme.splitlines()) <= 210
    others = [*DOCUMENTS[1:], ROOT / "LICENSE", ROOT / "CITATION.cff", *(ROOT / "docs").glob("*.png")]
    assert not [page.name for page in others if f"({page.relative_to(ROOT)})" not in readme]


def test_pictures_are_small():
    assert all(picture.stat().st_size < 150_000 for picture in (ROOT / "docs").glob("*.png"))


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    named = {name for page in DOCUMENTS for name in re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), re.MULTILINE)}
    assert named <= targets


@pytest.mark.parametrize(("walk", "most"), [("A caption's way to the loss", 14), ("A picture's way to its line", 12)])
def test_walks_are_short(walk, most):
    files = re.findall(r"^\d+\. \[`.*`\]\(\.\./(\S+\.py)\)", section(walk), re.MULTILINE)
    assert 5 < len(files) == len(set(files)) <= most
    assert not [path for path in files if not (ROOT / path).is_file()]


def test_the_tree_has_every_file_of_the_house():
    tree, folders, named = section("The tree"), [], set()
    for line in FENCE.search(tree)[2].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.match(r"\s*((?:[\w.]+/?\s)*[\w.]+/?)(?:\s\s|$)", line)[1].split():
            path = "/".join([*folders[:depth], name.rstrip("/")])
            named.add(path)
            if name.endswith("/"):
                folders = [*folders[:depth], name.rstrip("/")]
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "captioning").rglob("*.py") if path.stem[:2] != "__"}
    inside = {path for path in files if any(path.startswith(f"{folder}/") for folder in named) and path not in named}
    assert {path for path in named if not (ROOT / path).exists()} == set()
    whole_rooms = {
        path for path in inside if not any(Path(other).parent == Path(path).parent for other in named & files)
    }
    assert files - named - whole_rooms == set()


# ------------------------------------------------------------------------------------------------ commands and keys


def commands() -> dict[tuple[str, ...], str]:
    """Each command of ours in a code block, as script and arguments, and a page that has it."""
    found = {}
    for page in DOCUMENTS:
        for _, block in FENCE.findall(text_of(page)):
            for line in block.replace("\\\n", " ").splitlines():
                if command := COMMAND.search(line):
                    found[command[1], *shlex.split(command[2], comments=True)] = page.name
    return found


def composed(script: str, arguments: list[str]) -> object:
    arguments = [quoted(argument) for argument in arguments if not argument.startswith(("-", "hydra"))]
    return composition(script, *arguments)


def test_every_command_composes_to_a_configuration_that_is_allowed():
    found = commands()
    assert len(found) > 20
    for (script, *arguments), page in found.items():
        if "-m" in arguments:  # of a sweep the first job
            arguments = [re.sub(r"^(\w+=\d+),.*", r"\1", argument) for argument in arguments]
        try:
            if script == "prepare":
                arguments = prepared_arguments(arguments, script)
            checked(composed(script, arguments), KINDS[script])
        except Exception as error:
            raise AssertionError(f"{page}: python {script}.py {shlex.join(arguments)}: {error}") from error
        finally:
            GlobalHydra.instance().clear()


def keys(config: object, prefix: str = "") -> set[str]:
    """Dotted names of all keys and sections."""
    found = set()
    for name, value in config.items() if isinstance(config, dict) else ():
        found |= {prefix + name} | keys(value, f"{prefix}{name}.")
    return found


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every key of every group, the groups, and what `lightning.Trainer` takes."""
    lines = [
        ("train", ["stage=scst", "optimizer=muon"]),
        ("train", ["data=shapes", "model=tiny"]),
        *(("prepare", [f"data={name}"]) for name in ("folder", "shards", "hub")),
        ("export", []),
    ]
    lines += [("predict", [f"decoding={name}", "data=coco"]) for name in ("sampling", "beam")]
    found = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
    for script, arguments in lines:
        found |= keys(OmegaConf.to_container(composed(script, arguments), resolve=False))
        GlobalHydra.instance().clear()
    return found


def test_every_key_and_choice_that_is_mentioned_exists(known):
    wrong = []
    for page in PAGES:
        prose = FENCE.sub("", text_of(page)).replace("\\|", "|")
        for word in (word for code in re.findall(r"`([^`]+)`", prose) for word in code.split()):
            if not (match := KEY.match(word)) or match[1] in NO_KEYS:
                continue
            name, value = match.groups()
            if name not in known and not name.startswith(("trainer.", "hydra.")):
                wrong.append(f"{page.name}: {word}")
            if (CONF / name).is_dir() and value:
                there = {path.stem for path in (CONF / name).glob("*.yaml")}
                there |= {Path(name_of).stem for name_of in EXAMPLES if name_of.startswith(f"conf/{name}/")}
                wrong += [f"{page.name}: {word}" for one in value.split("|") if one not in there]
    assert not wrong


# ------------------------------------------------------------------------------------------------------ worked examples
# The others run in tests/data/test_own_data.py, tests/model/test_encoders.py and tests/test_metrics.py.


def test_the_worked_logger_optimizer_and_format_are_used_by_a_run(command, tmp_path, monkeypatch):
    for name in ("my_logger.py", "conf/logger/lines.yaml", "my_optimizers.py", "conf/optimizer/sgd.yaml", "tsv.py"):
        write(
            tmp_path / name.replace("conf/", ""),
            EXAMPLES.get(name) or EXAMPLES[f"captioning/prediction/outputs/{name}"],
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(outputs, "__path__", [*outputs.__path__, str(tmp_path)])
    monkeypatch.setattr(outputs, "FORMATS", dict(outputs.FORMATS))
    exec(EXAMPLES["captioning/prediction/outputs/__init__.py"], vars(outputs))

    tiny = ("data=shapes", "model=tiny", "model.image_size=16", "model.encoder_layers=1", "model.decoder_layers=1")
    few = ("debug=smoke", "trainer=cpu", "data.train_pictures=40", "data.val_pictures=20", "data.test_pictures=4")
    own = (f"--config-dir={tmp_path}", "logger=lines", "optimizer=sgd")
    status, said = command("train.py", *own, *tiny, *few, f"run_dir={tmp_path / 'run'}")
    assert status == 0, said
    lines = [json.loads(line) for line in (tmp_path / "run" / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["data"]["train_pictures"] == 40 and any("val/perplexity" in line for line in lines)

    for i in range(2):
        draw_photograph(tmp_path / "pictures" / f"{i}.jpg")
    given = (f"checkpoint={tmp_path / 'run'}", f"input={tmp_path / 'pictures'}", f"output={tmp_path / 'captions.tsv'}")
    status, said = command("predict.py", *given)
    assert status == 0, said
    paths = [line.partition("\t")[0] for line in (tmp_path / "captions.tsv").read_text(encoding="utf-8").splitlines()]
    assert paths == [str(tmp_path / "pictures" / f"{i}.jpg") for i in range(2)]
