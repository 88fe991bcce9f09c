"""What W&B is given, and what it is not."""

import http.server
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from hydra.types import RunMode
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from small_runs import composed

from captioning.cli import built, configured
from captioning.config import TrainConfig
from captioning.errors import UserError
from captioning.training import wandb as ours
from captioning.training.run import train
from captioning.training.wandb import of_one_size, wandb_logger, wandb_runs


def test_what_is_not_on_this_machine_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("captioning.training.run.model_and_data", None)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="pip install wandb, or take logger=csv"):
        patch.setitem(sys.modules, "wandb", None)
        train(composed(tmp_path, "logger=wandb"))
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu: torch finds no such device on this machine"):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
        train(composed(tmp_path, "trainer.accelerator=gpu"))


@pytest.fixture
def settings(monkeypatch):
    """`settings(WANDB_MODE=None, ...)`: W&B's environment variables, as a new process would meet them."""
    import wandb

    def meets(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
        wandb.teardown()

    yield meets
    monkeypatch.undo()
    wandb.teardown()


KEY = "a" * 40


def given(logger):
    return logger._wandb_init


@pytest.mark.parametrize("server", ["refuses", "hangs"])
def test_without_a_network_a_run_is_logged_offline_soon_with_one_warning(
    tmp_path, settings, caplog, server, monkeypatch
):
    monkeypatch.setattr(ours, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        if server == "refuses":
            listening.close()
        settings(WANDB_MODE=None, WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
        start = time.monotonic()
        assert given(wandb_logger(str(tmp_path), "captions", None))["mode"] == "offline"
    assert time.monotonic() - start < 3
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    why = "Connection refused" if server == "refuses" else "timed out"
    assert url in warning and why in warning


class SaysNo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(401)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_server_that_does_not_take_the_run_leaves_it_offline(tmp_path, settings, caplog):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SaysNo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings(WANDB_MODE=None, WANDB_API_KEY=KEY, WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}")
        logger = wandb_logger(str(tmp_path), "captions", None)
        with wandb_runs([logger], tmp_path):
            assert logger.experiment.offline
        server.shutdown()
    assert "W&B's server does not take this run (" in caplog.text
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_a_run_under_a_sweeps_agent_is_resumed_by_the_agents_id(tmp_path, settings):
    settings(WANDB_RUN_ID="agents", WANDB_ENTITY="us")
    assert given(wandb_logger(str(tmp_path), "my project", None))["id"] == "agents"
    settings(WANDB_RUN_ID="others", WANDB_ENTITY=None)
    resumed = given(wandb_logger(str(tmp_path), "default", None))
    assert (resumed["id"], resumed["project"], resumed["entity"]) == ("agents", "my project", "us")


def test_each_job_of_a_multirun_has_its_own_id(tmp_path, settings, monkeypatch):
    settings(WANDB_RUN_ID="mine")
    for number in (0, 1):
        job = SimpleNamespace(mode=RunMode.MULTIRUN, job=SimpleNamespace(num=number))
        monkeypatch.setattr(ours, "HydraConfig", SimpleNamespace(initialized=lambda: True, get=lambda job=job: job))
        assert given(wandb_logger(str(tmp_path / str(number)), "captions", None))["id"] == f"mine-{number}"


def test_wandbs_own_names_are_taken(tmp_path, monkeypatch, settings):
    settings(WANDB_PROJECT="my project", WANDB_NAME="my run")
    chosen = configured(TrainConfig, "data=shapes", f"run_dir={tmp_path}", "logger.wandb.tags=[a,b]").logger["wandb"]
    logger = built(chosen, "logger")
    assert [given(logger)[key] for key in ("project", "name", "tags")] == ["my project", "my run", ["a", "b"]]
    assert "notes" not in given(logger), "W&B's own settings say"
    assert given(wandb_logger(str(tmp_path), "my project", "mine", notes="a"))["name"] == "mine"


def test_wandb_disabled_logs_nothing(tmp_path, settings):
    settings(WANDB_MODE="disabled")
    logger = wandb_logger(str(tmp_path), "captions", None)
    assert isinstance(logger, DummyLogger)
    with wandb_runs([logger], tmp_path):
        logger.log_metrics({"a": 1.0})
    assert not list(tmp_path.iterdir())


def test_pictures_of_one_log_have_one_size_for_wandb():
    sheets = of_one_size([Image.new("RGB", (30, 10)), Image.new("RGB", (20, 40))])
    assert [sheet.size for sheet in sheets] == [(30, 40), (30, 40)]
    assert sheets[1].getpixel((5, 35)) == (0, 0, 0) and sheets[1].getpixel((25, 35)) == (255, 255, 255)
