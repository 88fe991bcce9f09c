"""`prepare.py` as a person runs it, and the training that follows."""

import pytest
from data_sets import draw_photograph, flickr8k

from captioning.data.pixel_cache import packs_in


@pytest.fixture
def root(tmp_path):
    """Flickr8k's layout, with photographs: a and b train."""
    flickr8k(tmp_path / "set")
    for seed, name in enumerate("abcd"):
        draw_photograph(tmp_path / "set" / "Images" / f"{name}.jpg", seed)
    return tmp_path / "set"


def test_pictures_are_prepared_and_training_says_that_it_reads_them(command, root, tmp_path):
    data = ("data=flickr8k", f"data.root={root}")
    status, output = command("prepare.py", *data, "size=32", "num_workers=0")
    assert status == 0
    assert "2 training pictures are in" in output and "pictures/s" in output
    assert len(packs_in(root / "prepared")) == 1
    small = ("model=tiny", "model.image_size=32", "model.patch_size=16", "data.tokenizer=null", "data.num_workers=0")
    status, output = command(
        "train.py", *data, *small, "logger=csv", "trainer=cpu", "trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}"
    )
    assert status == 0, output
    assert "training pictures: 2 prepared ones of 32 pixels in" in output


def test_unreadable_pictures_are_the_last_word(command, root):
    # with the ends of a sound JPEG, so that only decoding finds out
    (root / "Images" / "b.jpg").write_bytes(b"\xff\xd8\xff broken \xff\xd9")
    status, output = command("prepare.py", "data=flickr8k", f"data.root={root}", "num_workers=0")
    assert status == 1
    assert "1 training pictures are in" in output
    assert "error: 1 pictures cannot be read, such as" in output and "b.jpg (" in output


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("size=8", "size=8 must be a whole number of at least 32"),
        ("size=5000", "size=5000 pixels is more than 4096"),
        ("sizes=256", "there is no key sizes; did you mean size?"),
        ("num_workers=many", "num_workers=many must be a whole number"),
        ("data.root=nowhere", "data.root=nowhere does not exist"),
        ("data.prepared=null", "data.prepared=null names no folder"),
    ],
)
def test_a_mistake_costs_a_sentence(command, root, override, told):
    status, output = command("prepare.py", "data=flickr8k", f"data.root={root}", override)
    assert status == 1
    assert f"error: {told}" in output.splitlines()[-1]


def test_drawn_pictures_are_not_prepared(command):
    assert command("prepare.py", "data=shapes")[1].startswith("error: data=shapes draws its pictures")
