"""Photographs for the loader benchmark, as shards in a store and as plain files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from percmae.errors import UserError
from percmae.ingest import ingest

SIZES = {"500x375": (500, 375), "short side 256": (341, 256)}
"""As ImageNet's photographs are in the middle, and as they are often re-encoded."""
_QUALITY = 92
_DIFFERENT = 60  # crops; photographs beyond are copies of these
_CLASSES = 4
_SHIPPED = ("astronaut", "chelsea", "coffee", "rocket")


def photographs(folder: str | None) -> list[Image.Image]:
    """Those of a folder (JPEG), or the few that scikit-image ships.

    Raises UserError for a folder without any, and where there is neither.
    """
    if folder is not None:
        files = sorted(path for path in Path(folder).rglob("*") if _is_jpeg(path))[:_DIFFERENT]
        if not files:
            raise UserError(f"--photos {folder}: no file there ends in .jpg, .jpeg or .JPEG")
        return [Image.open(file).convert("RGB") for file in files]
    try:
        shipped = import_module("skimage.data")
    except ImportError:
        raise UserError(
            "no photographs: give a folder with --photos, or install scikit-image"
        ) from None
    return [Image.fromarray(getattr(shipped, name)()) for name in _SHIPPED]


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg") and path.is_file()


def crops(images: list[Image.Image], size: tuple[int, int]) -> Iterator[bytes]:
    """JPEGs of that size (width, height): large parts of the photographs, at fixed places."""
    draw = np.random.default_rng(0)
    ratio = size[0] / size[1]
    for number in range(_DIFFERENT):
        image = images[number % len(images)]
        width = min(image.width, image.height * ratio) * draw.uniform(0.75, 1.0)
        height = width / ratio
        left, top = draw.uniform(0, image.width - width), draw.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS, box).save(buffer, "JPEG", quality=_QUALITY)
        yield buffer.getvalue()


def prepare(
    images: list[Image.Image], size: tuple[int, int], count: int, here: Path, to: str
) -> tuple[Path, str]:
    """A folder of ``count`` JPEGs, a folder a class, and the manifest of their shards in ``to``."""
    folder = here / "files"
    different = list(crops(images, size))
    for number in range(count):
        file = folder / f"class {number % _CLASSES}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(different[number % len(different)])
    return folder, ingest(images=str(folder), to=to, shard_size=8 << 20).manifest_uri
