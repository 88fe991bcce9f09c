"""A split of a data set as something to caption: its pictures, and the captions to score and measure against."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from captioning.data.batch import CaptionBatch, Row, pack
from captioning.data.datamodule import CaptionDataModule, PhotographFiles
from captioning.data.records import ImageId
from captioning.prediction import formats
from captioning.prediction.sources import PictureFiles


class CaptionedSplit:
    """N pictures by their places, each with what it is called, its image id and its own captions.

    Args:
        datamodule: connected to the model.
        name: what the split is called.
    """

    def __init__(self, datamodule: CaptionDataModule, name: str):
        split = datamodule.splits[name]
        self.image_ids: list[ImageId] = list(split.image_ids)
        self.captions: list[Sequence[str]] = list(split.captions)
        self._tokens = datamodule.tokens[name]
        if isinstance(split.load, PhotographFiles):
            self.paths = [Path(split.load.path(i)) for i in range(len(split))]
            self.load: Callable[[int], Image.Image] = PictureFiles(self.paths)
        else:  # drawn
            self.paths = [Path(f"{name}-{image_id}") for image_id in self.image_ids]
            self.load = split.load

    def __len__(self) -> int:
        return len(self.paths)

    def row(self, place: int) -> formats.Row:
        """What is known before a picture is captioned."""
        return formats.Row(str(self.paths[place]), image_id=self.image_ids[place])

    def batch(self, places: Sequence[int]) -> CaptionBatch:
        """All captions of the pictures at these places, without the pictures: one row each, in this order."""
        return pack([Row(self.image_ids[place], None, self._tokens.captions_of(place)) for place in places])
