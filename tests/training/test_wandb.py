"""What W&B is given, and what it is not."""

import sys

import pytest
from PIL import Image

from captioning.errors import UserError
from captioning.training.wandb import of_one_size, wandb_logger


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb, or take logger=csv"):
        wandb_logger(str(tmp_path), "captions", None, None)


def test_pictures_of_one_log_have_one_size_for_wandb():
    sheets = of_one_size([Image.new("RGB", (30, 10)), Image.new("RGB", (20, 40))])
    assert [sheet.size for sheet in sheets] == [(30, 40), (30, 40)]
    assert sheets[1].getpixel((5, 35)) == (0, 0, 0) and sheets[1].getpixel((25, 35)) == (255, 255, 255)
