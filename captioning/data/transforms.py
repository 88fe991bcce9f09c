"""Pictures -> uint8 tensors (3, H, W). Normalisation happens later, on the device, from a quarter of the bytes."""

import re
from collections.abc import Sequence
from math import exp, log, sqrt

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from captioning.batch import PictureFormat
from captioning.errors import UserError

LONGEST_STRIP = 200  # times the shorter side
ASPECT_JITTER = (3 / 4, 4 / 3)
LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601: how bright red, green and blue look

SIDES = re.compile(
    r"\b(?:top|bottom|upper|lower|far)?(?:left|right)(?:most|wards?|side|y|(?:-?hand(?:ed|er)?))?\b", re.IGNORECASE
)


def captions_mention_sides(captions: Sequence[str]) -> bool:
    """Whether a mirrored picture could make one of the captions false, because it says left or right.

    >>> captions_mention_sides(["A dog", "the Left-hand door"]), captions_mention_sides(["bright copyright"])
    (True, False)
    """
    return any(SIDES.search(caption) for caption in captions)


class EvaluationTransform:
    """A picture as the encoder's own processor would show it, without chance.

    Either the whole picture is squeezed into `size`, or its shorter side is resized and the middle cut out, with
    black where the picture is smaller; the same as transformers' Pillow-backed image processors, to the bit. Raises
    UserError for a filter that Pillow does not have.
    """

    def __init__(self, picture_format: PictureFormat):
        filters = {resampling.name.lower(): resampling for resampling in Image.Resampling}
        if picture_format.resample not in filters:
            raise UserError(
                f"the encoder's picture format asks for resample={picture_format.resample!r}, "
                f"which is none of {', '.join(filters)}; correct the checkpoint's preprocessor_config.json"
            )
        self._resampling = filters[picture_format.resample]
        self._height, self._width = picture_format.size
        self._shortest = picture_format.resize_shortest

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture of any size -> uint8 (3, H, W)."""
        if self._shortest is None:
            return self._resized(image, self._width, self._height)
        image = _without_far_ends(image)
        # the longer side is rounded down, as transformers does
        width, height = (int(self._shortest * side / min(image.size)) for side in image.size)
        left, top = (width - self._width) // 2, (height - self._height) // 2
        return F.crop(self._resized(image, width, height), top, left, self._height, self._width)

    def _resized(self, image: Image.Image, width: int, height: int) -> Tensor:
        return F.pil_to_tensor(image.resize((width, height), self._resampling))


class QuickTransform(EvaluationTransform):
    """The evaluation transform by torch's vector code, where torch has the filter: a fifth of Pillow's time.

    Of pixels, 3% differ by one level of 255 from Pillow's; bicubic ones beside sharp edges by up to 7 (64 photographs
    of COCO). So it is for random parts alone.
    """

    FILTERS = ("bilinear", "bicubic")  # that torch applies to bytes, antialiased

    def _resized(self, image: Image.Image, width: int, height: int) -> Tensor:
        mode = self._resampling.name.lower()
        if mode not in self.FILTERS:
            return super()._resized(image, width, height)
        pixels = F.pil_to_tensor(image)[None]  # (1, 3, image.height, image.width)
        return interpolate(pixels, (height, width), mode=mode, antialias=True)[0]


class TrainingTransform:
    """The evaluation transform of a slightly changed picture, of which its captions stay true.

    A random part of the picture is cut out, of nearly its own shape, so that even a panorama keeps most of what its
    captions tell of; brightness and contrast change a little; hues and angles don't. With everything off it is the
    evaluation transform.

    Args:
        crop_scale: least and greatest part of the picture's area that is kept, 0..1; None keeps the whole picture.
        brightness: the factor is drawn from 1 - brightness .. 1 + brightness; 0 leaves it.
        contrast: likewise.
        flip: mirror every second picture that may be mirrored.
    """

    def __init__(
        self,
        picture_format: PictureFormat,
        *,
        crop_scale: Sequence[float] | None,
        brightness: float,
        contrast: float,
        flip: bool,
    ):
        self._crop_scale = _checked_scale(crop_scale)
        self._framed = (EvaluationTransform if crop_scale is None else QuickTransform)(picture_format)
        self._brightness = _checked_jitter("brightness", brightness)
        self._contrast = _checked_jitter("contrast", contrast)
        if not isinstance(flip, bool):
            raise UserError(f"data.augmentation.flip={flip!r} must be true or false")
        self._flip = flip

    def __call__(self, image: Image.Image, generator: torch.Generator, may_flip: bool) -> Tensor:
        """RGB picture of any size -> uint8 (3, H, W), a pure function of the generator's state.

        Each piece has its own numbers whether it is on or off, so that switching one leaves the others as they were.
        """
        draws = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
        if self._crop_scale is not None:
            image = _random_part(image, self._crop_scale, draws[:4])
        pixels = self._framed(image)
        if self._brightness or self._contrast:
            brightness = _between(1 - self._brightness, 1 + self._brightness, draws[4])
            contrast = _between(1 - self._contrast, 1 + self._contrast, draws[5])
            pixels = _jittered(pixels, brightness, contrast)
        if self._flip and may_flip and draws[6] < 0.5:
            pixels = F.horizontal_flip(pixels)
        return pixels


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of a very long strip: its ends never survive the centre crop, but resizing them can take gigabytes."""
    most = LONGEST_STRIP * min(image.size)
    left, top = (max(0, side - most + 1) // 2 for side in image.size)  # the same at either end: the middle stays put
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


def _random_part(image: Image.Image, scale: tuple[float, float], draws: list[float]) -> Image.Image:
    """A part of the picture with `scale` of its area and, within ASPECT_JITTER, its shape."""
    area = _between(*scale, draws[0])
    aspect = exp(_between(log(ASPECT_JITTER[0]), log(ASPECT_JITTER[1]), draws[1]))
    width = min(image.width, max(1, round(image.width * sqrt(area * aspect))))
    height = min(image.height, max(1, round(image.height * sqrt(area / aspect))))
    left = int(draws[2] * (image.width - width + 1))
    top = int(draws[3] * (image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _jittered(pixels: Tensor, brightness: float, contrast: float) -> Tensor:
    """(3, H, W) uint8 times `brightness`, then `contrast` times as far from its mean grey; clipped and rounded once."""
    values = pixels.float()
    grey = brightness * float(values.mean((1, 2)) @ LUMA)
    values.mul_(brightness * contrast).add_((1 - contrast) * grey + 0.5).clamp_(0, 255)
    return values.to(torch.int16).to(torch.uint8)  # half the time of float to uint8


def _between(least: float, most: float, draw: float) -> float:
    return least + (most - least) * draw


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked_scale(scale: Sequence[float] | None) -> tuple[float, float] | None:
    if scale is None:
        return None
    pair = tuple(scale) if isinstance(scale, Sequence) and not isinstance(scale, str) else ()
    if len(pair) != 2 or not all(map(_is_number, pair)) or not 0 < pair[0] <= pair[1] <= 1:
        raise UserError(
            f"data.augmentation.crop_scale={scale} must be null or two parts of the area in rising order, "
            "above 0 and at most 1, for example [0.7,1.0]"
        )
    return float(pair[0]), float(pair[1])


def _checked_jitter(name: str, value: float) -> float:
    if not _is_number(value) or not 0 <= value < 1:
        raise UserError(f"data.augmentation.{name}={value} must be a number from 0 (off) to below 1")
    return float(value)
