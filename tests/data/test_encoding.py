"""The cache is filled with what is lacking, and with nothing else."""

import torch
from support import TwoColouredPictures

from captioning.data.batch import FrozenEncoder, PictureFormat
from captioning.data.encoder_cache import EncodedFile, encode_once
from captioning.data.transforms import EvaluationTransform

FORMAT = PictureFormat(size=(16, 16))


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
    pictures = {name: (load or TwoColouredPictures(), count) for name, count in counts.items()}
    file = EncodedFile(folder, frozen, FORMAT, "bfloat16")
    return encode_once(file, pictures, EvaluationTransform(FORMAT), frozen, workers)


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


def test_filling_shows_pictures_per_second(tmp_path, capfd):
    encode(tmp_path, {"train": 40}, Counting())
    assert " pictures/s" in capfd.readouterr().err
    encode(tmp_path, {"train": 40}, Counting())
    assert not capfd.readouterr().err, "nothing to do, nothing to show"
