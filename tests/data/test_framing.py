"""Pixels of an image's frame: what the three modes have in common, and how far they are apart."""

from __future__ import annotations

import io
import math
import random
from typing import Any

import fuzz_images
import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data

from percmae.config import FORMATS
from percmae.data import framing
from percmae.data.decode import decode
from percmae.data.framing import Frame, framed, reduction_of
from percmae.errors import DataError

MODES: Any = ("exact", "fast", "fastest")


def photo(size: tuple[int, int] = (500, 375)) -> Image.Image:
    return Image.fromarray(skimage_data.chelsea()).resize(size, Image.Resampling.LANCZOS)


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def made(data: bytes, frame: Frame, mode: Any, interpolation: Any = "bicubic") -> np.ndarray:
    side = min(frame.size)
    pixels = framed(data, lambda *size: frame, side, mode, interpolation, "x", FORMATS)
    assert pixels.shape == (side, side, 3)
    assert pixels.dtype == np.uint8
    return pixels


def difference(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """Mean of the absolute difference, of 255, and PSNR in dB."""
    error = one.astype(float) - two
    return float(np.abs(error).mean()), 10 * math.log10(
        255**2 / max(float((error**2).mean()), 1e-9)
    )


# What docs/performance.md states, for photographs.
@pytest.mark.parametrize(
    ("mode", "box", "largest", "psnr"),
    [
        ("fast", (0, 0, 1000, 750), 1.0, 40),
        ("fast", (10, 20, 320, 300), 0.1, 55),
        ("fast", (100, 100, 150, 180), 0.1, 55),
        ("fastest", (0, 0, 1000, 750), 2.0, 35),
        ("fastest", (10, 20, 320, 300), 2.0, 35),
    ],
)
def test_modes_are_as_near_to_pillow_as_stated(
    mode: Any, box: tuple[int, int, int, int], largest: float, psnr: float
) -> None:
    data = encoded(photo((1000, 750)), quality=90)
    exact, other = (made(data, Frame(box, (224, 224)), m) for m in ("exact", mode))
    mean, found = difference(exact, other)
    assert mean < largest
    assert found > psnr


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_filters_are_pillow_s(interpolation: Any) -> None:
    data, frame = encoded(photo(), "PNG"), Frame((3, 5, 400, 300), (96, 96))
    exact, fast = (made(data, frame, mode, interpolation) for mode in ("exact", "fast"))
    assert difference(exact, fast)[0] < 0.1
    other = made(data, frame, "exact", "bilinear" if interpolation != "bilinear" else "bicubic")
    assert difference(exact, other)[0] > 0.2, "the filter has an effect"


def test_a_frame_of_the_box_s_own_size_is_copied() -> None:
    data, image = encoded(photo(), "PNG"), np.asarray(photo())
    for mode in MODES:
        assert np.array_equal(made(data, Frame((7, 9, 64, 64), (64, 64)), mode), image[9:73, 7:71])


@pytest.mark.parametrize(
    ("width", "height", "reduction"),
    [(447, 900, 1), (448, 448, 2), (895, 2000, 2), (896, 896, 4), (1792, 1800, 8), (50, 50, 1)],
)
def test_a_box_may_be_reduced_while_it_has_the_network_s_pixels(
    width: int, height: int, reduction: int
) -> None:
    assert reduction_of(width, height, (224, 224)) == reduction


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 1001, 751), (251, 188)),  # the whole image, which may end between
        ((8, 16, 480, 480), (501, 376)),
        ((504, 254, 497, 497), (501, 376)),  # to the edges
        ((9, 16, 480, 480), (1001, 751)),  # not on the grid of 2
        ((8, 16, 479, 480), (1001, 751)),
        ((8, 16, 223, 480), (1001, 751)),
    ],
)
def test_jpegs_are_decoded_at_a_fraction_where_the_frame_stays_where_it_is(
    box: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    data = encoded(photo((1001, 751)), quality=92)
    side = 187 if size == (251, 188) else 224
    frame = Frame(box, (side, side))
    found = framing._jpeg(data, lambda *size: frame, fastest=False)
    assert found is not None
    assert found[0].shape[1::-1] == size
    assert difference(made(data, frame, "exact"), made(data, frame, "fast"))[1] > 35


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (photo().convert("L"), {}),
        (photo(), {"progressive": True}),
        (photo(), {"subsampling": 0}),
        (photo(), {"keep_rgb": True}),
        (photo().convert("CMYK"), {}),
    ],
    ids=["grey", "progressive", "444", "rgb", "cmyk"],
)
def test_jpegs_of_all_kinds(image: Image.Image, options: dict[str, Any]) -> None:
    data, whole = encoded(image, quality=95, **options), Frame((0, 0, 500, 375), (500, 375))
    exact, fast = (made(data, whole, mode) for mode in ("exact", "fast"))
    assert np.abs(exact.astype(int) - fast).max() <= 2
    handled = framing._jpeg(data, lambda *size: whole, fastest=False) is not None
    assert handled == (image.mode != "CMYK"), "which Pillow turns into RGB"


@pytest.mark.parametrize("mode", MODES)
def test_damage_is_what_pillow_calls_it(mode: Any) -> None:
    frame = Frame((0, 0, 500, 375), (224, 224))
    data = encoded(photo())
    for wrong in (data[: len(data) // 2], data[:60], b"\xff\xd8", b"", b"GIF87"):
        with pytest.raises(DataError) as expected:
            decode(wrong, name="x", formats=FORMATS)
        with pytest.raises(DataError) as caught:
            made(wrong, frame, mode)
        assert str(caught.value) == str(expected.value)
    many = data[:-2] + 600 * data[data.rindex(b"\xff\xda") : -2] + data[-2:]
    with pytest.raises(DataError, match="a JPEG of 60"):
        made(many, frame, mode)
    with pytest.raises(DataError, match="that can be opened as PNG"):
        framed(data, lambda *size: frame, 224, mode, "bicubic", "x", ["PNG"])


def test_what_stands_behind_an_image_does_no_harm() -> None:
    data, frame = encoded(photo()), Frame((0, 0, 500, 375), (224, 224))
    assert np.array_equal(made(data + b"\0tail", frame, "fast"), made(data, frame, "fast"))


def test_damaged_jpegs_end_as_pixels_or_as_damage() -> None:
    """Whatever the fast decoder takes, Pillow takes too, and finds the same."""
    draw, outcomes = random.Random(5), {"decoded": 0, "damaged": 0}
    for data in [fuzz_images.mutated(encoded(photo((48, 36))), draw) for _ in range(300)]:
        try:
            fast = made(data, Frame((0, 0, 16, 16), (16, 16)), "fast")
        except DataError:
            outcomes["damaged"] += 1
            with pytest.raises(DataError):
                decode(data, formats=FORMATS)
        else:
            outcomes["decoded"] += 1
            exact = made(data, Frame((0, 0, 16, 16), (16, 16)), "exact")
            assert np.array_equal(fast, exact)
    assert min(outcomes.values()) > 30
