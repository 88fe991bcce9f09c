"""What a frozen encoder made of pictures: whole entries or none, for exactly one encoder, each made once."""

import pickle
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import TwoColouredPictures

from captioning.data import encoder_cache
from captioning.data.batch import PictureFormat
from captioning.data.encoder_cache import EncodedFile, FrozenEncoder, digest_of, encode_once
from captioning.data.records import Split
from captioning.errors import UserError

# The cache's file: whole entries or none, for exactly one encoder.


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
    monkeypatch.setattr(encoder_cache, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with file.locked(), file.appending() as append:
        append(NAMES[:1], entries(1))
        assert not file.slots()
        now[0] = encoder_cache.COMMIT_SECONDS + 1
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
    monkeypatch.setattr(encoder_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    filled.require_room(2_000_000 // filled.entry_bytes)
    with pytest.raises(UserError, match=r"100,000,000 pictures take 9.6 GB and .* has 0.0 GB left"):
        filled.require_room(100_000_000)


# The cache is filled with what is lacking, and with nothing else.


class Counting:
    """An encoder whose output shows the picture's number, and which remembers what it was asked."""

    def __init__(self):
        self.seen = []

    def __call__(self, pixels):
        numbers = pixels[:, 1, 0, 0]
        self.seen += numbers.tolist()
        return numbers.float()[:, None, None].expand(-1, 3, 8)


def encode(folder, counts, encoder, load=None, workers=0):
    frozen = FrozenEncoder("weights", (3, 8), encoder)
    splits = {
        name: Split(range(count), [["words"]] * count, load or TwoColouredPictures()) for name, count in counts.items()
    }
    return encode_once(splits, frozen, FORMAT, folder, "bfloat16", workers)


def numbers(pictures, count):
    return [int(pictures(i)[0, 0]) for i in range(count)]


def test_each_picture_is_encoded_once_however_many_splits_hold_it(tmp_path):
    encoder = Counting()
    splits = encode(tmp_path, {"train": 40, "val": 3}, encoder)
    assert encoder.seen == list(range(40))
    assert numbers(splits["train"], 40) == list(range(40)) and numbers(splits["val"], 3) == [0, 1, 2]
    assert splits["train"](0).shape == (3, 8) and splits["train"](0).dtype == torch.bfloat16


def test_a_later_run_encodes_only_what_is_new_to_it(tmp_path):
    encode(tmp_path, {"train": 3}, Counting())
    later = Counting()
    splits = encode(tmp_path, {"train": 5}, later, workers=1)
    assert later.seen == [3, 4]
    assert numbers(splits["train"], 5) == list(range(5))


def test_a_run_stopped_while_it_fills_is_continued(tmp_path):
    class Stopped(Counting):
        def __call__(self, pixels):
            if self.seen:
                raise KeyboardInterrupt
            return super().__call__(pixels)

    stopped, second = Stopped(), Counting()
    try:
        encode(tmp_path, {"train": 70}, stopped)
    except KeyboardInterrupt:
        splits = encode(tmp_path, {"train": 70}, second)
    assert len(stopped.seen) == 32 and sorted(stopped.seen + second.seen) == list(range(70))
    assert numbers(splits["train"], 70) == list(range(70))


def test_a_changed_picture_is_encoded_again(tmp_path):
    class Changed(TwoColouredPictures):
        def identity(self, i):
            return super().identity(i) + " changed" * (i == 1)

        def __call__(self, i):
            return super().__call__(9 if i == 1 else i)

    encode(tmp_path, {"train": 3}, Counting())
    again = Counting()
    assert numbers(encode(tmp_path, {"train": 3}, again, Changed())["train"], 3) == [0, 9, 2]
    assert again.seen == [9]


def test_filling_shows_pictures_per_second_and_no_bar_in_a_file(tmp_path, caplog, capfd):
    caplog.set_level("INFO")
    encode(tmp_path, {"train": 40}, Counting())
    assert "40 of 40 pictures, " in caplog.text and " pictures/s" in caplog.text
    caplog.clear()
    encode(tmp_path, {"train": 40}, Counting())
    assert " pictures/s" not in caplog.text, "nothing to do, nothing to show"
    assert not capfd.readouterr().err
