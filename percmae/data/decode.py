"""Bytes of an image file to an RGB image, with the oddities of ImageNet allowed for.

ImageNet holds PNG files named ``.JPEG``, CMYK and greyscale JPEGs and JPEGs with EXIF rotation.
The first three become RGB; EXIF is ignored, as everyone who trains on ImageNet ignores it.

The bytes are anybody's, so only a few formats are opened at all, told by the bytes and never by the
name, and whatever a decoder raises means one thing: a damaged image.
"""

from __future__ import annotations

import ctypes
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import NamedTuple, get_args

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError, _imaging

from percmae.config import FORMATS
from percmae.config.schema import ImageFormat
from percmae.errors import DataError, UserError, one_line

# What is beyond these is made to use up memory and time (a WebP of 800 bytes took 25 seconds and
# 2.4 GB): many pixels have at least a byte of data for each thousand of them; a progressive JPEG
# has about ten scans, and goes over all of its pixels in each; a strip one pixel high would become
# gigantic when its shorter side is resized to what a network takes.
_PLAUSIBLE_PIXELS, _PIXELS_A_BYTE, _MOST_SCANS, _LONGEST_STRIP = 1 << 24, 1000, 500, 200
_SCAN = b"\xff\xda"
JPEG = b"\xff\xd8"
"""How a JPEG begins."""
REDUCTIONS = (8, 4, 2)
"""A JPEG is decoded at 1/8, 1/4, 1/2 of its size; for other fractions libjpeg-turbo has no SIMD."""
_LARGEST_JPEG = 1 << 24  # pixels beyond which Pillow decodes, which has limits for what is large
_COLOURS = ("YCbCr", "Gray")  # as simplejpeg names them; CMYK and RGB are left to Pillow
# Several pictures in a file, which Pillow does not reduce; said in the first 64 KiB.
_SEVERAL, _HEAD = b"MPF\0", 64 << 10

Name = str | Callable[[], str]
"""What an image is called in messages; a function where finding it out takes a while."""


def decode(
    data: bytes,
    min_side: int | None = None,
    name: Name = "image",
    formats: Sequence[str] = FORMATS,
) -> Image.Image:
    """Decode to an image of mode RGB with at least one pixel.

    min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep at
    least this many pixels (cheaper where the image is shrunk afterwards); None decodes it whole.
    Either way all of its coded data is read, so that a truncated file cannot pass.
    formats: what is opened, by Pillow's names (see :func:`check_formats`). Transparency is laid
    over white. Raises DataError, naming ``name``, for damaged data and data of another format.
    """
    if min_side is not None and "JPEG" in formats and (quick := _quick(data, min_side)):
        return quick
    try:
        with _warnings_of(name):
            image = Image.open(io.BytesIO(data), formats=tuple(formats))
            check_effort(image.size, data)
            if min_side is not None and image.format == "JPEG":
                image.draft("RGB", (min_side, min_side))
            return to_rgb(image)
    except UnidentifiedImageError:
        raise DataError(
            f"{_called(name)} is not an image that can be opened as {', '.join(formats)}"
        ) from None
    except Exception as error:  # each format's plugin raises what its code leads it to
        raise DataError(f"{_called(name)} is damaged: {_one_line(error)}") from None


