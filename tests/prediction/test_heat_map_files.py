"""Which pictures get heat maps, and the folder that these lie in."""

from pathlib import Path

import pytest
from PIL import Image

from captioning.errors import UserError
from captioning.prediction.heat_map_files import HeatMapFolder, chosen_pictures, heat_maps_folder

PATHS = [Path("in", name) for name in ("1.jpg", "2.png", "trip/1.jpg", "trip/7")]
STRIP = Image.new("RGB", (4, 4))


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (0, []),
        (2, [0, 1]),
        (9, [0, 1, 2, 3]),
        (["2.png"], [1]),
        ("1.jpg", [0, 2]),
        (["trip/1.jpg", "in/1.jpg"], [0, 2]),
        ([7], [3]),
        ([], []),
    ],
)
def test_pictures_are_chosen_by_number_or_by_name(wanted, chosen):
    assert chosen_pictures(wanted, PATHS) == chosen


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (["1.jpg", "p/1.jpg"], "heat_maps names p/1.jpg, which is not in the input; name a picture that is"),
        ([""], "heat_maps names nothing, which is not in the input"),
        (-1, "heat_maps=-1 must be a whole number of at least 0"),
        (True, "heat_maps=True must be a number of pictures, or names of some such as [a.jpg,b.jpg]"),
        (None, "heat_maps=None must be a number"),
        (1.5, "heat_maps=1.5 must be a number"),
    ],
)
def test_what_names_no_picture_is_refused(wanted, sentence):
    with pytest.raises(UserError) as refusal:
        chosen_pictures(wanted, PATHS)
    assert str(refusal.value).startswith(sentence)


def folder_at(path: Path, **settings) -> HeatMapFolder:
    return HeatMapFolder(path, PATHS, [0, 1, 2], **settings)


def test_each_chosen_picture_has_a_file_named_after_it(tmp_path):
    path = heat_maps_folder(tmp_path / "captions.jsonl")
    with folder_at(path) as folder:
        assert [place in folder for place in range(4)] == [True, True, True, False]
        for place in range(3):
            folder.write(place, STRIP)
    assert path.name == "captions.heat_maps"
    assert {file.name for file in path.iterdir()} == {"1.png", "2.png", "1-2.png"}
    assert [file.name for file in tmp_path.iterdir()] == ["captions.heat_maps"]


def test_an_interrupted_folder_is_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), folder_at(tmp_path / "maps") as folder:
        folder.write(0, STRIP)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_refused_or_its_own_files_are_replaced(tmp_path):
    path = tmp_path / "maps"
    path.mkdir()
    (path / "1.png").write_text("old")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=rf"^heat_maps: {path} exists already; replace it with overwrite=true"):
        folder_at(path)
    with folder_at(path, overwrite=True) as folder:
        folder.write(0, STRIP)
    assert Image.open(path / "1.png").size == (4, 4)
    assert (path / "notes.txt").read_text() == "mine"


def test_with_resume_a_folder_stays_if_it_holds_the_same(tmp_path):
    path = tmp_path / "maps"
    for resume in (False, True):
        with folder_at(path, resume=resume) as folder:
            folder.write(0, STRIP)
    (path / "1.png").write_text("mine")
    with (
        pytest.raises(UserError, match=rf"^heat_maps: {path} exists already and holds something else; replace it"),
        folder_at(path, resume=True) as folder,
    ):
        folder.write(0, STRIP)
    assert (path / "1.png").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["maps"]


def test_a_file_under_the_folders_name_is_refused_at_once_and_at_the_end(tmp_path):
    path = tmp_path / "maps"
    with pytest.raises(UserError, match="is a file, and a folder is to lie there"), folder_at(path) as folder:
        folder.write(0, STRIP)
        path.write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        folder_at(path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["maps"]
