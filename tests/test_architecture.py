"""The arrows of the design: who may import whom, and what every file owes its reader."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "captioning").rglob("*.py"))
}
SCRIPTS = [ROOT / "train.py", ROOT / "prepare.py", ROOT / "predict.py"]

# What each part may import beside itself. `batch` is the contract between data and model; the rest of these small
# modules know nothing of pictures, captions or networks.
SMALL = {"errors", "files", "hub"}
MAY_IMPORT = {
    "data": SMALL | {"batch"},
    "model": SMALL | {"batch"},
    "training": SMALL | {"batch", "model", "evaluation"},
    "evaluation": SMALL,
    "prediction": SMALL | {"batch", "checkpoint", "weights", "data", "model", "evaluation"},
    # train.py's parts, and a command of its own: like the scripts.
    "assembly": SMALL | {"commands", "run_folder", "weights", "data", "model", "training", "prediction", "evaluation"},
    "export": SMALL | {"commands", "checkpoint", "weights", "model_card", "data", "model", "prediction"},
}
PARTS = MAY_IMPORT.keys()
WITHOUT_TORCH = (
    "captioning.data.readers",
    "captioning.data.records",
    "captioning.data.layouts",
    "captioning.data.splits",
)
NETWORKS = {"torch", "torchvision", "lightning", "transformers", "wandb"}
MOST_LINES = 220  # about 200 is wanted


def imported(path: Path) -> set[str]:
    """The full names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_of_ours(path: Path) -> set[str]:
    return imported(path) & MODULES.keys() - {"captioning"}


def reached_from(name: str) -> set[str]:
    """This module and all of ours that importing it imports."""
    reached, todo = set(), [name]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += imported_of_ours(MODULES[name])
    return reached


def part_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", MODULES)
def test_every_import_follows_an_arrow_of_the_design(name):
    part = part_of(name)
    foreign = {part_of(other) for other in imported_of_ours(MODULES[name])} - {part}
    assert foreign <= MAY_IMPORT.get(part, foreign - set(PARTS)), f"{part} must not know of this"


def test_data_and_model_share_only_the_batch():
    shared = {
        part: {part_of(other) for name in MODULES if part_of(name) == part for other in reached_from(name)}
        for part in ("data", "model")
    }
    assert shared["data"] & shared["model"] <= {"", "batch", *SMALL}


def test_no_module_imports_a_script():
    scripts = {script.stem for script in SCRIPTS}
    assert not [name for name, path in MODULES.items() if imported(path) & scripts]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(WITHOUT_TORCH)])
def test_annotation_files_are_read_without_torch(name):
    outside = {other.split(".")[0] for module in reached_from(name) for other in imported(MODULES[module])}
    assert not outside & NETWORKS


def test_scores_are_computed_of_strings_alone():
    for name in MODULES:
        if part_of(name) == "evaluation":
            assert not {part_of(other) for other in reached_from(name)} & {"data", "model", "batch"}


@pytest.mark.parametrize("path", [*MODULES.values(), *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_public_class_and_public_function_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    public = [node for node in named if not node.name.startswith("_")]
    assert ast.get_docstring(tree), "the module"
    assert not [node.name for node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", [*MODULES.values(), *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_no_module_is_a_drawer_for_everything():
    assert not {path.stem for path in MODULES.values()} & {"utils", "util", "helpers", "common", "misc"}


def test_every_module_is_in_a_part_or_is_small_and_alone():
    assert {part_of(name) for name in MODULES} - set(PARTS) == {
        "",
        "batch",
        "checkpoint",
        "commands",
        "errors",
        "files",
        "hub",
        "model_card",
        "override_checks",
        "overrides",
        "resumption",
        "run_folder",
        "weights",
    }