def _quick(data: bytes, min_side: int) -> Image.Image | None:
    """A plain, sound JPEG, reduced as Pillow would, to the same pixels in two thirds of the time;
    None for whatever Pillow is to judge."""
    if data.find(_SEVERAL, 0, _HEAD) >= 0:
        return None
    size = plain_jpeg(data, _COLOURS)
    if size is None:
        return None
    width, height = size
    try:
        whole = min(width // min_side, height // min_side)
        reduction = next((n for n in REDUCTIONS if n <= whole), 1)
        least = (-(-height // reduction), -(-width // reduction)) if reduction > 1 else (0, 0)
        # strict: a warning of the decoder's is Pillow's to judge as well.
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=least[0], min_width=least[1], strict=True
        )
    except ValueError:
        return None
    return Image.fromarray(pixels)


def plain_jpeg(data: bytes, colours: Sequence[str]) -> tuple[int, int] | None:
    """Width and height of a JPEG of moderate size in one of these colours (simplejpeg's names);
    None for whatever Pillow is to judge."""
    if not data.startswith(JPEG):
        return None
    try:
        height, width, found, _ = simplejpeg.decode_jpeg_header(data)
        check_effort((width, height), data)
    except ValueError:
        return None
    return (width, height) if found in colours and width * height <= _LARGEST_JPEG else None


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats themselves. Raises UserError for one that is not offered or not installed."""
    offered: tuple[str, ...] = get_args(ImageFormat)
    wrong = [name for name in formats if name not in offered]
    if wrong or not formats:
        raise UserError(
            f"image formats {', '.join(wrong) or 'none'}: choose from {', '.join(offered)}"
        )
    Image.init()
    absent = [name for name in formats if name not in Image.OPEN]
    if absent:
        raise UserError(
            f"image formats {', '.join(absent)}: Pillow {Image.__version__} cannot read these; "
            "install a newer one"
        )
    return tuple(formats)


class ImageWarning(NamedTuple):
    """What a library had to say about an image."""

    kind: str
    """The same for all that come from one line of its code."""
    name: str
    """What the image is called."""
    text: str


@contextmanager
def telling(tell: Callable[[ImageWarning], None]) -> Iterator[None]:
    """While open, warnings about an image that is decoded, in any thread, go to ``tell``.

    Other warnings go where they always went. Filters are left alone: a change of them would have
    all warnings of other code shown again.
    """
    _quieten_libtiff()
    log, logger = _Log(tell), logging.getLogger("PIL")
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        name: Name | None = getattr(_decoding, "name", None)
        if name is None:
            before(message, category, filename, lineno, file, line)  # type: ignore[arg-type]
        else:
            tell(ImageWarning(f"{filename}:{lineno}", _called(name), _one_line(message)))

    warnings.showwarning = show
    logger.addHandler(log)
    try:
        yield
    finally:
        logger.removeHandler(log)
        warnings.showwarning = before


class _Log(logging.Handler):
    """What Pillow writes to its log; without a handler, Python would print it."""

    def __init__(self, tell: Callable[[ImageWarning], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        name: Name | None = getattr(_decoding, "name", None)
        if name is not None:
            text = _one_line(record.getMessage())
            self._tell(ImageWarning(f"{record.pathname}:{record.lineno}", _called(name), text))


class Once:
    """Says of each kind of warning the first one, with the image's name."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, warning: ImageWarning) -> None:
        with self._lock:
            first = warning.kind not in self._said
            self._said.add(warning.kind)
        if first:
            self._say(f"{warning.name}: {warning.text} (said once, of the first image only)")


@cache
def _quieten_libtiff() -> None:
    """libtiff writes to stderr by itself what Pillow then raises as well, without a name."""
    with suppress(AttributeError, OSError):  # a Pillow without it, or one that hides its functions
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


_decoding = threading.local()  # name: of the image that this thread is at


@contextmanager
def _warnings_of(name: Name) -> Iterator[None]:
    _decoding.name = name
    try:
        yield
    finally:
        _decoding.name = None


def _called(name: Name) -> str:
    return name if isinstance(name, str) else name()


def check_effort(size: tuple[int, int], data: bytes) -> None:
    """Raise ValueError for an image (width, height) that is made to use up memory and time.

    Pillow itself refuses what has more than 2 · MAX_IMAGE_PIXELS (179 million).
    """
    width, height = size
    pixels = width * height
    if (
        not pixels
        or pixels > max(_PLAUSIBLE_PIXELS, _PIXELS_A_BYTE * len(data))
        or max(size) > _LONGEST_STRIP * min(size)
    ):
        raise ValueError(f"{width} × {height} pixels in {len(data):,} bytes")
    if data.startswith(JPEG) and (scans := data.count(_SCAN)) > _MOST_SCANS:
        raise ValueError(f"a JPEG of {scans:,} scans")


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, over white where transparent. Raises ValueError for float pixels."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 16 bits a pixel: PIL's own conversion would clip at 255 and leave a white image.
        high_byte = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels of type float are not supported")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _one_line(error: BaseException | str) -> str:
    return one_line(error) or type(error).__name__
