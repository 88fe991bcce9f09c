"""Filling the encoder cache: each picture that it lacks goes through the frozen encoder once."""

import logging
from itertools import islice

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from captioning.batch import FrozenEncoder
from captioning.data.encoded import EncodedFile, digest_of
from captioning.data.rows import Pictures
from captioning.data.transforms import EvaluationTransform
from captioning.errors import UserError

log = logging.getLogger(__name__)

PICTURES_AT_ONCE = 32  # through the encoder


class EncodedPictures:
    """Called with i gives what the encoder made of picture i of a split, (P, D); loader workers share its pages."""

    def __init__(self, file: EncodedFile, slots: np.ndarray):
        self._file, self._slots = file, slots

    def __call__(self, i: int) -> Tensor:
        return self._file.entry(int(self._slots[i]))


def encode_once(
    file: EncodedFile,
    pictures: dict[str, tuple[Pictures, int]],
    transform: EvaluationTransform,
    encoder: FrozenEncoder,
    num_workers: int,
) -> dict[str, EncodedPictures]:
    """What `encoder` makes of each split's pictures, of which `file` gets those that it lacks.

    Args:
        file: where entries are kept.
        pictures: each split's pictures and how many they are.
        transform: from a picture to the encoder's uint8 pixels.
        encoder: called only for pictures that are not in the file.
        num_workers: processes that read pictures.

    Raises:
        UserError: if the disk has no room, or the folder cannot be written.
    """
    digests = {name: [digest_of(load.identity(i)) for i in range(count)] for name, (load, count) in pictures.items()}
    wanted = {digest: (pictures[name][0], i) for name, of_split in digests.items() for i, digest in enumerate(of_split)}
    try:
        with file.locked():
            present = file.slots()
            lacking = {digest: picture for digest, picture in wanted.items() if digest not in present}
            log.info("encoder cache: %s has %d of %d pictures", file.folder, len(wanted) - len(lacking), len(wanted))
            if lacking:
                _fill(file, lacking, transform, encoder, num_workers)
    except OSError as error:
        raise UserError(
            f"encoder_cache: {file.folder} cannot be written ({error.strerror}); name another folder in encoder_cache"
        ) from error
    slots = file.slots()
    return {name: EncodedPictures(file, np.array([slots[d] for d in of_split])) for name, of_split in digests.items()}


def _fill(
    file: EncodedFile,
    lacking: dict[bytes, tuple[Pictures, int]],
    transform: EvaluationTransform,
    encoder: FrozenEncoder,
    num_workers: int,
) -> None:
    file.require_room(len(lacking))
    pixels = _Pixels(list(lacking.values()), transform)
    loader = DataLoader(pixels, batch_size=PICTURES_AT_ONCE, num_workers=num_workers)
    digests = iter(lacking)
    with (
        tqdm(total=len(lacking), desc="encoding each picture once", unit=" pictures") as bar,
        file.appending() as append,
    ):
        for batch in loader:
            append(list(islice(digests, len(batch))), encoder.encode(batch))
            bar.update(len(batch))


class _Pixels(Dataset[Tensor]):
    """Pictures as the encoder sees them, (3, H, W) uint8."""

    def __init__(self, pictures: list[tuple[Pictures, int]], transform: EvaluationTransform):
        self._pictures, self._transform = pictures, transform

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, number: int) -> Tensor:
        load, i = self._pictures[number]
        return self._transform(load(i))
