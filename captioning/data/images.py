"""Picture files -> upright RGB pictures, whatever real folders hold; or one short reason why not."""

import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from ipaddress import ip_address
from os import PathLike
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener, getproxies

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # where Pillow itself sees a decompression bomb; half a gibibyte as RGB
MAX_FETCHED_BYTES = 2**26  # of a URL: no photograph in a page is larger
FETCH_SECONDS = 30  # without an answer
MAX_FILE_BYTES = 2**31  # more than an uncompressed picture of MAX_PIXELS takes; keeps a stray archive out of memory

MAX_SCANS = 500  # of a progressive JPEG, which has about ten: each goes over all pixels, and may be a few bytes
START_OF_SCAN = b"\xff\xda"  # within a scan, 0xff is always followed by another byte

# Rasters only: other formats of Pillow's start programs (EPS) or are recognised by a name rather than by content.
# The last two are of packages that are optional.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF", "JXL")
PLUGINS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}  # both come with captioning[formats]
# What else a suffix says is a picture: a folder's are counted in a warning.
_UNREAD = (
    ".heic .heics .heif .heifs .hif .jxl .psd .svg .svgz .xcf .eps .ico .tga .dds .exr .hdr .pcx .qoi .jxr .wdp "
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .raf .rw2 .pef .srw .x3f .3fr .iiq .mef .mos .erf"
)
UNREAD = frozenset(_UNREAD.split())

# EXIF 2.32, tag 0x0112: how the stored picture must be turned to stand upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@cache
def open_formats() -> tuple[str, ...]:
    """The formats that can be read here; registers the plugins that are installed."""
    Image.init()
    for format_, name in PLUGINS.items():
        if find_spec(name) is not None and format_ not in Image.OPEN:
            module = import_module(name)  # which registers JPEG XL by itself
            if format_ == "HEIF":
                module.register_heif_opener()
    return tuple(known for known in FORMATS if known in Image.OPEN)  # older Pillows have no AVIF


