"""Damages small images of every format in many ways, and sees what becomes of them.

    python fuzz_images.py SEED MUTATIONS_OF_EACH_FORMAT

Prints JSON: for each format how many were decoded and how many were damaged; the largest resident
memory in MiB. Anything but an image or a DataError ends it with a traceback.
"""

from __future__ import annotations

import io
import json
import random
import resource
import sys
from typing import get_args

import numpy as np
from PIL import Image

from percmae.config.schema import ImageFormat
from percmae.data.decode import decode, telling
from percmae.errors import DataError

FORMATS: tuple[str, ...] = get_args(ImageFormat)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def sound_files() -> dict[str, list[bytes]]:
    """A few small files of each format, of as many kinds as there are decoders inside it."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    rgb = Image.fromarray(coarse).resize((24, 18), Image.Resampling.BICUBIC)
    deep = Image.fromarray(np.arange(18 * 24, dtype=np.uint16).reshape(18, 24) * 151)
    grey, clear, few, line = (rgb.convert(m) for m in ("L", "RGBA", "P", "1"))
    more = {"save_all": True, "append_images": [rgb.rotate(90)]}
    exif = Image.Exif()
    exif[0x0112], exif[271] = 6, "a maker"
    files = {format: [encoded(rgb, format)] for format in FORMATS}
    files["JPEG"] += [
        encoded(rgb, "JPEG", progressive=True, exif=exif, dpi=(72, 72)),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(grey, "JPEG"),
        encoded(rgb, "MPO", **more),
    ]
    files["PNG"] += [encoded(im, "PNG") for im in (clear, deep, line, grey)]
    files["PNG"] += [encoded(few, "PNG", transparency=1), encoded(rgb, "PNG", **more)]
    files["WEBP"] += [encoded(rgb, "WEBP", lossless=True), encoded(rgb, "WEBP", **more)]
    files["GIF"] += [encoded(few, "GIF", transparency=1), encoded(rgb, "GIF", **more)]
    files["BMP"] += [encoded(few, "BMP"), encoded(line, "BMP")]
    packings = ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")
    files["TIFF"] += [encoded(rgb, "TIFF", compression=name) for name in packings]
    files["TIFF"] += [encoded(line, "TIFF", compression="group4"), encoded(deep, "TIFF")]
    return files


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The file with a damage: bits, a cut, zeros, an extreme number in the header, a shift."""
    changed, at = bytearray(data), draw.randrange(len(data))
    match draw.randrange(6):
        case 0:
            for _ in range(draw.randint(1, 8)):
                changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case 1:
            del changed[at:]
        case 2:
            changed[at:] = bytes(len(data) - at)
        case 3:
            at, size = draw.randrange(min(len(data), 80)), draw.choice((1, 2, 4))
            changed[at : at + size] = draw.choice((b"\xff", b"\x7f", b"\x80", b"\0")) * size
        case 4:
            changed[at:at] = changed[max(0, at - draw.randint(1, 40)) : at]
        case _:
            del changed[at : at + draw.randint(1, 20)]
    return bytes(changed)


def outcome(data: bytes) -> str:
    """What becomes of a file."""
    try:
        decode(data, 1, "x.JPEG", FORMATS)
        image = decode(data, name="x.JPEG", formats=FORMATS)
    except DataError as error:
        text = str(error)
    else:
        assert image.mode == "RGB"
        assert min(image.size) > 0
        return "decoded"
    assert text.startswith("x.JPEG is ")
    assert "\n" not in text
    return "damaged"


def main(seed: int, count: int) -> None:
    draw, found = random.Random(seed), {}
    with telling(lambda warning: None):
        for format, files in sound_files().items():
            outcomes = {"decoded": 0, "damaged": 0}
            for _ in range(count):
                data = mutated(draw.choice(files), draw)
                outcomes[outcome(data)] += 1
            found[format] = outcomes
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"outcomes": found, "memory_mib": memory}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
