"""What `auto` becomes on which machine, that it is said once, and what a run keeps that goes on elsewhere."""

import logging
from types import SimpleNamespace

import pytest
import torch
from small_runs import composed

from captioning import machine
from captioning.cli import configured
from captioning.config import PredictConfig
from captioning.machine import for_prediction, for_training, packed_multiple

COCO = ("data=coco", "model=vit_gpt2")


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(count, gib, capability)`: as if this machine had them, with 16 cores."""
    switched = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", switched.append)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    monkeypatch.setattr(machine, "cores", lambda: 16)
    monkeypatch.delenv("SLURM_PROCID", raising=False)

    def there(count: int = 1, gib: int = 139, capability: tuple[int, int] = (9, 0)) -> list[object]:
        is_new = capability >= (8, 0)
        fakes = {
            "is_available": lambda: True,
            "device_count": lambda: count,
            "get_device_name": lambda number: "NVIDIA T",
            "get_device_properties": lambda number: SimpleNamespace(total_memory=gib << 30),
            "get_device_capability": lambda number: capability,
            "is_bf16_supported": lambda including_emulation=True: is_new or including_emulation,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        return switched

    return there


def trained(tmp_path, *overrides, before=None):
    return for_training(composed(tmp_path, *overrides, run=COCO), before or {})


def chosen(config):
    return config.trainer.precision, config.model.compile, config.data.batch_size, config.data.num_workers


def test_on_a_cpu_training_is_in_fp32_and_nothing_is_compiled(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    caplog.set_level(logging.INFO)
    before = torch.get_float32_matmul_precision()
    config = trained(tmp_path, "trainer=cpu")
    assert chosen(config) == ("32-true", False, 16, 2)
    assert (packed_multiple(config), torch.get_float32_matmul_precision()) == (1, before)
    assert caplog.messages == [
        "chosen for this CPU of 2 cores: trainer.precision=32-true, model.compile=false, data.batch_size=16, "
        "data.num_workers=2"
    ]


def test_on_a_gpu_it_is_fast_without_a_flag(tmp_path, gpus, caplog, monkeypatch):
    monkeypatch.setattr(machine.Machine, "compiles", lambda self: (True, ""))
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)
    caplog.set_level(logging.INFO)
    switched, config = gpus(), trained(tmp_path)
    assert chosen(config) == ("bf16-mixed", True, 64, 15)
    assert torch._dynamo.config.suppress_errors, "an error of the compiler is a warning"
    assert (packed_multiple(config), switched) == (16, ["high", False]), "TF32, and no attention of cuDNN's"
    assert caplog.messages == [
        "chosen for this NVIDIA T: trainer.precision=bf16-mixed, model.compile=true, data.batch_size=64, "
        "data.num_workers=15, the rest in TF32, attention without cuDNN's kernels"
    ]


def test_an_old_gpu_has_fp16_and_less_memory_fewer_rows(tmp_path, gpus, caplog):
    caplog.set_level(logging.INFO)
    gpus(gib=8, capability=(6, 1))
    assert chosen(trained(tmp_path)) == ("16-mixed", False, 16, 15)
    assert "trainer.precision=16-mixed (this GPU has no bf16)" in caplog.text
    assert "model.compile=false (Triton has no kernels for this GPU)" in caplog.text


@pytest.mark.parametrize(
    ("devices", "processes"), [("auto", 4), ("-1", 4), ("2", 2), ("[0,3]", 2), ("'1,2,3'", 3), ("1", 1)]
)
def test_several_gpus_share_cores_and_the_rows_of_a_step(tmp_path, gpus, devices, processes):
    gpus(4)
    config = trained(tmp_path, f"trainer.devices={devices}")
    assert (config.data.batch_size, config.data.num_workers) == (max(16, 64 // processes), 16 // processes - 1)


def test_a_task_of_slurm_has_its_own_cores(tmp_path, gpus, monkeypatch):
    gpus(4)
    monkeypatch.setenv("SLURM_PROCID", "0")
    config = trained(tmp_path, "trainer=slurm", "trainer.num_nodes=2")
    assert (config.data.batch_size, config.data.num_workers) == (16, 15)


def test_what_is_given_stays_as_it_is(tmp_path, gpus, caplog):
    gpus()
    given = ("trainer.precision=32-true", "model.compile=false", "data.batch_size=7", "data.num_workers=0")
    assert chosen(trained(tmp_path, *given)) == ("32-true", False, 7, 0)
    assert chosen(trained(tmp_path, "trainer=cpu", "model.compile=true"))[1] is True
    assert packed_multiple(trained(tmp_path, "trainer=cpu", "model.compile=true")) == 16
    assert "cores: they wait" not in caplog.text


def test_more_readers_than_cores_are_obeyed_and_said(tmp_path, gpus, caplog):
    gpus()
    trained(tmp_path, "data.num_workers=17")
    assert "data.num_workers=17 is more than this machine's 16 cores: they wait for each other" in caplog.text


def test_a_run_that_goes_on_elsewhere_keeps_its_rows_and_takes_that_machines_precision(tmp_path, gpus, caplog):
    caplog.set_level(logging.INFO)
    gpus()
    before = {"trainer.precision": "32-true", "data.batch_size": 16}
    assert chosen(trained(tmp_path, before=before))[::2] == ("bf16-mixed", 16)
    assert "trainer.precision=bf16-mixed (until now 32-true)" in caplog.text


@pytest.mark.parametrize("missing", ["triton", "gcc", "g++", "Python.h"])
def test_compiling_waits_for_all_that_it_needs(tmp_path, gpus, monkeypatch, missing):
    gpus()
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == missing else object())
    monkeypatch.setattr(machine.shutil, "which", lambda name: None if name == missing else name)
    (tmp_path / ("pyconfig.h" if missing == "Python.h" else "Python.h")).touch()
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    compiles, why = machine.Machine("cuda").compiles()
    named = {"triton": "Triton", "gcc": "a C compiler", "g++": "a C++ compiler"}.get(missing, missing)
    assert not compiles and f"no {named}" in why


def predicted(*overrides):
    given = ("checkpoint=x", "input=y", "run_dir=z")
    return for_prediction(configured(PredictConfig, *given, *overrides))


def test_prediction_does_the_same(gpus):
    config, devices = predicted("device=cpu")
    assert (config.precision, config.batch_size, config.num_workers, len(devices)) == (32, 16, 0, 1)
    gpus(2)
    config, devices = predicted()
    assert (config.precision, config.batch_size, config.num_workers, len(devices)) == ("bf16", 256, 16, 2)
    gpus(1, gib=12, capability=(7, 0))
    config, devices = predicted("num_workers=3")
    assert (config.precision, config.batch_size, config.num_workers, len(devices)) == (16, 64, 3, 1)
