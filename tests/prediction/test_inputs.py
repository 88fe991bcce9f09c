"""Where pictures come from: folders, patterns, lists and single files."""

import logging
import os
import sys
from pathlib import Path

import pytest

from captioning.data import images
from captioning.errors import UserError
from captioning.prediction.inputs import find_pictures


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(source, folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_pictures(source)]


def test_a_folder_gives_its_pictures_in_natural_order(tmp_path):
    touch(tmp_path, "img10.jpg", "img9.JPG", "IMG1.jpeg", "b/2.png", "b/10.png", "a.webp", "notes.txt", "x.jpg.bak")
    assert names(tmp_path, tmp_path) == ["a.webp", "b/2.png", "b/10.png", "IMG1.jpeg", "img9.JPG", "img10.jpg"]


def test_every_kind_of_picture_name_is_found_whatever_its_case(tmp_path):
    kinds = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "JPG", "Png", "TIFF"]
    touch(tmp_path, *(f"{number}.{kind}" for number, kind in enumerate(kinds)))
    assert len(find_pictures(str(tmp_path))) == len(kinds)


def test_hidden_files_and_folders_are_left_out(tmp_path):
    touch(tmp_path, "a.jpg", ".b.jpg", "._a.jpg", ".thumbnails/c.jpg", "d/.e/f.jpg")
    assert names(tmp_path, tmp_path) == ["a.jpg"]


def test_strips_of_heat_maps_are_no_pictures_of_a_folder_or_a_pattern_that_does_not_name_them(tmp_path):
    touch(tmp_path, "a.png", "c.heat_maps/a.png", "d/c.csv.heat_maps/a.png")
    assert names(tmp_path, tmp_path) == names(f"{tmp_path}/**/*.png", tmp_path) == ["a.png"]
    assert names(tmp_path / "c.heat_maps", tmp_path) == ["c.heat_maps/a.png"]
    assert names(f"{tmp_path}/c.heat_maps/*.png", tmp_path) == ["c.heat_maps/a.png"]


def test_a_hidden_folder_that_is_named_is_searched(tmp_path):
    touch(tmp_path, ".cache/a.jpg")
    assert names(tmp_path / ".cache", tmp_path) == [".cache/a.jpg"]


def test_links_in_a_circle_end_and_each_file_comes_once(tmp_path):
    touch(tmp_path, "z/a.jpg", "z/b/c.jpg")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "z/b/up").symlink_to(tmp_path / "z")
    (tmp_path / "copy").symlink_to(tmp_path / "z")
    (tmp_path / "z/same.jpg").symlink_to(tmp_path / "z/a.jpg")
    assert names(tmp_path, tmp_path) == ["z/a.jpg", "z/b/c.jpg"]


def test_a_link_out_of_the_folder_is_followed(tmp_path):
    touch(tmp_path, "elsewhere/a.jpg", "photos/b.jpg")
    (tmp_path / "photos/more").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "photos", tmp_path) == ["photos/b.jpg", "photos/more/a.jpg"]


