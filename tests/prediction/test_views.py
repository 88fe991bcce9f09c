"""The gallery and the heat maps of one prediction, as its keys ask for them."""

import re
from pathlib import Path

import pytest
from PIL import Image
from support import random_pictures, small_captioner, trained_tokenizer

from captioning.errors import UserError
from captioning.model.generation import Caption
from captioning.prediction.batches import PictureBatch
from captioning.prediction.thumbnails import thumbnail
from captioning.prediction.views import Views, gallery_path, planned_views

TOKENIZER = trained_tokenizer()
SMALL = thumbnail(Image.new("RGB", (20, 20)))


@pytest.fixture(scope="module")
def captioner():
    return small_captioner(TOKENIZER.vocab_size, spread=0.4, end_of_text=TOKENIZER.eos_token_id)


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    """Two photographs, and between them one that can't be read."""
    for name in ("0.png", "2.png"):
        Image.new("RGB", (64, 32), "red").save(tmp_path / name)
    return [tmp_path / f"{number}.png" for number in range(3)]


def planned(tmp_path, paths, gallery=False, heat_maps=0, heat_maps_layers=None, overwrite=False) -> Views:
    output = tmp_path / "out" / "captions.jsonl"
    return planned_views(
        output, paths, overwrite, gallery=gallery, heat_maps=heat_maps, heat_maps_layers=heat_maps_layers
    )


def fill(views: Views, captioner, **known) -> None:
    ids = TOKENIZER.encode(["a man"])[0][1:-1]
    captions = [Caption(ids, -0.5, (Caption(ids, -0.5), Caption([], -0.7))), Caption(ids, -1.5)]
    views.attach(captioner, TOKENIZER, max_new_tokens=9)
    with views:
        views.add(PictureBatch([0, 2], random_pictures(2), [(1, "no such file")], [SMALL, SMALL]), captions, **known)


def test_a_gallery_and_strips_lie_beside_the_output(tmp_path, paths, captioner):
    views = planned(tmp_path, paths, gallery=True, heat_maps=["2.png"])
    fill(views, captioner, references={0: ["a woman"]})
    assert [what for what, _ in views.made] == ["gallery", "heat maps"]
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")} == {
        "captions.html",
        "captions.heat_maps",
        "captions.heat_maps/2.png",
    }
    with Image.open(tmp_path / "out" / "captions.heat_maps" / "2.png") as strip:
        assert strip.size == (4 * (200 + 12) + 12, 100 + 30 + 12)  # the photograph, a, man, (end)
    first, second, third = re.findall("<li class=.*", (tmp_path / "out" / "captions.html").read_text(encoding="utf-8"))
    assert ">a man</p>" in first and '<li dir="auto">a woman</li>' in first and "The 2 best" in first
    assert "No caption: no such file" in second
    assert "Where the model looked" in third and "Where" not in first


def test_strips_can_be_had_without_a_gallery_and_for_a_photograph_that_went(tmp_path, paths, captioner):
    views = planned(tmp_path, paths, heat_maps=1, heat_maps_layers=1)
    paths[0].unlink()
    fill(views, captioner)
    with Image.open(tmp_path / "out" / "captions.heat_maps" / "0.png") as strip:
        assert strip.size == (4 * (200 + 12) + 12, 200 + 30 + 12)  # the square that the encoder got
    assert not (tmp_path / "out" / "captions.html").exists()


def test_where_neither_is_asked_for_nothing_is_made(tmp_path, paths, captioner):
    views = planned(tmp_path, paths)
    fill(views, captioner)
    assert views.made == [] and not (tmp_path / "out").exists()


def test_an_interruption_leaves_neither(tmp_path, paths, captioner, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    views = planned(tmp_path, paths, gallery=True, heat_maps=2)
    monkeypatch.setattr(Views, "_entry", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(views, captioner)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_layer_that_the_decoder_lacks_is_refused_before_a_picture_is_read(tmp_path, paths, captioner):
    views = planned(tmp_path, paths, heat_maps=1, heat_maps_layers=[2])
    with pytest.raises(UserError, match=r"^heat_maps_layers=\[2\] must name layers of this model's decoder, 0 to 1"):
        views.attach(captioner, TOKENIZER, max_new_tokens=9)


def test_what_exists_is_refused_or_replaced(tmp_path, paths, captioner):
    fill(planned(tmp_path, paths, gallery=True, heat_maps=1), captioner)
    for asked in ({"gallery": True}, {"heat_maps": 1}):
        with pytest.raises(UserError, match=r"exists already; replace it with overwrite=true"):
            planned(tmp_path, paths, **asked)
    fill(planned(tmp_path, paths, gallery=True, heat_maps=1, overwrite=True), captioner)


def test_a_gallery_is_beside_the_output_or_where_it_is_told_to_be():
    output = Path("there/captions.jsonl")
    assert [gallery_path(wanted, output) for wanted in (False, None)] == [None, None]
    assert gallery_path(True, output) == Path("there/captions.html")
    assert gallery_path("my page.html", output) == Path("my page.html")


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (3, "gallery=3 must be true, false or a path such as captions.html"),
        ("", "gallery= must be true"),
        (["a.html"], r"gallery=\['a.html'\] must be true"),
        ("there/captions.jsonl", "gallery=there/captions.jsonl is the output too; name another file with gallery"),
    ],
)
def test_what_is_no_place_for_a_gallery_is_refused(wanted, sentence):
    with pytest.raises(UserError, match=rf"^{sentence}"):
        gallery_path(wanted, Path("there/captions.jsonl"))
