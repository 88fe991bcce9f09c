"""`a.txt` beside `a.jpg`: refused before any work where it can't be, and nothing of anybody's is lost."""

import logging
import tempfile
from pathlib import Path

import pytest

from captioning import files
from captioning.errors import UserError
from captioning.prediction.inputs import find_pictures
from captioning.prediction.journal import CaptionedPicture, May
from captioning.prediction.outputs.text_files import TextFiles, text_path


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for name in ("a.jpg", "b.c.png", "trip/a.jpg"):
        (folder / name).touch()
    return find_pictures(folder)


def add(writer: TextFiles, path: Path, caption: str | None) -> None:
    writer.add(CaptionedPicture(0, str(path), caption=caption))


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.txt")}


def test_each_picture_has_its_caption_beside_it(photos, tmp_path, caplog):
    with caplog.at_level(logging.INFO), TextFiles(photos) as writer:
        for number, path in enumerate(photos):
            add(writer, path, f"un café {number}")
        assert not texts(tmp_path), "they come all at once, when nothing can go wrong any more"
        writer.finish()
    expected = {"a.txt": "un café 0\n", "b.c.txt": "un café 1\n", "trip/a.txt": "un café 2\n"}
    assert texts(tmp_path / "photos") == expected
    assert "3 text files beside their pictures" in caplog.text


def test_a_picture_without_a_caption_gets_none(photos, tmp_path):
    with TextFiles(photos) as writer:
        add(writer, photos[1], "a dog")
        writer.finish()
    assert texts(tmp_path / "photos") == {"b.c.txt": "a dog\n"}


def test_a_caption_with_line_ends_is_one_line(photos):
    with TextFiles(photos) as writer:
        add(writer, photos[0], "a dog\nruns\u2028away")
        writer.finish()
    assert photos[0].with_suffix(".txt").read_bytes() == b"a dog runs away\n"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_writes_none_and_keeps_what_existed(photos, tmp_path, stop):
    (tmp_path / "photos" / "a.txt").write_text("mine")
    with pytest.raises(stop), TextFiles(photos, may=May(overwrite=True)) as writer:
        add(writer, photos[0], "a dog")
        raise stop
        writer.finish()
    assert texts(tmp_path / "photos") == {"a.txt": "mine"}


def test_existing_files_are_counted_named_and_refused_unless_overwrite(photos, tmp_path):
    for path in photos[:2]:
        path.with_suffix(".txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"2 of 3 text files exist already: \S+a\.txt, \S+c\.txt; replace them with over"
    ):
        TextFiles(photos)
    with TextFiles(photos, may=May(overwrite=True)) as writer:
        add(writer, photos[0], "a dog")
        writer.finish()
    assert texts(tmp_path / "photos") == {"a.txt": "a dog\n", "b.c.txt": "mine"}


