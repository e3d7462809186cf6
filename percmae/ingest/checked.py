"""One image on its way through ingest: its bytes, read once for faults, statistics and likeness.

An image's bytes are kept unchanged, unless it is to be made smaller. Before that all of its coded
data is read, because a truncated JPEG that slips through would stop a training days later; one that
fails is left out and listed in the manifest.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from percmae.data.decode import decode
from percmae.errors import DataError
from percmae.ingest.duplicates import difference_hash
from percmae.ingest.settings import Settings

# A JPEG is decoded at a fraction of its size that leaves both sides as many pixels: for statistics
# of photos that is plenty, and takes little longer than to look for faults alone.
_SIDE = 64
# Of each level of a byte, its sum and that of its square.
_POWERS = np.arange(256)[:, None] ** (1, 2)
_LEAST = 1 / 255  # deviation that is told: one level of a byte
# (how a file begins, its ending); what else is opened is told by its name.
_BEGINNINGS = (
    (b"\xff\xd8", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II", ".tif"),
    (b"MM", ".tif"),
    (b"\0\0\0\x0cjP  ", ".jp2"),
    (b"\xff\x4f\xff\x51", ".jp2"),
    (b"P", ".ppm"),
)
_RIFF, _WEBP, _BOX = b"RIFF", b"WEBP", b"ftyp"


class Seen(NamedTuple):
    """What was found in an image, and what of it is stored.

    fault: in words, None where it is sound, and what follows is there only then. data: the bytes to
    store; ending: of their file; moments: mean of each channel, and of its square, over the pixels
    in [0, 1]; phash: see :func:`percmae.ingest.duplicates.difference_hash`.
    """

    fault: str | None
    data: bytes = b""
    ending: str = ""
    moments: tuple[float, ...] = ()
    phash: int = 0


def checked(data: bytes, name: str, settings: Settings) -> Seen:
    """Look at an image. name: for messages."""
    try:
        data = smaller(data, name, settings)
        pixels = decode(data, _SIDE, name, settings.formats)
    except DataError as error:
        return Seen(str(error))
    sums = np.array(pixels.histogram()).reshape(3, 256) @ _POWERS
    of = pixels.width * pixels.height
    moments = (*(sums[:, 0] / (255 * of)).tolist(), *(sums[:, 1] / (255**2 * of)).tolist())
    return Seen(None, data, _ending(data), moments, difference_hash(pixels))


def smaller(data: bytes, name: str, settings: Settings) -> bytes:
    """The image as a JPEG whose shorter side is ``settings.short_side``, if it is larger than that.

    Else its bytes as they are. Raises DataError for an image that is damaged.
    """
    side = settings.short_side
    if side is None:
        return data
    image = decode(data, side, name, settings.formats)
    scale = side / min(image.size)
    if scale >= 1:
        return data
    size = [max(side, round(length * scale)) for length in image.size]
    buffer = io.BytesIO()
    image.resize((size[0], size[1]), Image.Resampling.LANCZOS).save(
        buffer, "JPEG", quality=settings.quality
    )
    return buffer.getvalue()


def statistics(sums: Sequence[float], images: int) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel, to four digits, over equally weighted images.

    sums: of all images' moments.
    """
    first, second = ([x / images for x in part] for part in (sums[:3], sums[3:]))
    variances = (max(b - a * a, 0.0) for a, b in zip(first, second, strict=True))
    return {
        "mean": [round(x, 4) for x in first],
        "std": [round(max(math.sqrt(v), _LEAST), 4) for v in variances],
    }


def _ending(data: bytes) -> str:
    """The ending that an image of these bytes, which can be opened, has."""
    if data.startswith(_RIFF) and data[8:12] == _WEBP:
        return ".webp"
    if data[4:8] == _BOX:
        return ".avif"
    return next(ending for start, ending in _BEGINNINGS if data.startswith(start))
