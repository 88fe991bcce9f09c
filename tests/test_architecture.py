"""The arrows of the design: who may import whom, and what every file owes its reader."""

import ast
import functools
import re
import tomllib
from pathlib import Path

from conftest import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "captioning").rglob("*.py"))
}
SCRIPTS = [ROOT / "train.py", ROOT / "prepare.py", ROOT / "predict.py"]
FILES = [*MODULES.values(), *SCRIPTS]

# What each room may import beside itself; a name with a dot is one module of another room. `data.batch` is the
# contract between data and model, and the tokenizer comes with weights. The small modules at the top know nothing of
# pictures, captions or networks.
SMALL = {"errors", "files", "hub", "randomness", "metrics", "progress"}
MAY_IMPORT = {
    "data": SMALL | {"config"},
    "shapes": SMALL | {"data"},
    "evaluation": SMALL,
    "model": SMALL | {"config", "data.batch", "data.tokenizer", "data.transforms", "runs", "weights"},
    "training": SMALL | {"config", "runs", "weights", "data", "model", "evaluation"},
    "prediction": SMALL | {"config", "machine", "cli", "runs", "weights", "data", "model", "evaluation", "pages"},
    "export": SMALL | {"config", "cli", "runs", "weights", "data", "model", "shapes", "pages"},
    "pages": set(),
    "config": SMALL,
    "machine": SMALL | {"config"},
    "cli": SMALL | {"config", "runs", "weights"},
    "runs": SMALL | {"config"},
    "weights": SMALL | {"runs", "model.encoders"},
}
# Where everything is put together, as in a script.
SEE_ALL = {
    *("captioning.training.run", "captioning.prediction.run", "captioning.data.prepare"),
    *("captioning.evaluation.__main__", "captioning.api", "captioning.compare", "captioning"),
}
WITHOUT_TORCH = (
    *("captioning.cli", "captioning.config", "captioning.runs", "captioning.weights"),
    *("captioning.data.readers", "captioning.data.records", "captioning.data.datasets"),
    *("captioning.data.splits", "captioning.prediction.plan", "captioning.prediction.inputs"),
    *("captioning.prediction.outputs", "captioning.pages"),
)
NETWORKS = {"torch", "torchvision", "lightning", "transformers", "wandb"}
MOST_LINES, MOST_PARAMETERS = 60, 8  # of a function; its docstring, `self` and `cls` not counted


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported(path: Path, *, at_top: bool = False) -> frozenset[str]:
    """The full names that a file imports: wherever in it, or when it is imported."""
    names = set()
    nodes = tree_of(path).body if at_top else ast.walk(tree_of(path))
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@functools.cache
def imported_of_ours(path: Path, *, at_top: bool = False) -> frozenset[str]:
    return imported(path, at_top=at_top) & (MODULES.keys() - {"captioning"})


@functools.cache
def reached_from(name: str, *, at_top: bool = False) -> frozenset[str]:
    """This module and all of ours that importing it imports."""
    reached, todo = set(), [name]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += imported_of_ours(MODULES[name], at_top=at_top)
    return frozenset(reached)


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_every_import_follows_an_arrow_of_the_design():
    against = []
    for name, path in MODULES.items():
        allowed = MAY_IMPORT.get(room_of(name), {"errors"})
        for other in imported_of_ours(path):
            inside = other.removeprefix("captioning.")
            ok = room_of(other) == room_of(name) or {room_of(other), inside} & allowed or name in SEE_ALL
            against += [] if ok else [f"{name} imports {other}"]
    assert not against


def test_no_two_modules_import_each_other():
    circles = [
        (name, other)
        for name, path in MODULES.items()
        for other in imported_of_ours(path, at_top=True) - {name}
        if name in reached_from(other, at_top=True) and MODULES[other].name != "__init__.py"
    ]
    assert not circles


def test_no_module_imports_a_script():
    scripts = {script.stem for script in SCRIPTS}
    assert not [name for name, path in MODULES.items() if imported(path) & scripts]


def test_mistakes_are_answered_without_torch():
    heavy = []
    for name in (name for name in MODULES if name.startswith(WITHOUT_TORCH)):
        outside = {o.split(".")[0] for m in reached_from(name, at_top=True) for o in imported(MODULES[m], at_top=True)}
        heavy += [f"{name} imports {', '.join(outside & NETWORKS)}"] if outside & NETWORKS else []
    assert not heavy


def test_scores_are_computed_of_strings_alone():
    for name in MODULES:
        if room_of(name) == "evaluation" and name not in SEE_ALL:
            assert not {room_of(other) for other in reached_from(name)} & {"data", "model"}


def test_every_module_public_class_and_public_function_says_what_it_is():
    silent = []
    for path in FILES:
        tree = tree_of(path)
        named = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        public = [node for node in named if not node.name.startswith("_")]
        silent += [] if ast.get_docstring(tree) else [str(path)]
        silent += [f"{path.name}: {node.name}" for node in public if not ast.get_docstring(node)]
    assert not silent


def test_what_tells_encoders_apart_stands_in_one_file():
    seam = MODULES["captioning.model.encoders"]
    known = re.compile(r"\bViT|\bCLS\b|cls_token|\bposition_embedding|pooler")
    assert not [str(path) for path in FILES if path != seam and known.search(path.read_text(encoding="utf-8"))]


def test_functions_are_short_and_take_few_parameters():
    large = []
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            named = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            parameters = len([a for a in named if a.arg not in ("self", "cls")])
            if lines > MOST_LINES or parameters > MOST_PARAMETERS:
                large.append(f"{path.name}: {node.name} has {lines} lines and {parameters} parameters")
    assert not large


def test_a_wheel_holds_every_file():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    held = {
        path for room, names in named.items() for name in names for path in ROOT.joinpath(*room.split(".")).glob(name)
    }
    files = {path for path in (ROOT / "captioning").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix != ".py"} == held


def test_no_module_is_a_drawer_for_everything():
    assert not {path.stem for path in MODULES.values()} & {"utils", "util", "helpers", "common", "misc"}
