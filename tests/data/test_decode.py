"""Every kind of file that ImageNet and folders of images hold becomes RGB, or one clear line."""

from __future__ import annotations

import io
import itertools

import archive_building as ab
import numpy as np
import pytest
from PIL import Image

from percmae.data import decode as decode_module
from percmae.data.decode import decode
from percmae.errors import DataError


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    """64×48: red grows to the right, green downwards, blue stays at 90."""
    pixels = np.full((48, 64, 3), 90, np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels[..., 1] = np.linspace(0, 255, 48, dtype=np.uint8)[:, None]
    return Image.fromarray(pixels).convert(mode)


def assert_close(image: Image.Image, expected: Image.Image, tolerance: float) -> None:
    assert image.mode == "RGB"
    assert image.size == expected.size
    difference = np.asarray(image).astype(int) - np.asarray(expected.convert("RGB"))
    assert np.abs(difference).mean() < tolerance


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encoded(gradient(), "JPEG", quality=95), 2),
        (encoded(gradient(), "JPEG", quality=95, progressive=True), 2),
        (encoded(gradient("CMYK"), "JPEG", quality=95), 4),
        (encoded(gradient(), "PNG"), 0.01),
        (encoded(gradient("RGBA"), "PNG"), 0.01),
        (encoded(gradient().quantize(256), "PNG"), 6),
        (encoded(gradient(), "WEBP", lossless=True), 0.01),
        (encoded(gradient(), "BMP"), 0.01),
    ],
    ids=["jpeg", "progressive", "cmyk", "png", "rgba", "palette", "webp", "bmp"],
)
def test_formats_and_modes(data: bytes, tolerance: float) -> None:
    assert_close(decode(data), gradient(), tolerance)


def test_grey_images() -> None:
    for data in (encoded(gradient("L"), "JPEG", quality=95), encoded(gradient("L"), "PNG")):
        assert_close(decode(data), gradient("L"), 2)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    deep = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    image = decode(encoded(Image.fromarray(deep), "PNG"))
    assert_close(image, Image.fromarray((deep >> 8).astype(np.uint8)), 0.01)


def test_transparency_is_laid_over_white() -> None:
    image = gradient("RGBA")
    image.putalpha(Image.fromarray(np.repeat([[0, 255]], 48, 0).repeat(32, 1).astype(np.uint8)))
    quantised = image.quantize(256, Image.Quantize.FASTOCTREE)
    for kind, tolerance in ((image, 0.01), (quantised, 12), (image.convert("LA"), 90)):
        pixels = np.asarray(decode(encoded(kind, "PNG"))).astype(int)
        assert (pixels[:, :32] == 255).all()
        assert np.abs(pixels[:, 32:] - np.asarray(gradient())[:, 32:]).mean() < tolerance
    grey = Image.fromarray(np.full((4, 4), 7, np.uint8))
    assert (np.asarray(decode(encoded(grey, "PNG", transparency=7))) == 255).all()


def test_exif_rotation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90°
    assert decode(encoded(gradient(), "JPEG", exif=exif)).size == (64, 48)


@pytest.mark.parametrize(
    ("min_side", "size"),
    [(None, (640, 480)), (480, (640, 480)), (241, (640, 480)), (240, (320, 240)), (1, (80, 60))],
)
def test_a_jpeg_is_decoded_smaller_while_both_sides_keep_enough(
    min_side: int | None, size: tuple[int, int]
) -> None:
    large = gradient().resize((640, 480))
    image = decode(encoded(large, "JPEG", quality=95), min_side)
    assert image.size == size
    assert_close(image, large.resize(size, Image.Resampling.BOX), 3)
    assert decode(encoded(large, "PNG"), min_side).size == (640, 480)


@pytest.mark.parametrize("size", [(500, 375), (501, 377), (129, 1030), (64, 63)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_decoded_smaller_has_pillow_s_pixels(
    mode: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
    quick = decode_module._quick
    monkeypatch.setattr(decode_module, "_quick", lambda *args: None)
    for subsampling, progressive in itertools.product((0, 1, 2), (False, True)):
        options = {"subsampling": subsampling, "progressive": progressive}
        data = encoded(image, "JPEG", quality=80, **options)
        for min_side in (1, 64, 100, 256):
            found = quick(data, min_side)
            assert found is not None
            expected = decode(data, min_side)
            assert (found.mode, found.size) == (expected.mode, expected.size)
            assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_truncated_files_are_found(format: str, share: float) -> None:
    data = ab.picture(3, format, size=(500, 375))
    for min_side in (None, 1, 64):
        decode(data, min_side)
        with pytest.raises(DataError, match=r"^image is "):
            decode(data[: int(len(data) * share)], min_side)


def test_a_progressive_jpeg_cut_anywhere_is_found() -> None:
    data = encoded(gradient().resize((320, 240)), "JPEG", progressive=True)
    for end in (*range(2, len(data) - 2, 97), len(data) - 2):
        with pytest.raises(DataError):
            decode(data[:end], 1)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<html>", b"\xff\xd8\xff", bytes(1000)])
def test_what_is_no_image_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^cat\.JPEG is (not an image|damaged)") as caught:
        decode(data, name="cat.JPEG")
    assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="damaged: Image size"):
        decode(encoded(gradient(), "PNG"))
