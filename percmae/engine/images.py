"""Images of a person's own, ready for a network: found, read and decoded a little ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from percmae.config.schema import Data
from percmae.data.augment import Framed, framed_transform
from percmae.data.decode import Once, check_formats, telling, to_rgb
from percmae.data.tars import is_side_file
from percmae.errors import DataError
from percmae.ingest.cores import usable_cores
from percmae.ingest.sources.files import endings_of
from percmae.progress import Progress, warn
from percmae.storage import StorePath

Address = str | os.PathLike[str]
Item = tuple[str, Any]
"""The name of an image, and the image (PIL) or its address."""
CHUNK = 64
"""Images of one forward pass."""
_AHEAD = 2  # chunks that are read and decoded before they are asked for
_NAMED = 10  # damaged images that are named


class Chunk(NamedTuple):
    """Names of n images and what a network takes of them, float32 (n, 3, side, side)."""

    keys: list[str]
    images: Tensor


def items_of(images: Any, formats: Sequence[str]) -> list[Item]:
    """The images of a folder or prefix at any depth, by name; of a file; or of a list of files and
    of PIL images. Raises DataError where there is none."""
    if isinstance(images, str | os.PathLike):
        return _listed(StorePath(images), formats)
    given = [images] if isinstance(images, Image.Image) else list(images)
    if not given:
        raise DataError("no image is given")
    return [
        (str(number) if isinstance(item, Image.Image) else os.fspath(item), item)
        for number, item in enumerate(given)
    ]


def chunks(
    items: Sequence[Item],
    data: Data,
    device: torch.device,
    desc: str,
    leave_out: bool = False,
) -> Iterator[Chunk]:
    """Images under the evaluation transform of ``data``, on the device, CHUNK at a time.

    leave_out: damaged ones are left out, the first named and all counted in the end. Raises
    DataError for an image that is absent, and for a damaged one unless it is left out, or all are.
    """
    transform = framed_transform(data, False, "pretrain")
    formats = check_formats(data.formats)
    damaged = 0
    with telling(Once(warn)), Progress(desc, len(items), "image") as bar:
        for keys, found in _read_ahead(items, transform, formats):
            whole = []
            for key, pixels in zip(keys, found, strict=True):
                if not isinstance(pixels, DataError):
                    whole.append((key, pixels))
                    continue
                if not leave_out:
                    raise pixels
                damaged += 1
                if damaged <= _NAMED:
                    warn(f"left out: {pixels}")
            if whole:
                stacked = torch.stack([pixels for _, pixels in whole]).to(device)
                unturned = torch.zeros(len(whole), dtype=torch.bool, device=device)
                yield Chunk([key for key, _ in whole], transform.finish(stacked, unturned))
            bar.update(len(keys))
    if damaged == len(items):
        raise DataError(f"none of {damaged:,} image(s) can be read")
    if damaged:
        warn(f"left out {damaged:,} damaged image(s) of {len(items):,}")


def _listed(place: StorePath, formats: Sequence[str]) -> list[Item]:
    """The images below a folder or prefix by their names; a file itself."""
    endings = tuple(sorted(e.decode() for e in endings_of(formats)))
    found = [
        (entry.name, entry.path)
        for entry in place.iter()
        if entry.name.lower().endswith(endings) and not is_side_file(entry.name)
    ]
    if found:
        return found
    if not place.exists():
        raise DataError(
            f"{place}: there is no image there; give a folder or prefix with files that end in "
            f"{', '.join(endings)}, or an image"
        )
    return [(place.name, place)]


def _read_ahead(
    items: Sequence[Item], transform: Framed, formats: tuple[str, ...]
) -> Iterator[tuple[list[str], list[Tensor | DataError]]]:
    """Names and pixels (H, W, 3), uint8, or what is wrong, of a chunk of images; read and decoded
    by threads, a little ahead."""

    def load(item: Item) -> Tensor | DataError:
        key, image = item
        if isinstance(image, Image.Image):
            try:
                return _tensor(transform.pixels_of(to_rgb(image)))
            except (ValueError, OSError) as error:
                return DataError(f"image {key}: {error}")
        path = StorePath(image)
        if not path.exists():
            raise DataError(f"image {path}: there is no such file")
        data = path.read_bytes()
        try:
            return _tensor(transform.pixels(data, name=f"image {path}", formats=formats))
        except DataError as error:
            return error

    waiting: deque[tuple[list[str], list[Future[Tensor | DataError]]]] = deque()

    def first() -> tuple[list[str], list[Tensor | DataError]]:
        keys, futures = waiting.popleft()
        return keys, [future.result() for future in futures]

    pool = ThreadPoolExecutor(usable_cores())
    try:
        for start in range(0, len(items), CHUNK):
            part = items[start : start + CHUNK]
            waiting.append(([key for key, _ in part], [pool.submit(load, item) for item in part]))
            if len(waiting) > _AHEAD:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy())
