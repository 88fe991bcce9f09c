"""`debug=overfit`: eight pictures are learned by heart, and decoding says what was learned."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import configured
from support import CAPTIONS

from captioning.config import TrainConfig
from captioning.data.datamodule import CaptionDataModule
from captioning.data.records import Split
from captioning.model.generation import Greedy, generate
from captioning.training.run import train

DRAWN = [f"data.{key}" for key in ("dataset", "root", "layout", "fraction", "use_restval", "on_missing", "prepared")]
UNSAVED = "trainer.enable_checkpointing=false"  # 120 checkpoints take longer than the 120 steps


class BlurredNoise(CaptionDataModule):
    """Ten pictures of random colours that change smoothly, as in photographs; each has two captions."""

    def read(self) -> dict[str, Split]:
        pictures = [self.picture(number) for number in range(len(CAPTIONS) + 2)]
        captions = [[caption, "not among the learned"] for caption in (*CAPTIONS, *CAPTIONS[:2])]
        split = Split(list(range(len(pictures))), captions, pictures.__getitem__)
        return {"train": split, "val": split}

    @staticmethod
    def picture(number: int) -> Image.Image:
        colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(colours).resize((80, 60), Image.Resampling.BICUBIC)


def overfitted(run_dir, *overrides):
    common = ["model=tiny", "debug=overfit", "trainer=cpu", "logger=csv", f"run_dir={run_dir}"]
    return train(configured(TrainConfig, "data=coco", *common, *overrides))


def assert_learned_by_heart(run) -> None:
    assert run.metrics["train/perplexity_epoch"] < 1.1
    assert run.metrics["val/perplexity"] < 1.1
    split, tokenizer = run.datamodule.splits["train"], run.datamodule.tokenizer
    pictures = torch.stack(list(run.datamodule.rows("train").pixels_of(range(len(split))).values()))
    said = generate(run.module.captioner.eval(), pictures, Greedy(64))
    assert len(split) == 8
    for caption, true in zip(said, split.captions, strict=True):
        assert tokenizer.decode(caption.token_ids) in true


def test_eight_drawn_pictures_are_learned_by_heart(tmp_path):
    removed = [f"~{key}" for key in DRAWN]
    small = [
        "model.image_size=32",
        "model.encoder_layers=1",
        "model.decoder_layers=2",
    ]  # those of conf are tested with photographs
    run = overfitted(
        tmp_path, "data._target_=test_overfit.BlurredNoise", "data.tokenizer=null", *small, *removed, UNSAVED
    )
    assert_learned_by_heart(run)
    assert all(len(captions) == 1 for captions in run.datamodule.splits["train"].captions)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 42])
def test_eight_photographs_are_learned_by_heart(shared_data, tmp_path, seed):
    """GPT-2's own 50,257 tokens; about a minute each on one CPU core, 1.02 at the end."""
    tokenizer = f"data.tokenizer={shared_data / 'gpt2-tokenizer'}"
    assert_learned_by_heart(overfitted(tmp_path, f"data.root={shared_data / 'coco'}", tokenizer, f"seed={seed}"))
