"""Files are whole or not there, whatever stops the writing."""

import os
import signal
from pathlib import Path

import pytest

from captioning.files import atomic_file, atomic_folder, readable, remove_unfinished, write_atomically

OLD, NEW = "what was there\n", "ein neuer Text, größer\n" * 1000


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "results.md"
    path.write_text(OLD)
    return path


def listing(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def test_a_text_replaces_the_one_before_and_nothing_is_left_beside_it(path):
    write_atomically(path, NEW)
    assert path.read_text(encoding="utf-8") == NEW
    assert listing(path.parent) == ["results.md"]


def test_missing_folders_are_made(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "c.txt", NEW)
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == NEW.encode()


def test_until_the_end_of_the_block_the_old_file_is_there(path):
    with atomic_file(path) as file:
        file.write(NEW.encode())
        file.flush()
        assert path.read_text() == OLD
    assert path.read_text(encoding="utf-8") == NEW


@pytest.mark.parametrize("stop", [OSError("no space left on device"), KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupted_write_leaves_the_old_file_and_no_litter(path, stop):
    with pytest.raises(type(stop)), atomic_file(path) as file:
        file.write(NEW.encode())
        raise stop
    assert path.read_text() == OLD
    assert listing(path.parent) == ["results.md"]


def test_an_interrupted_first_write_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "new.txt") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert listing(tmp_path) == []


def test_a_name_that_a_folder_has_is_refused_and_leaves_no_litter(tmp_path):
    (tmp_path / "best.ckpt").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "best.ckpt", NEW)
    assert listing(tmp_path) == ["best.ckpt"]


def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_file_whole(path):
    if (child := os.fork()) == 0:
        try:
            with atomic_file(path) as file:
                file.write(NEW.encode())
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert path.read_text() == OLD
    write_atomically(path, NEW)
    assert path.read_text(encoding="utf-8") == NEW, "what the killed one left is in nobody's way"


def test_a_reader_meets_the_old_text_or_the_new_one_and_never_a_part(path):
    texts = {OLD, NEW}
    if (child := os.fork()) == 0:
        try:
            for number in range(100):
                write_atomically(path, (OLD, NEW)[number % 2])
        finally:
            os._exit(0)
    seen, running = set(), True
    while running:
        running = os.waitpid(child, os.WNOHANG) == (0, 0)
        seen.add(path.read_text(encoding="utf-8"))
    assert seen <= texts


def test_a_path_is_shown_as_one_would_type_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert readable(tmp_path / "runs" / "a") == readable(Path("runs/a")) == "runs/a"
    assert readable(Path("..").resolve()) == str(tmp_path.parent)


def test_a_folder_replaces_the_one_before_as_a_whole(tmp_path):
    target = tmp_path / "model"
    for text in (OLD, NEW):
        with atomic_folder(target) as aside:
            (aside / "inner").mkdir()
            (aside / "inner" / f"{len(text)}.txt").write_text(text)
            assert listing(target) == ["inner"] if text is NEW else not target.exists()
        assert listing(target / "inner") == [f"{len(text)}.txt"]
    assert listing(tmp_path) == ["model"]


def test_a_folder_that_fails_leaves_the_one_before(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text(OLD)
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as aside:
        (aside / "new.txt").write_text(NEW)
        raise ZeroDivisionError
    assert (listing(tmp_path), listing(target)) == (["model"], ["old.txt"])


def test_a_folder_that_cannot_take_its_name_puts_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text(OLD)
    original = Path.replace

    def replace(self: Path, other: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("the disk says no")
        return original(self, other)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="says no"), atomic_folder(target):
        pass
    assert (listing(tmp_path), listing(target)) == (["model"], ["old.txt"])


def test_what_killed_processes_left_unfinished_is_removed_and_nothing_else(path):
    for name in (".results.md.17.tmp", ".results.md.18.tmp", ".curves.png.17.tmp", "results.md.tmp"):
        (path.parent / name).touch()
    (path.parent / ".results.md.heat_maps.tmp").mkdir()  # of a run that resumes
    remove_unfinished([path])
    assert listing(path.parent) == [".curves.png.17.tmp", ".results.md.heat_maps.tmp", "results.md", "results.md.tmp"]


def test_the_new_name_is_synced_with_its_folder(path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
    )
    write_atomically(path, NEW)
    assert synced[0].endswith(".tmp") and synced[1:] == [path.parent.name]
