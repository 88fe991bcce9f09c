"""What W&B is given, and what it is not."""

import sys

import pytest
from PIL import Image
from small_runs import composed

from captioning.errors import UserError
from captioning.training.run import train
from captioning.training.wandb import of_one_size


def test_what_is_not_on_this_machine_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("captioning.training.run.model_and_data", None)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="pip install wandb, or take logger=csv"):
        patch.setitem(sys.modules, "wandb", None)
        train(composed(tmp_path, "logger=wandb"))
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu: torch finds no such device on this machine"):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
        train(composed(tmp_path, "trainer.accelerator=gpu"))


def test_pictures_of_one_log_have_one_size_for_wandb():
    sheets = of_one_size([Image.new("RGB", (30, 10)), Image.new("RGB", (20, 40))])
    assert [sheet.size for sheet in sheets] == [(30, 40), (30, 40)]
    assert sheets[1].getpixel((5, 35)) == (0, 0, 0) and sheets[1].getpixel((25, 35)) == (255, 255, 255)
