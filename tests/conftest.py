"""What the tests share."""

import atexit
import base64
import gc
import logging
import os
import resource
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import browser, open_page  # noqa: F401, fixtures for all
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# The models of tests are too small for two threads to help, and on a busy machine they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is imported is never garbage: see `heavy_imports` of `captioning/cli.py`.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What trains comes first: short tests are left to share out at the end, and nobody waits for another's run."""
    items.sort(key=lambda item: item.path.parent.name != "training")


def pytest_collection_finish() -> None:
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def compositions_are_remembered() -> None:
    from small_runs import remember_compositions

    remember_compositions()


# Nobody pulls this machine's plug: tests of what is synced put their own function here, and the others need not wait.
os.fsync = lambda descriptor: None

# A test never talks to a hub or to W&B's servers, whatever the machine's own settings are.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", WANDB_MODE="offline")
os.environ.pop("WANDB_API_KEY", None)

# A shell that starts the suite in the background (`nohup make test &`) has Ctrl-C ignored in it and in all it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Drawn examples are the same in every run, and a busy machine may take its time over them.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

A_PNG = base64.b64decode(  # of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
SHARED = Path(os.environ.get("CAPTIONING_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pieces of COCO and Flickr8k; CAPTIONING_SHARED points elsewhere."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED / 'data'}; set CAPTIONING_SHARED to the folder that holds data/")
    return SHARED / "data"


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)`: a folder to read, which `make(folder)` filled in whichever test process came first."""
    base = tmp_path_factory.getbasetemp()
    common = base if worker_id == "master" else base.parent

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path, made = common / name, common / f"{name}.made"
        with FileLock(common / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                made.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def whole(once) -> Path:
    """The folder of a run of `small_runs.composed` that nothing interrupted."""
    from small_runs import composed

    from captioning.training.run import train

    return once("whole", lambda run_dir: train(composed(run_dir)))


@pytest.fixture
def full_disk(monkeypatch):
    """`full_disk(size)`: from then on no file may become larger than `size` bytes, as if the disk were full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # Python would put cut .pyc files into the environment: it doesn't look at how much of them was written.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(autouse=True)
def hardly_any_curves(request, monkeypatch) -> None:
    """Drawing takes a sixth of a second of each run: only shared runs, slow ones and those that `draw_curves` do it."""
    curves = sys.modules.get("captioning.training.curves")
    if curves and "draw_curves" not in request.fixturenames and not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(curves, "write_curves", lambda run_dir: (run_dir / "curves.png").write_bytes(A_PNG))


@pytest.fixture
def draw_curves() -> None:
    """For tests that look at them."""


@pytest.fixture
def ended(capfd):
    """Does something as a script that ends: (status, terminal output)."""

    def run(do: Callable[[], object]) -> tuple[int, str]:
        capfd.readouterr()
        status: int | str | None = 0
        handlers = logging.root.handlers[:]
        try:
            do()
        except SystemExit as end:
            status = end.code
            if isinstance(status, str):  # Python itself would print it and end with 1
                print(status, file=sys.stderr)
                status = 1
        finally:
            GlobalHydra.instance().clear()
            logging.root.handlers[:] = handlers  # without Hydra's, whose streams end with this test
        out, err = capfd.readouterr()
        return status or 0, out + err

    return run


@pytest.fixture
def command(monkeypatch, ended):
    """Runs `train.py` or `predict.py` as a shell would, in this process: (status, terminal output)."""

    def run(script: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        GlobalHydra.instance().clear()
        return ended(lambda: runpy.run_path(str(ROOT / script), run_name="__main__"))

    return run


@pytest.fixture
def predict_command(ended):
    """As `command` with `predict.py`, without Hydra, which takes longer than to caption a few small pictures."""
    from small_runs import composition

    from captioning.cli import quoted

    def run(*arguments: str) -> tuple[int, str]:
        config = composition("predict", *map(quoted, arguments))
        main = runpy.run_path(str(ROOT / "predict.py"))["main"]

        def logged():
            logging.root.addHandler(logging.StreamHandler(sys.stdout))
            logging.root.setLevel(logging.INFO)
            main(config)

        return ended(logged)

    return run
