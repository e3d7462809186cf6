"""Bytes of an image file to an RGB image, with the oddities of ImageNet allowed for.

ImageNet holds PNG files named ``.JPEG``, CMYK and greyscale JPEGs and JPEGs with EXIF rotation.
The first three become RGB; EXIF is ignored, as everyone who trains on ImageNet ignores it.
"""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from percmae.errors import DataError

# What PIL raises on damaged data, each format plugin having its own habits.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    IndexError,
    TypeError,
    EOFError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


def decode(data: bytes, min_side: int | None = None, name: str = "image") -> Image.Image:
    """Decode to an image of mode RGB.

    min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep at
    least this many pixels (cheaper where the image is shrunk afterwards); None decodes it whole.
    Transparency is laid over white. Raises DataError, naming ``name``, for damaged data.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if min_side is not None and image.format == "JPEG":
            image.draft("RGB", (min_side, min_side))
        return _to_rgb(image)
    except UnidentifiedImageError:
        raise DataError(f"{name} is not an image that can be decoded") from None
    except _BROKEN as error:
        raise DataError(f"{name} is damaged: {_one_line(error)}") from None


def verify(data: bytes, name: str = "image") -> None:
    """Raise DataError unless all of the coded image data can be read.

    A JPEG is decoded at 1/8 of its size: the whole entropy-coded stream is read, so that a
    truncated file cannot pass, in three quarters of the time of a full decode.
    """
    with warnings.catch_warnings():  # a very large image warns here; it is counted, not a fault
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        decode(data, min_side=1, name=name)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 16 bits a pixel: PIL's own conversion would clip at 255 and leave a white image.
        high_byte = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels of type float are not supported")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