def test_of_many_only_the_first_are_named(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(UserError, match=r"5 of 5 .*0\.txt, \S+1\.txt, \S+2\.txt, \.\.\.; replace"):
        TextFiles([tmp_path / f"{number}.jpg" for number in range(5)])


def test_two_pictures_that_would_share_a_file_are_refused(photos, tmp_path):
    other = tmp_path / "photos" / "a.png"
    with pytest.raises(UserError, match=r"1 captions would replace .*photos/a\.jpg and \S+a\.png; rename one"):
        TextFiles([*photos, other], may=May(overwrite=True))
    (tmp_path / "alias").symlink_to(tmp_path / "photos")
    with pytest.raises(UserError, match=r"a\.jpg and \S+alias/a\.png; rename"):
        TextFiles([photos[0], tmp_path / "alias" / "a.png"])


def test_beside_a_link_means_beside_its_own_name(photos, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    (links / "x.jpg").symlink_to(photos[0])
    with TextFiles(find_pictures(links)) as writer:
        add(writer, links / "x.jpg", "a dog")
        writer.finish()
    assert texts(tmp_path) == {"links/x.txt": "a dog\n"}


def test_a_text_file_that_is_a_link_is_replaced_and_not_what_it_leads_to(photos, tmp_path):
    (tmp_path / "original.txt").write_text("mine")
    photos[0].with_suffix(".txt").symlink_to(tmp_path / "original.txt")
    with TextFiles(photos, may=May(overwrite=True)) as writer:
        add(writer, photos[0], "a dog")
        writer.finish()
    assert texts(tmp_path) == {"original.txt": "mine", "photos/a.txt": "a dog\n"}


def test_a_link_that_leads_nowhere_exists_too(photos):
    photos[0].with_suffix(".txt").symlink_to("nowhere")
    with pytest.raises(UserError, match="1 of 3 text files exist already"):
        TextFiles(photos)


def test_a_folder_in_the_way_is_refused_whatever_overwrite_says(photos):
    photos[0].with_suffix(".txt").mkdir()
    with pytest.raises(UserError, match=r"a\.txt would be replaced and is no file; move it"):
        TextFiles(photos, may=May(overwrite=True))


def test_the_list_that_names_the_pictures_is_never_replaced(photos, tmp_path, monkeypatch):
    listing = tmp_path / "photos" / "a.txt"
    listing.write_text("a.jpg\n")
    monkeypatch.chdir(listing.parent)
    for sources in (str(listing), ["a.txt"]):
        with pytest.raises(UserError, match=r"the caption of .*a\.jpg would replace .*a\.txt, an input; rename one"):
            TextFiles(find_pictures(sources), sources, may=May(overwrite=True))


def test_a_picture_that_calls_itself_text_is_never_replaced(tmp_path):
    with pytest.raises(UserError, match=r"would replace .*photo\.txt, an input"):
        TextFiles([tmp_path / "photo.txt"], may=May(overwrite=True))


def test_a_root_is_no_picture():
    with pytest.raises(UserError, match="the input names /, which is no picture"):
        TextFiles([Path("/")])


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(photos, monkeypatch):
    def refuse(dir: Path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(UserError, match=r"photos can't be written: Permission denied; change its permissions"):
        TextFiles(photos)


def test_a_picture_that_is_not_there_needs_no_folder(tmp_path):
    with TextFiles([tmp_path / "gone" / "a.jpg"]):
        pass
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_at_the_end_is_counted_and_the_others_are_there(photos, tmp_path):
    long = tmp_path / "photos" / f"{'x' * 250}.jpg"  # its text file may have this name, but not a temporary one
    said = r"1 of 2 can't be written: \S+\.txt \(File name too long\); all captions are kept"
    with pytest.raises(UserError, match=said), TextFiles([*photos, long]) as writer:
        add(writer, long, "a cat")
        add(writer, photos[0], "a dog")
        writer.finish()
    assert texts(tmp_path / "photos") == {"a.txt": "a dog\n"}


def test_a_file_that_appears_meanwhile_is_not_replaced(photos, tmp_path):
    said = r"1 of 1 can't be written: \S+a\.txt \(it appeared meanwhile\)"
    with pytest.raises(UserError, match=said), TextFiles(photos) as writer:
        add(writer, photos[0], "a dog")
        (tmp_path / "photos" / "a.txt").write_text("mine")
        writer.finish()
    assert texts(tmp_path / "photos") == {"a.txt": "mine"}


def test_a_disk_that_fills_up_leaves_no_file_cut_short(photos, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    said = r"3 of 3 can't be written: .*No space left on device"
    with pytest.raises(UserError, match=said), TextFiles(photos) as writer:
        for path in photos:
            add(writer, path, "a dog")
        writer.finish()
    assert {path.suffix for path in (tmp_path / "photos").rglob("*.*")} == {".jpg", ".png"}


def test_text_files_are_no_pictures_to_the_next_run(photos, tmp_path):
    with TextFiles(photos) as writer:
        add(writer, photos[0], "a dog")
        writer.finish()
    assert find_pictures(tmp_path / "photos") == photos
    assert find_pictures(str(tmp_path / "photos" / "*")) == photos[:2]
    assert find_pictures(str(tmp_path / "photos" / "**" / "*")) == photos


def test_of_a_run_that_is_gone_on_with_what_is_there_stays_if_it_is_the_same(photos):
    with TextFiles(photos) as writer:
        add(writer, photos[0], "a dog")
        writer.finish()
    before = text_path(photos[0]).stat()
    with TextFiles(photos, may=May(resume=True)) as writer:
        add(writer, photos[0], "a dog")
        add(writer, photos[1], "a cat")
        add(writer, photos[2], None)
        writer.finish()
    assert text_path(photos[0]).stat() == before and text_path(photos[1]).read_text() == "a cat\n"
    assert not text_path(photos[2]).exists()
    said = r"1 of 1 can't be written: .* \(it holds something else\)"
    with pytest.raises(UserError, match=said), TextFiles(photos, may=May(resume=True)) as writer:
        add(writer, photos[0], "another dog")
        writer.finish()


@pytest.mark.parametrize(
    ("mode", "expected"), [("append", "red, car\n two, a dog\n"), ("prepend", "a dog, red, car\n two\n")]
)
def test_a_caption_joins_what_is_there_once_however_often_it_is_resumed(photos, mode, expected):
    target = photos[0].with_suffix(".caption")
    target.write_bytes(b"\xef\xbb\xbfred, car\n two\xff\n")
    for may in (May(), May(resume=True)):
        with TextFiles(photos, may=may, mode=mode, suffix=".caption") as writer:
            add(writer, photos[0], "a dog")
            add(writer, photos[1], "a cat")
            writer.finish()
    assert target.read_bytes() == expected.replace("\n two", "  two\udcff").encode("utf-8", "surrogateescape")
    assert photos[1].with_suffix(".caption").read_text() == "a cat\n"
