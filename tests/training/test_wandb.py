"""What W&B is given, and what it is not."""

import http.server
import json
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import yaml
from hydra.types import RunMode
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from small_runs import composed, rows_of
from test_train import wandb_records

from captioning.cli import CONF, built, configured, prepared_arguments
from captioning.config import TrainConfig
from captioning.errors import UserError
from captioning.metrics import METRICS
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
        job = SimpleNamespace(
            mode=RunMode.MULTIRUN, job=SimpleNamespace(num=number), overrides=SimpleNamespace(task=[])
        )
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


def swept() -> list[str]:
    """What a sweep's agent gives to train.py: the arguments that wandb's own code makes of conf/sweep.yaml."""
    sweeps = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep = yaml.safe_load((CONF / "sweep.yaml").read_text())
    drawn = {
        name: about.get("value", about["values"][-1] if "values" in about else about.get("max"))
        for name, about in sweep["parameters"].items()
    }
    given = sweeps.create_sweep_command_args({"args": {name: {"value": value} for name, value in drawn.items()}})
    command, arguments = sweeps.make_launch_sweep_entrypoint(given, [*sweep["command"]])
    assert command[-1] == "${program}" and sweep["program"] == "train.py"
    return list(arguments)


def test_checkpoints_become_artifacts_and_gradients_histograms_where_that_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(ours.ModelArtifacts, "WATCHED_EVERY", 1)
    keys = ["logger=wandb", "logger.wandb.log_model=all", "logger.wandb.watch=gradients", "trainer.max_epochs=2"]
    words = ["logger.wandb.tags=[a,b]", "logger.wandb.notes=why", "logger.wandb.group=g", "logger.wandb.job_type=j"]
    drawn = [one for one in swept() if not one.startswith(("data=", "model="))]
    run = train(composed(tmp_path, *keys, *words, *drawn, "scores.pictures=2", "sample_pictures=1"))
    records = list(wandb_records(run.run_dir))
    (of_run,) = [one["run"] for one in records if one["type"] == "run"]
    assert [of_run[key] for key in ("tags", "notes", "run_group", "job_type")] == [["a", "b"], "why", "g", "j"]
    (config,) = [one["config"]["update"] for one in records if one["type"] == "config"]
    assert config["stage"]["learning_rates"]["decoder"] == 0.01 and config["model"]["dropout"] == 0.2, "the sweep's"
    summaries = {one["metric"].get("name"): one["metric"].get("summary") for one in records if one["type"] == "metric"}
    assert summaries["val/perplexity"] == summaries["train/loss"] == {"min": True, "last": True}
    assert summaries["val/cider"] == summaries["val/distinct"] == {"max": True, "last": True}
    items = [one["history"]["item"] for one in records if one["type"] == "history"]
    logged = [float(row["val/perplexity"]) for row in rows_of(tmp_path) if row["val/perplexity"]]
    assert [float(row["val/perplexity"]) for row in items if "val/perplexity" in row] == pytest.approx(logged)
    assert "val/samples" in json.dumps(items) and any("val/novel" in row for row in items), "table and variety"
    models = [one["artifact"] for one in records if one["type"] == "artifact" and one["artifact"]["type"] == "model"]
    name = f"model-{(tmp_path / ours.ID_FILE).read_text().split()[0]}"
    assert {one["name"] for one in models} == {name}
    assert [{*one["aliases"]} for one in models] == [{"latest", "epoch-0"}, {"latest", "epoch-1"}, {"best", "latest"}]
    assert [one["manifest"]["contents"][0]["path"] for one in models] == ["last.ckpt", "last.ckpt", "best.ckpt"]
    assert "gradients/" in json.dumps([one for one in records if one["type"] == "history"])


def test_log_model_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"log_model needs trainer\.enable_checkpointing=true"):
        train(composed(tmp_path, "logger=wandb", "logger.wandb.log_model=best", "trainer.enable_checkpointing=false"))


def test_a_sweeps_own_command_is_one_that_train_py_takes():
    sweep = yaml.safe_load((CONF / "sweep.yaml").read_text())
    config = configured(TrainConfig, *prepared_arguments(swept(), "train"))
    assert config.stage.learning_rates.decoder == 0.01 and config.model.dropout == 0.2
    assert sweep["metric"]["name"] in {metric.name for metric in METRICS}


def test_jobs_of_a_multirun_are_named_by_what_they_have_of_their_own(monkeypatch):
    job = SimpleNamespace(mode=RunMode.MULTIRUN, overrides=SimpleNamespace(task=["data=shapes", "seed=2"]))
    monkeypatch.setattr(ours.HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(ours.HydraConfig, "get", staticmethod(lambda: job))
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "data=shapes", "seed=1,2"])
    assert ours._of_job("1") == "1 seed=2"


def test_tensorboard_is_logged_to(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(composed(tmp_path, "logger=tensorboard", "trainer.max_epochs=1", "scores.pictures=0"))
    logged = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("val/loss")
    assert logged[-1].value == pytest.approx(run.metrics["val/loss"], rel=1e-5)


def test_mlflow_is_logged_to(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not among what make setup installs")
    place = f"file:{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    keys = ("logger=mlflow", f"logger.mlflow.tracking_uri={place}", "trainer.max_epochs=1", "scores.pictures=0")
    run = train(composed(tmp_path, *keys))
    client = mlflow.MlflowClient(place)
    (found,) = client.search_runs([client.get_experiment_by_name("vit-gpt2-captioning").experiment_id])
    assert found.data.metrics["val/loss"] == pytest.approx(run.metrics["val/loss"], rel=1e-5)
