"""`data=folder`: every form gives the same pictures, captions and splits; and what a user reads where one does not."""

from typing import Any

import pytest
import torch
from data_sets import heard  # noqa: F401  # a fixture for all
from forms import COUNTS, FORMS, write_form
from small_runs import TINY, configured

from captioning.cli import quoted
from captioning.config import TrainConfig
from captioning.data.batch import PictureFormat
from captioning.data.datamodule import FolderDataModule
from captioning.data.readers.folder import OwnFolder, read_folder
from captioning.runs import read_checkpoint
from captioning.shapes.datamodule import ShapesDataModule
from captioning.training.run import train

COMMON: dict[str, Any] = {
    "tokenizer": None,
    "batch_size": 4,
    "max_tokens": 64,
    "num_workers": 0,
    "overfit_images": None,
    "seed": 42,
    "captions_per_image": 6,  # all that a picture has: which would share a row is drawn by its id
    "augmentation": {"crop_scale": None, "brightness": 0.0, "contrast": 0.0, "flip": False},
}
PHOTOGRAPHS = {"fraction": 1.0, "use_restval": True, "on_missing": "error", "prepared": None}


def rows_of(root, **keys):
    photographs, _ = read_folder(OwnFolder(root, **keys))
    return [(p.path.relative_to(root).as_posix(), p.captions, p.split) for p in photographs]


def module(root, **keys):
    own = {name: field.default for name, field in OwnFolder.__dataclass_fields__.items() if name != "root"}
    return FolderDataModule(dataset="folder", root=str(root), **COMMON, **PHOTOGRAPHS, **own | keys)


def batches_of(datamodule):
    datamodule.connect(datamodule.new_tokenizer(), PictureFormat(size=(24, 24)), max_positions=64)
    loaders = datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()
    return [batch for loader in loaders for batch in loader]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, form):
    if "arquet" in form:
        pytest.importorskip("pyarrow")
    keys, rows = write_form(tmp_path, form)
    assert rows_of(tmp_path, **keys) == rows


@pytest.fixture(scope="module")
def drawn():
    counts = {f"{split}_pictures": count for split, count in COUNTS.items()}
    return batches_of(ShapesDataModule(image_size=None, **counts, **COMMON))


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_every_form_are_those_of_the_drawn_shapes(drawn, tmp_path, form):
    if "arquet" in form:
        pytest.importorskip("pyarrow")
    keys, rows = write_form(tmp_path, form)
    met = batches_of(module(tmp_path, **keys))
    for one, other in zip(drawn, met, strict=True):
        assert all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("pixel_values", "input_ids", "labels"))
    ids = {image_id for batch in met for image_id in batch.image_ids}
    assert ids == (set(range(1, len(rows) + 1)) if form == "COCO" else {path for path, _, _ in rows})


@pytest.mark.slow
def test_training_from_every_form_gives_the_weights_of_the_drawn_shapes(tmp_path):
    like_shapes = ("data.tokenizer=null", "data.num_workers=0", "data.batch_size=4", "data.augmentation=null")
    of_model = tuple(one for one in TINY if not one.startswith("data"))
    ways = {"shapes": TINY}
    for form in FORMS:
        keys, _ = write_form(tmp_path / form, form)
        own = (quoted(f"data.{key}={value}") for key, value in keys.items())
        ways[form] = ("data=folder", f"data.root='{tmp_path / form}'", *like_shapes, *own, *of_model)
    weights = {}
    for form, overrides in ways.items():
        run_dir = tmp_path / "runs" / form
        train(configured(TrainConfig, *overrides, "data.captions_per_image=6", f"run_dir='{run_dir}'"))
        weights[form] = read_checkpoint(run_dir / "checkpoints/last.ckpt")["state_dict"]
    expected = weights["shapes"]
    for form, met in weights.items():
        assert met.keys() == expected.keys() and all(torch.equal(expected[name], met[name]) for name in met), form


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_datasets_library_reads_the_same_rows_of_a_folder(tmp_path, suffix):
    datasets = pytest.importorskip("datasets")
    _, rows = write_form(tmp_path / "set", f"metadata.{suffix} in each folder")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    met = []
    for split, of_split in loaded.items():
        of_split = of_split.cast_column("image", datasets.Image(decode=False))
        met += [(row["image"]["path"], row["text"], split.replace("validation", "val")) for row in of_split]
    expected = [(str(tmp_path / "set" / path), caption, split) for path, of, split in rows for caption in of]
    assert sorted(met) == sorted(expected)
