"""Small pictures for a page that shows thousands."""

from io import BytesIO

from PIL import Image

SIDE = 240  # pixels, the longer side; sharp on a phone, and 5,000 photographs stay at 40 MB in a page
LONGEST = 8  # times the shorter side: of a longer strip its middle is shown
QUALITY = 75  # of WebP; about 6 kB a photograph, where JPEG takes 7.5


def thumbnail(image: Image.Image) -> bytes:
    """An RGB picture as a WebP file, its longer side at most `SIDE` pixels."""
    most = LONGEST * min(image.size)
    left, top = (max(0, side - most) // 2 for side in image.size)
    small = image.crop((left, top, image.width - left, image.height - top)) if left or top else image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2)
    return webp(small)


def webp(image: Image.Image) -> bytes:
    """The picture as a WebP file, without anything else that its own file held."""
    file = BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=4, exif=b"", icc_profile=b"")
    return file.getvalue()