def test_a_dangling_link_stays_so_that_it_is_reported(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nothing")
    assert names(tmp_path, tmp_path) == ["a.jpg"]


def test_a_folder_that_may_not_be_entered_is_warned_of(tmp_path, monkeypatch, caplog):
    touch(tmp_path, "a.jpg", "closed/b.jpg")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # for root every folder is open
    with caplog.at_level(logging.WARNING):
        assert names(tmp_path, tmp_path) == ["a.jpg"]
    assert "closed are left out: Permission denied" in caplog.text


def test_a_folder_named_like_a_picture_is_searched(tmp_path):
    touch(tmp_path, "album.jpg/a.png")
    assert names(tmp_path, tmp_path) == ["album.jpg/a.png"]


def test_a_folder_without_pictures_is_refused_with_what_it_holds(tmp_path):
    touch(tmp_path, "a.txt", "b/c.psd")
    with pytest.raises(UserError, match=r"^input=\S+ no .*\.jpeg.*below, which holds 2 other files; check the path$"):
        find_pictures(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no files"):
        find_pictures(str(tmp_path))


def test_a_pattern_gives_what_it_matches_in_natural_order(tmp_path):
    touch(tmp_path, "p/10.jpg", "p/2.jpg", "p/q/3.jpg", "p/4.png", ".h/5.jpg", "p/.6.jpg")
    assert names(f"{tmp_path}/**/*.jpg", tmp_path) == ["p/2.jpg", "p/10.jpg", "p/q/3.jpg"]
    assert names(f"{tmp_path}/p/?.jpg", tmp_path) == ["p/2.jpg"]
    assert names(f"{tmp_path}/.h/*.jpg", tmp_path) == [".h/5.jpg"]


def test_a_pattern_without_extension_gives_pictures_only(tmp_path):
    touch(tmp_path, "a.jpg", "a.txt", "b/c.jpg", "a.psd")
    assert names(f"{tmp_path}/*", tmp_path) == ["a.jpg"]
    assert names(f"{tmp_path}/*.psd", tmp_path) == ["a.psd"]


def test_a_relative_pattern_starts_from_the_working_directory(tmp_path, monkeypatch):
    touch(tmp_path, "p/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert find_pictures("p/*.jpg") == [Path("p/a.jpg")]
    assert find_pictures("*/a.jpg") == [Path("p/a.jpg")]


def test_a_pattern_is_not_trapped_by_links_in_a_circle(tmp_path):
    touch(tmp_path, "a.jpg")
    for name in ("x", "y", "z"):
        (tmp_path / name).symlink_to(tmp_path)
    assert "a.jpg" in names(f"{tmp_path}/**/*.jpg", tmp_path)


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path):
    touch(tmp_path, "photos [2019]/a.jpg")
    assert names(tmp_path / "photos [2019]", tmp_path) == ["photos [2019]/a.jpg"]


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    touch(tmp_path, "a.txt")
    with pytest.raises(UserError, match=r"no picture matches.*nothing does"):
        find_pictures(f"{tmp_path}/*.jpg")
    with pytest.raises(UserError, match=r"no picture matches.*1 other files"):
        find_pictures(f"{tmp_path}/*")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="newer Pythons read ** within a name as *")
def test_a_pattern_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a pattern"):
        find_pictures(f"{tmp_path}/**.jpg")


def test_a_single_file_is_taken_whatever_its_name(tmp_path):
    touch(tmp_path, "picture", "b.avif")
    assert names(tmp_path / "picture", tmp_path) == ["picture"]
    assert names(str(tmp_path / "b.avif"), tmp_path) == ["b.avif"]


def test_a_text_file_lists_paths_relative_to_itself(tmp_path):
    touch(tmp_path, "p/b.jpg", "p/a c.jpg", "d.jpg")
    listing = tmp_path / "p" / "list.TXT"
    listing.write_text(f"b.jpg\r\n\na c.jpg\n{tmp_path}/d.jpg\nmissing.jpg\nb.jpg", encoding="utf-8-sig")
    assert names(listing, tmp_path) == ["p/b.jpg", "p/a c.jpg", "d.jpg", "p/missing.jpg"]


def test_a_listed_name_may_hold_any_character_but_a_line_feed(tmp_path):
    odd = ["caf\u2028e.jpg", 'sp ace, "quote" ünï.jpg', os.fsdecode(b"latin\xe9.jpg")]
    touch(tmp_path, *odd)
    (tmp_path / "list.txt").write_bytes(b"\n".join(map(os.fsencode, odd)))
    assert names(tmp_path / "list.txt", tmp_path) == odd
    assert all(path.is_file() for path in find_pictures(tmp_path / "list.txt"))


def test_a_list_that_is_empty_or_no_text_is_refused(tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("\n  \n")
    with pytest.raises(UserError, match=r"^input=\S+ lists no picture"):
        find_pictures(listing)
    listing.write_bytes(b"\x89PNG\0\0")
    with pytest.raises(UserError, match=r"^input=\S+ is not a text file"):
        find_pictures(listing)


def test_a_list_of_sources_keeps_its_order_and_gives_each_file_once(tmp_path):
    touch(tmp_path, "f/2.jpg", "f/10.jpg", "z.jpg", "a.jpg")
    sources = [str(tmp_path / "z.jpg"), tmp_path / "f", f"{tmp_path}/*.jpg", str(tmp_path / "f" / ".." / "a.jpg")]
    assert names(sources, tmp_path) == ["z.jpg", "f/2.jpg", "f/10.jpg", "a.jpg"]


def test_a_missing_file_of_a_list_does_not_stop_the_rest(tmp_path):
    touch(tmp_path, "a.jpg")
    assert names([f"{tmp_path}/missing.jpg", f"{tmp_path}/a.jpg"], tmp_path) == ["missing.jpg", "a.jpg"]


def test_a_list_of_the_configuration_is_a_list_of_sources(tmp_path):
    from omegaconf import OmegaConf

    touch(tmp_path, "a.jpg", "b.jpg")
    source = OmegaConf.create({"input": [f"{tmp_path}/b.jpg", f"{tmp_path}/a.jpg"]}).input
    assert names(source, tmp_path) == ["b.jpg", "a.jpg"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    touch(tmp_path, "p/a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/p", tmp_path) == ["p/a.jpg"]


@pytest.mark.parametrize("source, message", [("", "input is empty"), ([], r"input=\[\]"), ("x" * 300, "File name too")])
def test_an_input_that_names_nothing_is_refused(source, message):
    with pytest.raises(UserError, match=message):
        find_pictures(source)


def test_a_path_that_is_neither_folder_nor_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"input=photoss is neither a folder nor a file, seen from .*; give"):
        find_pictures("photoss")


def test_a_folder_is_searched_for_all_that_can_be_read_and_the_rest_is_counted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(images, "open_formats", lambda: ("JPEG", "PNG", "AVIF", "JPEG2000", "PPM"))
    images.picture_suffixes.cache_clear()
    readable = ("a.avif", "b.jp2", "c.ppm", "d.pgm", "e.mpo", "f.apng", "g.JPG")
    touch(tmp_path, *readable, "h.heic", "i.CR2", "j.heic", "k.svg", "notes.md")
    assert [path.name for path in find_pictures(tmp_path)] == list(readable)
    assert "4 files that can't be read are left out: 1 .cr2, 2 .heic, 1 .svg; convert them to JPEG" in caplog.text
    images.picture_suffixes.cache_clear()


def test_a_list_may_be_powershells_quoted_and_commented(tmp_path):
    touch(tmp_path, "a.jpg", "#b.jpg", "my dog.jpg", "'c'.jpg")
    lines = ["# chosen", "a.jpg", "#b.jpg", '"my dog.jpg"', "'c'.jpg"]
    (tmp_path / "list.txt").write_text("\r\n".join(lines), encoding="utf-16")
    assert names(tmp_path / "list.txt", tmp_path) == ["a.jpg", "#b.jpg", "my dog.jpg", "'c'.jpg"]
    (tmp_path / "torn.txt").write_bytes(b"\xff\xfea")
    with pytest.raises(UserError, match=r"torn.txt is damaged UTF-16"):
        find_pictures(tmp_path / "torn.txt")


def test_a_pattern_with_brackets_that_finds_nothing_says_how_a_bracket_is_written(tmp_path):
    touch(tmp_path, "[1] a.jpg")
    with pytest.raises(UserError, match=r"nothing does; a \[ that is part of a name is written \[\[\]$"):
        find_pictures(f"{tmp_path}/[1] *.jpg")
    assert names(f"{tmp_path}/[[]1] *.jpg", tmp_path) == ["[1] a.jpg"]
