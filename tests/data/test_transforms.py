"""The evaluation transform follows the encoder's processor; the training transform changes little and by address."""

import gc

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F
from transformers import CLIPImageProcessor, ViTImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from captioning.data.batch import PictureFormat
from captioning.data.transforms import (
    EvaluationTransform,
    QuickTransform,
    TrainingTransform,
    lent_pixels,
)
from captioning.errors import UserError

# The evaluation transform follows the encoder's processor; the training transform changes little and by address.


SQUEEZE = PictureFormat((48, 40))
CROP = PictureFormat((48, 40), resize_shortest=52)
OFF = {"crop_scale": None, "brightness": 0.0, "contrast": 0.0, "flip": False}
SIZES = [(120, 90), (90, 121), (30, 20), (40, 48), (1, 1), (4000, 20), (7, 300)]


def drawn(width: int, height: int) -> Image.Image:
    """Smooth waves with a little noise, like a photograph."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 11)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 8, waves.shape)
    return Image.fromarray((127 + 100 * waves + noise).clip(0, 255).astype(np.uint8))


def processed(processor_class: type, image: Image.Image, picture_format: PictureFormat) -> torch.Tensor:
    height, width = picture_format.size
    options = {"size": {"height": height, "width": width}}
    if picture_format.resize_shortest:
        options = {
            "size": {"shortest_edge": picture_format.resize_shortest},
            "crop_size": options["size"],
            "do_center_crop": True,
        }
    filter_number = Image.Resampling[picture_format.resample.upper()]
    processor = processor_class(resample=filter_number, do_rescale=False, do_normalize=False, **options)
    return processor(image, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("size", SIZES)
def test_evaluation_equals_the_pillow_backed_processors_to_the_bit(resample, size):
    for shortest, processor in ((None, ViTImageProcessorPil), (52, CLIPImageProcessorPil)):
        picture_format = PictureFormat((48, 40), resample=resample, resize_shortest=shortest)
        pixels = EvaluationTransform(picture_format)(drawn(*size))
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (3, 48, 40)
        assert torch.equal(pixels, processed(processor, drawn(*size), picture_format))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(640, 480), (200, 150), (333, 333), (4000, 20), (1, 1)])
def test_evaluation_is_within_rounding_of_the_torchvision_backed_processors(resample, size):
    for shortest, processor in ((None, ViTImageProcessor), (256, CLIPImageProcessor)):
        picture_format = PictureFormat((224, 224), resample=resample, resize_shortest=shortest)
        reference = processed(processor, drawn(*size), picture_format)
        off = (EvaluationTransform(picture_format)(drawn(*size)).float() - reference.float()).abs()
        assert off.mean() < 0.05
        assert (off > 1).float().mean() < 1e-3  # single pixels of bicubic overshoot
        assert off.max() <= 3


def test_a_crop_larger_than_the_resized_picture_is_padded_with_black():
    picture_format = PictureFormat((61, 61), resize_shortest=30)
    pixels = EvaluationTransform(picture_format)(Image.new("RGB", (60, 40), "white"))
    assert torch.equal(pixels, processed(CLIPImageProcessorPil, Image.new("RGB", (60, 40), "white"), picture_format))
    assert pixels[:, 0].max() == 0
    assert pixels[:, 30, 30].min() == 255


def test_a_hair_thin_strip_takes_no_gigabytes():
    pixels = EvaluationTransform(PictureFormat((48, 48), resize_shortest=48))(Image.new("RGB", (1, 3_000_000), "red"))
    assert pixels[:, 20, 20].tolist() == [255, 0, 0]


def test_an_unknown_filter_is_refused_by_name():
    with pytest.raises(UserError, match=r"resample='sinc'.*bicubic"):
        EvaluationTransform(PictureFormat((4, 4), resample="sinc"))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("picture_format", [SQUEEZE, CROP])
@pytest.mark.parametrize("size", SIZES)
def test_training_with_everything_off_is_evaluation(picture_format, size):
    pixels = TrainingTransform(picture_format, **OFF)(drawn(*size), generator(3), may_flip=True)
    assert torch.equal(pixels, EvaluationTransform(picture_format)(drawn(*size)))


@pytest.mark.parametrize("picture_format", [SQUEEZE, CROP])
@pytest.mark.parametrize("size", SIZES)
def test_training_with_everything_on_gives_the_same_shape_for_every_picture(picture_format, size):
    transform = TrainingTransform(picture_format, crop_scale=[0.1, 1.0], brightness=0.2, contrast=0.2, flip=True)
    for seed in range(5):
        pixels = transform(drawn(*size), generator(seed), may_flip=True)
        assert pixels.shape == (3, 48, 40)
        assert pixels.dtype == torch.uint8


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(640, 480), (90, 121), (30, 20), (1, 1)])
def test_the_quick_transform_shows_what_evaluation_shows(size, resample):
    for shortest in (None, 52):
        picture_format = PictureFormat((48, 40), resample=resample, resize_shortest=shortest)
        quick, exact = (kind(picture_format)(drawn(*size)).int() for kind in (QuickTransform, EvaluationTransform))
        assert quick.shape == exact.shape
        assert (quick - exact).abs().max() <= (2 if resample == "bicubic" else 1)


def test_jitter_is_torchvisions_but_for_rounding_and_clipping():
    image = drawn(40, 48).point(lambda value: 60 + value // 2)  # so that nothing is clipped
    transform = TrainingTransform(SQUEEZE, **OFF | {"brightness": 0.3, "contrast": 0.3})
    for seed in range(20):
        draws = torch.rand(7, generator=generator(seed), dtype=torch.float64).tolist()
        pixels = F.adjust_brightness(F.pil_to_tensor(image), 0.7 + 0.6 * draws[4])
        pixels = F.adjust_contrast(pixels, 0.7 + 0.6 * draws[5])
        difference = transform(image, generator(seed), may_flip=False).int() - pixels.int()
        assert difference.abs().max() <= 2  # torchvision rounds down, twice


def test_jitter_never_wraps_around():
    halves = np.repeat(np.array([[0, 255]], np.uint8), 20, axis=1).repeat(48, 0)
    black_and_white = Image.fromarray(halves).convert("RGB")
    transform = TrainingTransform(SQUEEZE, **OFF | {"brightness": 0.5, "contrast": 0.5})
    for seed in range(50):
        pixels = transform(black_and_white, generator(seed), may_flip=False)
        assert pixels[0, 0, 0] < 110 and pixels[0, 0, -1] > 120


@pytest.mark.parametrize("piece", [{"crop_scale": (0.5, 0.9)}, {"brightness": 0.3}, {"contrast": 0.3}, {"flip": True}])
def test_each_piece_changes_the_picture_as_a_function_of_the_seed(piece):
    transform = TrainingTransform(SQUEEZE, **OFF | piece)
    seen = [transform(drawn(120, 90), generator(seed), may_flip=True) for seed in range(8)]
    again = [transform(drawn(120, 90), generator(seed), may_flip=True) for seed in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    assert len({pixels.numpy().tobytes() for pixels in seen}) == (2 if "flip" in piece else 8)


def test_flips_come_half_the_time_and_only_where_they_may():
    transform = TrainingTransform(SQUEEZE, **OFF | {"flip": True})
    image = drawn(120, 90)
    upright = EvaluationTransform(SQUEEZE)(image)
    flipped = 0
    for seed in range(200):
        pixels = transform(image, generator(seed), may_flip=True)
        assert torch.equal(pixels, upright) or torch.equal(pixels, upright.flip(-1))
        flipped += torch.equal(pixels, upright.flip(-1))
        assert torch.equal(transform(image, generator(seed), may_flip=False), upright)
    assert 70 <= flipped <= 130


def test_switching_a_piece_off_leaves_the_others_as_they_were():
    """The flip of seed s is the same with and without jitter and crop."""
    image = Image.fromarray(np.tile(np.linspace(0, 255, 100).astype(np.uint8)[None, :, None], (80, 1, 3)))
    alone = TrainingTransform(SQUEEZE, **OFF | {"flip": True})
    together = TrainingTransform(SQUEEZE, crop_scale=(0.7, 1), brightness=0.1, contrast=0.1, flip=True)
    for seed in range(20):
        one, other = (t(image, generator(seed), may_flip=True)[0, 20].int() for t in (alone, together))
        assert (one[0] < one[-1]) == (other[0] < other[-1])


@pytest.mark.parametrize("size", [(200, 150), (4000, 20)])
def test_a_random_part_keeps_the_asked_area_and_nearly_the_shape(size):
    width, height = size
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([columns, rows, rows], axis=-1).round().astype(np.uint8))
    transform = TrainingTransform(PictureFormat((64, 64), resample="nearest"), **OFF | {"crop_scale": (0.5, 0.8)})
    areas, corners = [], set()
    for seed in range(100):
        pixels = transform(image, generator(seed), may_flip=False).float()
        wide = (pixels[0].max() - pixels[0].min()) / 255
        high = (pixels[1].max() - pixels[1].min()) / 255
        areas.append(float(wide * high))
        assert 0.7 < wide / high < 1.45
        corners.add((int(pixels[0].min()), int(pixels[1].min())))
    assert min(areas) > 0.4
    assert max(areas) < 0.85
    assert len(corners) > 30


def test_brightness_and_contrast_stay_within_their_bounds():
    grey = Image.new("RGB", (50, 50), (100, 100, 100))
    bright = TrainingTransform(SQUEEZE, **OFF | {"brightness": 0.2})
    levels = [int(bright(grey, generator(seed), may_flip=False)[0, 0, 0]) for seed in range(200)]
    assert 80 <= min(levels) <= 84
    assert 116 <= max(levels) <= 120
    halves = Image.fromarray(np.repeat(np.array([[100, 150]], np.uint8), 25, axis=1).repeat(50, 0)).convert("RGB")
    contrast = TrainingTransform(PictureFormat((50, 50)), **OFF | {"contrast": 0.2})
    spans = [int(np.ptp(contrast(halves, generator(seed), may_flip=False).numpy())) for seed in range(200)]
    assert 38 <= min(spans) <= 44
    assert 56 <= max(spans) <= 62


def test_a_list_of_the_configuration_is_a_crop_scale():
    from omegaconf import OmegaConf

    scale = OmegaConf.create({"crop_scale": [0.7, 1]}).crop_scale
    TrainingTransform(SQUEEZE, **OFF | {"crop_scale": scale})(drawn(20, 20), generator(0), may_flip=True)


# A picture's own memory as a tensor: the right pixels, for as long as they are needed.


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (640, 480), (3000, 2000)])  # the last fills several blocks
def test_the_pixels_are_the_pictures(size):
    assert torch.equal(lent_pixels(noise(*size))[:3], F.pil_to_tensor(noise(*size)))


def test_the_pixels_outlive_the_picture():
    pixels = lent_pixels(noise(200, 100))[:3, 10:]
    gc.collect()
    others = [Image.new("RGB", (200, 100), "white") for _ in range(50)]  # would take over memory that was given back
    assert torch.equal(pixels, F.pil_to_tensor(noise(200, 100))[:, 10:])
    assert others


def test_the_memory_is_given_back():
    from resource import RUSAGE_SELF, getrusage

    def peak_mebibytes() -> float:
        return getrusage(RUSAGE_SELF).ru_maxrss / 1024

    lent_pixels(Image.new("RGB", (1500, 1500)))
    before = peak_mebibytes()
    for _ in range(100):  # of 9 MB each
        lent_pixels(Image.new("RGB", (1500, 1500)))
    assert peak_mebibytes() - before < 100
