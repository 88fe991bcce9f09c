"""Pictures -> uint8 tensors (3, H, W). Normalisation happens later, on the device, from a quarter of the bytes.

Evaluation shows a picture as the encoder's own processor would, to the bit. Training shows a random part of it, a
little brighter or darker, perhaps mirrored: nothing that would make a caption false.
"""

import ctypes
from collections.abc import Sequence
from math import exp, log, sqrt

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from captioning.data.batch import PictureFormat
from captioning.errors import UserError

Part = tuple[int, int, int, int]  # of a picture: left, top, right, bottom in pixels, as Pillow writes it

LONGEST_STRIP = 200  # times the shorter side
ASPECT_JITTER = (3 / 4, 4 / 3)
LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601: how bright red, green and blue look


class EvaluationTransform:
    """A picture as the encoder's own processor would show it, without chance.

    The same as transformers' Pillow-backed image processors, to the bit. Raises UserError for a filter that Pillow does
    not have.
    """

    def __init__(self, picture_format: PictureFormat):
        filters = {resampling.name.lower(): resampling for resampling in Image.Resampling}
        if picture_format.resample not in filters:
            raise UserError(
                f"the encoder's picture format asks for resample={picture_format.resample!r}, "
                f"which is none of {', '.join(filters)}; correct the checkpoint's preprocessor_config.json"
            )
        self._resampling = filters[picture_format.resample]
        self._format = picture_format

    def __call__(self, image: Image.Image, part: Part | None = None) -> Tensor:
        """RGB picture of any size, or a part of it -> uint8 (3, H, W)."""
        part = part or (0, 0, *image.size)
        if self._format.resize_shortest is not None:
            part = _without_far_ends(part)
        width, height = self._format.resized_to(part[2] - part[0], part[3] - part[1])
        pixels, (high, wide) = self._resized(image, part, width, height), self._format.size
        if (height, width) == (high, wide):
            return pixels
        return F.crop(pixels, (height - high) // 2, (width - wide) // 2, high, wide)

    def _resized(self, image: Image.Image, part: Part, width: int, height: int) -> Tensor:
        if part != (0, 0, *image.size):
            image = image.crop(part)
        return F.pil_to_tensor(image.resize((width, height), self._resampling))


class QuickTransform(EvaluationTransform):
    """The evaluation transform by torch's vector code, where torch has the filter: a fifth of Pillow's time.

    Of pixels, 3% differ by one level of 255 from Pillow's; bicubic ones beside sharp edges by up to 7 (64 photographs
    of COCO). So it is for random parts alone.
    """

    FILTERS = ("bilinear", "bicubic")  # that torch applies to bytes, antialiased

    def _resized(self, image: Image.Image, part: Part, width: int, height: int) -> Tensor:
        mode = self._resampling.name.lower()
        if mode not in self.FILTERS:
            return super()._resized(image, part, width, height)
        left, top, right, bottom = part
        pixels = lent_pixels(image)[None, :, top:bottom, left:right]
        return interpolate(pixels, (height, width), mode=mode, antialias=True)[0, :3]


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
        self._crop_scale = None if crop_scale is None else (crop_scale[0], crop_scale[1])
        self._framed = (EvaluationTransform if crop_scale is None else QuickTransform)(picture_format)
        self._brightness, self._contrast, self._flip = brightness, contrast, flip

    def __call__(self, image: Image.Image, generator: torch.Generator, may_flip: bool) -> Tensor:
        """RGB picture of any size -> uint8 (3, H, W), a pure function of the generator's state.

        Each piece has its own numbers whether it is on or off, so that switching one leaves the others as they were.
        """
        draws = torch.rand(7, generator=generator, dtype=torch.float64).tolist()
        part = None if self._crop_scale is None else _random_part(*image.size, self._crop_scale, draws[:4])
        pixels = self._framed(image, part)
        if self._brightness or self._contrast:
            brightness = _between(1 - self._brightness, 1 + self._brightness, draws[4])
            contrast = _between(1 - self._contrast, 1 + self._contrast, draws[5])
            pixels = _jittered(pixels, brightness, contrast)
        if self._flip and may_flip and draws[6] < 0.5:
            pixels = F.horizontal_flip(pixels)
        return pixels


def _without_far_ends(part: Part) -> Part:
    """The middle of a very long strip: its ends never survive the centre crop, but resizing them can take gigabytes."""
    left, top, right, bottom = part
    most = LONGEST_STRIP * min(right - left, bottom - top)
    # the same at either end: the middle stays put
    across, down = (max(0, side - most + 1) // 2 for side in (right - left, bottom - top))
    return left + across, top + down, right - across, bottom - down


def _random_part(width: int, height: int, scale: tuple[float, float], draws: list[float]) -> Part:
    """A part of the picture with `scale` of its area and, within ASPECT_JITTER, its shape."""
    area = _between(*scale, draws[0])
    aspect = exp(_between(log(ASPECT_JITTER[0]), log(ASPECT_JITTER[1]), draws[1]))
    wide = min(width, max(1, round(width * sqrt(area * aspect))))
    high = min(height, max(1, round(height * sqrt(area / aspect))))
    left = int(draws[2] * (width - wide + 1))
    top = int(draws[3] * (height - high + 1))
    return left, top, left + wide, top + high


def _jittered(pixels: Tensor, brightness: float, contrast: float) -> Tensor:
    """(3, H, W) uint8 times `brightness`, then `contrast` times as far from its mean grey; clipped and rounded once."""
    values = pixels.float()
    grey = brightness * float(values.mean((1, 2)) @ LUMA)
    values.mul_(brightness * contrast).add_((1 - contrast) * grey + 0.5).clamp_(0, 255)
    return values.to(torch.int16).to(torch.uint8)  # half the time of float to uint8


def _between(least: float, most: float, draw: float) -> float:
    return least + (most - least) * draw


CHANNELS = 4  # Pillow stores RGB in four bytes, the last of which means nothing


class _ArrowArray(ctypes.Structure):
    """`struct ArrowArray` of the interface."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]

_array_in = ctypes.pythonapi.PyCapsule_GetPointer
_array_in.restype, _array_in.argtypes = ctypes.POINTER(_ArrowArray), (ctypes.py_object, ctypes.c_char_p)


def lent_pixels(image: Image.Image) -> Tensor:
    """RGB picture -> its own memory as uint8 (3 or 4, H, W), to be read only; first come red, green and blue.

    Copying a photograph's pixels out takes a sixth of the time of decoding it. Pillow lends them under the Arrow C
    data interface (https://arrow.apache.org/docs/format/CDataInterface.html), of which this is the little that is
    needed. The memory lives as long as the tensor. A picture that Pillow keeps in several blocks (of 16 MiB, so from
    about four million pixels) is copied, into three channels.
    """
    assert image.mode == "RGB"
    try:
        _, capsule = image.__arrow_c_array__()
    except ValueError:  # several blocks
        return F.pil_to_tensor(image)
    channels = _array_in(capsule, b"arrow_array").contents.children[0].contents
    assert channels.length == image.width * image.height * CHANNELS
    memory = (ctypes.c_uint8 * channels.length).from_address(channels.buffers[1] + channels.offset)
    memory.lender = capsule  # which gives the memory back when it goes
    return torch.frombuffer(memory, dtype=torch.uint8).view(image.height, image.width, CHANNELS).permute(2, 0, 1)
