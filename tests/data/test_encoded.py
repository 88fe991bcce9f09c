"""The cache's file: whole entries or none, for exactly one encoder."""

import pickle
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from captioning.data import encoder_cache as encoded
from captioning.data.batch import FrozenEncoder, PictureFormat
from captioning.data.encoder_cache import EncodedFile, digest_of
from captioning.errors import UserError

FORMAT = PictureFormat(size=(16, 16))
ENCODER = FrozenEncoder("weights", (3, 8), encode=lambda pixels: pixels)
NAMES = [digest_of(name) for name in "abcd"]


def file_in(folder, encoder=ENCODER, picture_format=FORMAT, stored_as="float32"):
    return EncodedFile(folder, encoder, picture_format, stored_as)


def entries(count, seed=0):
    return torch.randn(count, 3, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def filled(tmp_path):
    file = file_in(tmp_path)
    with file.locked(), file.appending() as append:
        append(NAMES[:2], entries(2))
    return file


def test_what_was_appended_is_read_back_to_the_bit(filled):
    slots = filled.slots()
    assert list(slots) == NAMES[:2]
    assert torch.equal(torch.stack([filled.entry(slots[name]) for name in NAMES[:2]]), entries(2))


def test_bfloat16_is_read_back_rounded(tmp_path):
    file = file_in(tmp_path, stored_as="bfloat16")
    with file.locked(), file.appending() as append:
        append(NAMES[:1], entries(1))
    assert torch.equal(file.entry(0), entries(1)[0].bfloat16())
    assert file.entry_bytes == 3 * 8 * 2 == (file.folder / "states").stat().st_size


@pytest.mark.parametrize(
    "changed",
    [
        {"encoder": replace(ENCODER, key="other weights")},
        {"encoder": replace(ENCODER, shape=(8, 3))},
        {"picture_format": replace(FORMAT, size=(32, 32))},
        {"picture_format": replace(FORMAT, mean=(0.4, 0.5, 0.5))},
        {"stored_as": "bfloat16"},
    ],
)
def test_nothing_is_served_to_another_encoder_or_picture_format(filled, tmp_path, changed):
    assert file_in(tmp_path).slots()
    assert not file_in(tmp_path, **changed).slots()


@pytest.mark.parametrize("cut", ["states", "index"])
def test_after_a_torn_write_only_whole_entries_count_and_the_rest_is_appended_again(filled, cut):
    path = filled.folder / cut
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    again = file_in(filled.folder.parent)
    assert list(again.slots()) == NAMES[:1]
    with again.locked(), again.appending() as append:
        append(NAMES[2:3], entries(1, seed=1))
    assert list(again.slots()) == [NAMES[0], NAMES[2]]
    assert torch.equal(again.entry(0), entries(2)[0]) and torch.equal(again.entry(1), entries(1, seed=1)[0])


def test_entries_without_a_digest_do_not_count(filled):
    with (filled.folder / "states").open("ab") as file:
        file.write(b"half an entry")
    assert list(filled.slots()) == NAMES[:2]
    with filled.locked(), filled.appending() as append:
        append(NAMES[2:3], entries(1, seed=1))
    assert torch.equal(filled.entry(2), entries(1, seed=1)[0])


def test_an_error_keeps_what_was_appended_before_it(tmp_path):
    file = file_in(tmp_path)
    with pytest.raises(KeyboardInterrupt), file.locked(), file.appending() as append:
        append(NAMES[:2], entries(2))
        raise KeyboardInterrupt
    assert list(file.slots()) == NAMES[:2]


def test_digests_are_written_every_few_seconds_and_never_before_their_entries(tmp_path, monkeypatch):
    file, now = file_in(tmp_path), [0.0]
    monkeypatch.setattr(encoded, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with file.locked(), file.appending() as append:
        append(NAMES[:1], entries(1))
        assert not file.slots()
        now[0] = encoded.COMMIT_SECONDS + 1
        append(NAMES[1:2], entries(1))
        assert list(file.slots()) == NAMES[:2]


def test_a_second_writer_waits_for_the_first(tmp_path, caplog):
    caplog.set_level("INFO")
    first, second, order = file_in(tmp_path), file_in(tmp_path), []

    def write():
        with second.locked():
            order.append("second")

    with first.locked():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(timeout=0.3)
        assert thread.is_alive()
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert "another run is filling" in caplog.text


def test_a_file_travels_to_a_worker_without_its_entries(filled):
    filled.entry(0)
    packed = pickle.dumps(filled)
    assert len(packed) < 1000
    assert torch.equal(pickle.loads(packed).entry(1), entries(2)[1])


def test_a_disk_without_room_is_refused_with_both_numbers(filled, monkeypatch):
    monkeypatch.setattr(encoded.shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    filled.require_room(2_000_000 // filled.entry_bytes)
    with pytest.raises(UserError, match=r"100,000,000 pictures take 9.6 GB and .* has 0.0 GB left"):
        filled.require_room(100_000_000)