@cache
def picture_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of files that can be read."""
    formats = {*open_formats(), "MPO"}  # which is opened as a JPEG
    return frozenset(suffix for suffix, format_ in Image.registered_extensions().items() if format_ in formats)


def _kind_of(data: bytes) -> str:
    """What a file is that no decoder here takes, as far as its first bytes tell."""
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        return "HEIC, which is read where pillow-heif is: pip install 'captioning[formats]'"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL, which is read where pillow-jxl-plugin is: pip install 'captioning[formats]'"
    if data.startswith(b"8BPS"):
        return "a Photoshop document; export it as PNG or JPEG"
    if b"<svg" in data[:1000]:
        return "an SVG drawing; export it as PNG"
    return "not a picture, or damaged at its start"


class UnreadablePicture(Exception):
    """Why a file gave no picture: one short reason, without the path, which the caller knows."""


def read_picture(path: str | PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of a picture file, upright and RGB; transparent parts become white.

    The number of pixels is read from the header and checked before anything is decoded. Raises UnreadablePicture for
    everything else that a path can lead to: nothing, a folder, a pipe, a text, a truncated or broken picture.
    """
    return decode_picture(read_file(Path(path)), max_pixels)


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The same of a file's bytes.

    libjpeg-turbo decodes JPEGs whole: a photograph's bytes, not its pixels, take the time. Measured on 64 of COCO,
    scaled decoding (Pillow's `draft`) to half the sides saves a tenth and costs detail.
    """
    with _strict_pillow():
        return _decode(data, max_pixels)


def fetch_picture(url: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The same of what a web server answers, of at most `MAX_FETCHED_BYTES`."""
    return decode_picture(fetched(url), max_pixels)


def fetched(url: str, *, private: bool = True, tries: int = 1) -> bytes:
    """What a web server answers, of at most `MAX_FETCHED_BYTES`.

    Args:
        url: http:// or https://.
        private: whether it may lead to an address of this machine or its network, such as 192.168.0.1, which a list
            of somebody else's could name. Through a proxy that is the proxy's business.
        tries: so often it is asked where it is too busy, breaks off or is silent.

    Raises:
        UnreadablePicture: no answer, or too large a one.
    """
    opener = build_opener() if private or getproxies() else build_opener(_PublicHttp, _PublicHttps)
    request = Request(url, headers={"User-Agent": "captioning"})
    for again in range(tries):
        try:
            with opener.open(request, timeout=FETCH_SECONDS) as answer:
                data: bytes = answer.read(MAX_FETCHED_BYTES + 1)
                promised = answer.headers.get("Content-Length")
                if promised and promised.isdecimal() and len(data) < min(int(promised), MAX_FETCHED_BYTES):
                    raise ConnectionError(f"{len(data)} of {promised} bytes came")
        except (OSError, HTTPException, ValueError) as error:  # ValueError: no URL
            reason = error.reason if isinstance(error, URLError) else error
            lasting = isinstance(error, ValueError) or isinstance(reason, _PrivateAddress)
            lasting |= isinstance(error, HTTPError) and error.code < 500 and error.code != 429
            if lasting or again == tries - 1:
                code = f"{error.code} " if isinstance(error, HTTPError) else ""
                raise UnreadablePicture(f"not fetched: {code}{reason or type(error).__name__}") from error
            time.sleep(0.5 * 2**again)
            continue
        if len(data) > MAX_FETCHED_BYTES:
            raise UnreadablePicture(f"more than the limit of {MAX_FETCHED_BYTES} bytes")
        return data
    raise AssertionError


class _PrivateAddress(OSError):
    """Where a URL led that may not lead there."""


def _refuse_private(connection: HTTPConnection) -> None:
    """Asked of the address that was connected to, so that neither names nor redirections hide it."""
    address = connection.sock.getpeername()[0]
    if not ip_address(address.partition("%")[0]).is_global:
        connection.close()
        raise _PrivateAddress(
            f"{connection.host} is {address}, an address of this network; private_urls=true allows it"
        )


class _PublicConnection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _refuse_private(self)


class _PublicTlsConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _refuse_private(self)


class _PublicHttp(HTTPHandler):
    def http_open(self, request: Request) -> HTTPResponse:
        return self.do_open(_PublicConnection, request)


class _PublicHttps(HTTPSHandler):
    def https_open(self, request: Request) -> HTTPResponse:
        return self.do_open(_PublicTlsConnection, request)


def picture_in_memory(picture: Image.Image | np.ndarray) -> Image.Image:
    """The same of a Pillow image, or of an array (H, W, 3) or (H, W) uint8."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,), (4,)):
            raise UnreadablePicture(
                f"an array of shape {picture.shape} and type {picture.dtype}; give (H, W, 3) uint8 in RGB"
            )
        picture = Image.fromarray(picture)
    with _strict_pillow():
        try:
            return _rgb(_upright(picture, picture))
        except Exception as error:  # see `_decode`
            raise UnreadablePicture(f"broken picture: {error}") from error


def read_file(path: Path) -> bytes:
    """A file's bytes, few enough to be a picture's; raises UnreadablePicture."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UnreadablePicture("a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise UnreadablePicture("not a regular file")  # opening a pipe would wait for ever
        if status.st_size > MAX_FILE_BYTES:
            raise UnreadablePicture(f"{status.st_size} bytes are more than the limit of {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UnreadablePicture("no such file") from None
    except PermissionError:
        raise UnreadablePicture("no permission to read it") from None
    except OSError as error:
        raise UnreadablePicture(error.strerror or "the file can't be read") from error
    except ValueError as error:  # a path with a null character
        raise UnreadablePicture(str(error)) from error
    if not data:
        raise UnreadablePicture("empty file")
    return data


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Pillow's process-wide settings as this module needs them, whatever another library made of them.

    Its own pixel limit is off because `_decode` holds a stricter one and names the picture's size; truncated files
    are errors; its warnings, which name no file, are kept from the user's screen.
    """
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    name = "picture"  # until the format is known
    try:
        with Image.open(BytesIO(data), formats=open_formats()) as image:
            name = image.format or name
            if image.width * image.height > max_pixels:
                raise UnreadablePicture(
                    f"{image.width} x {image.height} pixels are more than the limit of {max_pixels}"
                )
            pixels = _jpeg(data) if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") else None
            if pixels is None:
                image.load()
            return _rgb(_upright(pixels or image, image))
    except UnidentifiedImageError:
        raise UnreadablePicture(_kind_of(data)) from None
    except MemoryError as error:
        raise UnreadablePicture(f"this {name} needs more memory than there is") from error
    except UnreadablePicture:
        raise
    except Exception as error:  # on malformed files Pillow's decoders raise nearly all that there is
        if isinstance(error, EOFError) or "truncated" in str(error).lower():
            raise UnreadablePicture(f"truncated {name}") from error
        raise UnreadablePicture(f"broken {name}: {error}") from error


def _jpeg(data: bytes) -> Image.Image | None:
    """A JPEG's pixels, equal to Pillow's to the bit; None where Pillow is left to it.

    Both use libjpeg-turbo, which goes on over damage with a warning and fills the rest with grey. Pillow drops the
    warning; simplejpeg raises it. Bytes that are left over behind a whole picture, as some cameras leave them, are
    no damage. Damage that gives another valid code goes unnoticed.
    """
    if data.count(START_OF_SCAN) > MAX_SCANS:
        raise UnreadablePicture(f"more than {MAX_SCANS} scans in this JPEG")
    try:
        return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))
    except ValueError as error:
        problem = str(error)
    if not any(sign in problem for sign in ("Corrupt JPEG data", "Premature end", "Unsupported marker")):
        return None  # a kind of JPEG that TurboJPEG does not take
    if "extraneous bytes before marker 0xd9" in problem:
        return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", strict=False))
    if "Premature end of JPEG file" in problem:
        raise UnreadablePicture("truncated JPEG")
    raise UnreadablePicture(f"damaged JPEG: {problem.removeprefix('Corrupt JPEG data: ')}")


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """The pixels turned as the metadata of the image says."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return pixels  # damaged metadata beside sound pixels: they are shown as they are stored
    return pixels.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    # Pillow has already undone the inversion of Adobe's CMYK JPEGs
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: np.ndarray) -> Image.Image:
    """Grey values (H, W) of more than 8 bits as a picture in mode L.

    Files don't say what white is: it is 1 for fractions, otherwise the highest value of 8, 12 or 16 bits, whichever
    first holds them all. Other values (negative ones, 32 bits, photometric floats) are stretched from least to most.
    """
    fractions = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    least, most = float(values.min()), float(values.max())
    fitting = [white for white in ((1.0,) if fractions else (255.0, 4095.0, 65535.0)) if least >= 0 and most <= white]
    black, white = (0.0, fitting[0]) if fitting else (least, most if most > least else least + 1)
    scaled = (values - np.float32(black)) * np.float32(255 / (white - black))
    return Image.fromarray((scaled + 0.5).clip(0, 255).astype(np.uint8))
