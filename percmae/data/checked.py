"""Images on their way through ingest: read once, on all cores, for faults and statistics."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from percmae.data.decode import decode, verify
from percmae.data.imagenet import ArchivedImage
from percmae.errors import DataError

_CHECK_AHEAD = 64 << 20  # bytes of images waiting for their check
# A JPEG is decoded at a fraction of its size that leaves both sides as many pixels: for statistics
# of photos that is plenty, and takes little longer than to look for faults alone.
_SIDE = 64
_LEVELS = np.arange(256) / 255
_LEAST = 1 / 255  # deviation that is told: one level of a byte


class Seen(NamedTuple):
    """What was found in an image.

    fault: in words, None where it is sound; moments: mean of each channel, and of its square, over
    the pixels in [0, 1]; none where there is a fault or they were not asked for.
    """

    fault: str | None
    moments: tuple[float, ...] = ()


def checked(
    images: Iterator[ArchivedImage], formats: Sequence[str], moments: bool
) -> Iterator[tuple[ArchivedImage, Seen]]:
    """Each image with what was found in it, in order; looked at on all cores, a little ahead."""
    cores = len(os.sched_getaffinity(0))
    waiting: deque[tuple[ArchivedImage, Future[Seen]]] = deque()
    held = 0
    with ThreadPoolExecutor(cores) as pool:
        look = partial(_look, formats=formats, moments=moments)
        for image in images:
            waiting.append((image, pool.submit(look, image)))
            held += len(image.data)
            while held > _CHECK_AHEAD or len(waiting) > 16 * cores:
                done, seen = waiting.popleft()
                held -= len(done.data)
                yield done, seen.result()
        while waiting:
            done, seen = waiting.popleft()
            yield done, seen.result()


def _look(image: ArchivedImage, formats: Sequence[str], moments: bool) -> Seen:
    try:
        if not moments:
            verify(image.data, image.member, formats)
            return Seen(None)
        pixels = decode(image.data, _SIDE, image.member, formats)
    except DataError as error:
        return Seen(str(error))
    counts = np.array(pixels.histogram()).reshape(3, len(_LEVELS))
    shares = counts / (pixels.width * pixels.height)
    return Seen(None, (*(shares @ _LEVELS).tolist(), *(shares @ _LEVELS**2).tolist()))


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
