"""Which pictures get heat maps, and the folder that these lie in."""

from pathlib import Path

import pytest
from PIL import Image

from captioning.errors import UserError
from captioning.prediction.journal import CaptionedPicture, May
from captioning.prediction.outputs.files import new_file
from captioning.prediction.outputs.heat_maps import HeatMaps, chosen_pictures

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
    ],
)
def test_a_name_of_no_picture_is_refused(wanted, sentence):
    with pytest.raises(UserError) as refusal:
        chosen_pictures(wanted, PATHS)
    assert str(refusal.value).startswith(sentence)


def folder_beside(output: Path, **may) -> HeatMaps:
    return HeatMaps(output, PATHS, [0, 1, 2], May(**may))


def picture(place: int, strip: Image.Image | None = STRIP) -> CaptionedPicture:
    return CaptionedPicture(place, str(PATHS[place]), caption="a dog", heat_map=strip)


def filled(output: Path, places=(0,), **may) -> None:
    with folder_beside(output, **may) as folder:
        for place in places:
            folder.add(picture(place))
        folder.finish()


def test_each_chosen_picture_has_a_file_named_after_it(tmp_path):
    with folder_beside(tmp_path / "captions.jsonl") as folder:
        for place in range(4):
            folder.add(picture(place, STRIP if place < 3 else None))
        folder.finish()
    path = tmp_path / "captions.heat_maps"
    assert folder.path == path
    assert {file.name for file in path.iterdir()} == {"1.png", "2.png", "1-2.png"}
    assert [file.name for file in tmp_path.iterdir()] == ["captions.heat_maps"]


def test_outputs_of_two_suffixes_of_one_name_have_folders_of_their_own(tmp_path):
    with folder_beside(tmp_path / "captions.jsonl") as one, folder_beside(tmp_path / "captions.csv") as other:
        for folder in (one, other):
            folder.add(picture(0))
            folder.finish()
    assert {path.name for path in tmp_path.iterdir()} == {"captions.heat_maps", "captions.csv.heat_maps"}


def test_what_a_killed_run_left_of_a_folder_is_in_nobodys_way(tmp_path):
    (tmp_path / ".c.csv.heat_maps.tmp").mkdir()
    with new_file("output", tmp_path / "c.csv", May(resume=True)) as file:
        file.write(b"a")
    filled(tmp_path / "c.csv", resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {"c.csv", "c.csv.heat_maps"}


def test_an_interrupted_folder_is_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), folder_beside(tmp_path / "c.jsonl") as folder:
        folder.add(picture(0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_refused_or_its_own_files_are_replaced(tmp_path):
    path = tmp_path / "c.heat_maps"
    path.mkdir()
    (path / "1.png").write_text("old")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=rf"^heat_maps: {path} exists already; replace it with overwrite=true"):
        folder_beside(tmp_path / "c.jsonl")
    filled(tmp_path / "c.jsonl", overwrite=True)
    assert Image.open(path / "1.png").size == (4, 4)
    assert (path / "notes.txt").read_text() == "mine"


def test_with_resume_a_folder_stays_if_it_holds_the_same(tmp_path):
    path = tmp_path / "c.heat_maps"
    for resume in (False, True):
        filled(tmp_path / "c.jsonl", resume=resume)
    (path / "1.png").write_text("mine")
    with pytest.raises(UserError, match=rf"^heat_maps: {path} exists already and holds something else; replace it"):
        filled(tmp_path / "c.jsonl", resume=True)
    assert (path / "1.png").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["c.heat_maps"]


def test_a_file_under_the_folders_name_is_refused_at_once_and_at_the_end(tmp_path):
    path = tmp_path / "c.heat_maps"
    with (
        pytest.raises(UserError, match="is a file, and a folder is to lie there"),
        folder_beside(tmp_path / "c.jsonl") as folder,
    ):
        folder.add(picture(0))
        path.write_text("mine")
        folder.finish()
    with pytest.raises(UserError, match="is a file"):
        folder_beside(tmp_path / "c.jsonl", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["c.heat_maps"]
