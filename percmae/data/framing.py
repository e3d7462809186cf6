"""From an image's bytes to the pixels that a network takes: a box of the image, resized.

The box is chosen before anything is decoded, so a JPEG may be decoded at a fraction of its size
where the box has pixels enough. Pillow decodes and resizes in mode ``exact``; in the others JPEGs
are decoded by libjpeg-turbo straight into an array, and torch resizes in whole numbers, with
Pillow's filters. How far the modes are apart is in docs/performance.md, "Loading images".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image

from percmae.config.schema import Decode, Interpolation
from percmae.data.decode import REDUCTIONS, Name, decode, plain_jpeg

_COLOURS = ("YCbCr", "Gray", "RGB")
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Frame(NamedTuple):
    """What of an image is taken: its box, resized to ``size``, and of that the middle square."""

    box: tuple[int, int, int, int]
    """Left, top, width, height, in pixels of the image."""
    size: tuple[int, int]
    """Width, height."""


Choose = Callable[[int, int], Frame]
"""An image's width and height to its frame."""


def reduction_of(width: int, height: int, size: tuple[int, int]) -> int:
    """The largest r of 8, 4, 2, 1 at which 1/r of a box still has ``size`` (width, height)."""
    fits = (r for r in REDUCTIONS if width // r >= size[0] and height // r >= size[1])
    return next(fits, 1)


def framed(
    data: bytes,
    choose: Choose,
    side: int,
    mode: Decode,
    interpolation: Interpolation,
    name: Name = "image",
    formats: Sequence[str] = ("JPEG",),
) -> np.ndarray:
    """The pixels of a frame of an image: uint8 (side, side, 3), RGB.

    name: of the image, in messages. formats: what is opened, by Pillow's names. Raises DataError
    for damaged data and data of another format.
    """
    if mode != "exact" and "JPEG" in formats:
        found = _jpeg(data, choose, mode == "fastest")
        if found is not None:
            return _middle(_resized(*found, interpolation), side)
    image = decode(data, name=name, formats=formats)
    return framed_image(image, choose, side, mode, interpolation)


def framed_image(
    image: Image.Image, choose: Choose, side: int, mode: Decode, interpolation: Interpolation
) -> np.ndarray:
    """The pixels of a frame of a decoded RGB image: uint8 (side, side, 3)."""
    frame = choose(*image.size)
    if mode != "exact":
        return _middle(_resized(np.array(image), frame, interpolation), side)
    left, top, width, height = frame.box
    part = image.crop((left, top, left + width, top + height))
    return _middle(np.asarray(part.resize(frame.size, _FILTERS[interpolation])), side)


def _jpeg(data: bytes, choose: Choose, fastest: bool) -> tuple[np.ndarray, Frame] | None:
    """An image, perhaps reduced, and the frame in its pixels; None for what Pillow is to judge.

    That is whatever is no plain, sound JPEG of moderate size: Pillow then says what is wrong, or
    makes the best of it.
    """
    size = plain_jpeg(data, _COLOURS)
    if size is None:
        return None
    width, height = size
    try:
        frame = choose(width, height)
        reduction = _aligned_reduction(frame, width, height)
        image = simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastdct=fastest,
            fastupsample=fastest,
            min_height=-(-height // reduction) if reduction > 1 else 0,
            min_width=-(-width // reduction) if reduction > 1 else 0,
        )
    except ValueError:
        return None
    left, top, wide, high = (-(-n // reduction) for n in frame.box)
    return image, Frame((left, top, wide, high), frame.size)


def _aligned_reduction(frame: Frame, width: int, height: int) -> int:
    """By how much an image may be reduced without its frame losing pixels or moving."""
    left, top, wide, high = frame.box
    reduction = reduction_of(wide, high, frame.size)
    while any(
        start % reduction or (length % reduction and start + length < whole)
        for start, length, whole in ((left, wide, width), (top, high, height))
    ):
        reduction //= 2
    return reduction


def _resized(image: np.ndarray, frame: Frame, interpolation: Interpolation) -> np.ndarray:
    left, top, width, height = frame.box
    part = image[top : top + height, left : left + width]
    if frame.size == (width, height):
        return part
    if interpolation == "lanczos":  # which torch does not have
        whole = Image.fromarray(np.ascontiguousarray(part))
        return np.asarray(whole.resize(frame.size, _FILTERS[interpolation]))
    planes = torch.from_numpy(part).permute(2, 0, 1)[None]
    # Said of one image, for it is else taken for planar, and comes out so, in twice the time.
    planes = planes.contiguous(memory_format=torch.channels_last)
    resized = F.interpolate(planes, frame.size[::-1], mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle square, as torchvision's CenterCrop has it."""
    top, left = (round((n - side) / 2) for n in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]
