"""Who is measured by ``percmae bench loader``: ours, and loaders of others, on the same images.

All give batches of 224 pixels, cropped at random and mirrored; others decode with Pillow and make
float32 of it in torchvision's transforms, as their examples do. Each reads the store that the
environment names, but for ``imagefolder``, which reads the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from percmae.config import load_config
from percmae.config.schema import Data
from percmae.data.augment import framed_transform
from percmae.data.shards import Dataset, Split
from percmae.data.stream import Loader
from percmae.storage import StorePath
from percmae.vision import torchvision

BATCH, SIDE = 64, 224


@dataclass(frozen=True)
class Sources:
    """Where the same images lie, each in the form of who reads it."""

    manifest: str
    files: str
    mds: str


Epoch = Callable[[], Iterator[int]]
"""Goes through the images once, and gives the size of each batch."""


@dataclass(frozen=True)
class Contender:
    """package: that must be installed, and the form of its own that the images must have."""

    name: str
    build: Callable[[Sources, int, Path], Epoch]
    """From the sources, a number of workers and a folder for what it keeps, to its epochs."""
    package: str | None = None

    @property
    def installed(self) -> bool:
        return self.package is None or find_spec(self.package) is not None


def _settings(mode: Any) -> Data:
    return replace(load_config().data, decode=mode, image_size=SIDE)


def _split(sources: Sources) -> Split:
    return Dataset.open(sources.manifest).split("train")


def _ours(mode: str, finished: bool) -> Callable[[Sources, int, Path], Epoch]:
    """finished: made float32 and normalised here; else bytes, of which a GPU makes that itself."""

    def build(sources: Sources, workers: int, scratch: Path) -> Epoch:
        loader = Loader(
            _split(sources),
            framed_transform(_settings(mode), True, "pretrain"),
            batch_size=BATCH,
            seed=0,
            shuffle=True,
            drop_last=False,
            workers=workers,
        )
        number = iter(range(1 << 30))

        def epoch() -> Iterator[int]:
            source = loader.batches if finished else loader.loaded
            for _, _, batch in source(next(number), 0, 1):
                yield len(batch.ids)

        return epoch

    return build


def _in_memory(mode: str, resize: bool) -> Callable[[Sources, int, Path], Epoch]:
    """What the same library needs for the images alone: a roof for the loader."""

    def build(sources: Sources, workers: int, scratch: Path) -> Epoch:
        import simplejpeg

        split = _split(sources)
        blobs = [
            split.shards[shard].read_bytes(offset, size)
            for shard, offset, size in zip(
                *(c.tolist() for c in split.locate(np.arange(len(split)))), strict=True
            )
        ]
        transform = framed_transform(_settings(mode), True, "pretrain")
        numbers = np.random.default_rng(0).random((len(blobs), transform.numbers)).tolist()
        coarse = mode == "fastest"

        def epoch() -> Iterator[int]:
            for blob, drawn in zip(blobs, numbers, strict=True):
                if resize:
                    transform.pixels(blob, drawn)
                else:
                    simplejpeg.decode_jpeg(blob, fastdct=coarse, fastupsample=coarse)
                yield 1

        return epoch

    return build


def _transform() -> Any:
    own = _settings("exact").augment
    steps = torchvision.transforms
    bicubic = steps.InterpolationMode.BICUBIC
    return steps.Compose(
        [
            steps.RandomResizedCrop(SIDE, scale=tuple(own.crop_scale), interpolation=bicubic),
            steps.RandomHorizontalFlip(),
            steps.ToTensor(),
            steps.Normalize(*own.normalisation),
        ]
    )


def _batches(dataset: Any, workers: int, **options: Any) -> Epoch:
    """torch's DataLoader over a dataset whose items begin with the image, or are batches."""
    loader = torch.utils.data.DataLoader(
        dataset, num_workers=workers, persistent_workers=workers > 0, **options
    )

    def epoch() -> Iterator[int]:
        for batch in loader:
            yield len(batch[0])

    return epoch


def _webdataset(sources: Sources, workers: int, scratch: Path) -> Epoch:
    webdataset = import_module("webdataset")
    # (The package's attribute of that name is a function.)
    schemes = import_module("webdataset.gopen").gopen_schemes
    schemes["s3"] = lambda url, mode, bufsize: StorePath(url).open()
    dataset = (
        webdataset.WebDataset(
            [shard.uri for shard in _split(sources).shards], shardshuffle=100, empty_check=False
        )
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(_transform())
        .batched(BATCH)
    )
    return _batches(dataset, workers, batch_size=None)


def _imagefolder(sources: Sources, workers: int, scratch: Path) -> Epoch:
    dataset = torchvision.datasets.ImageFolder(sources.files, _transform())
    return _batches(dataset, workers, batch_size=BATCH, shuffle=True)


def _mosaic(sources: Sources, workers: int, scratch: Path) -> Epoch:
    streaming, transform = import_module("streaming"), _transform()
    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]

    class Images(streaming.StreamingDataset):  # type: ignore[name-defined]
        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            return transform(item["image"].convert("RGB")), item["label"]

    dataset = Images(remote=sources.mds, local=str(scratch), shuffle=True, batch_size=BATCH)
    return _batches(dataset, workers, batch_size=BATCH)


CONTENDERS = [
    *(
        Contender(f"percmae {mode}{' finished' if finished else ''}", _ours(mode, finished))
        for mode in ("fast", "fastest", "exact")
        for finished in (False, True)
    ),
    Contender("webdataset", _webdataset, "webdataset"),
    Contender("mosaicml-streaming", _mosaic, "streaming"),
    Contender("imagefolder", _imagefolder),
    *(
        Contender(f"{what} {mode}", _in_memory(mode, resize))
        for mode in ("fast", "fastest")
        for what, resize in (("decode", False), ("decode and resize", True))
    ),
]
"""By name; the last are no loaders but what our modes need for the images alone."""
BESIDE = "webdataset"
"""What the others are compared with."""


def write_mds(files: Path, folder: Path) -> None:
    """The images of a folder in the form of mosaicml-streaming."""
    writer = import_module("streaming").MDSWriter
    columns = {"image": "jpeg", "label": "int"}
    from PIL import Image

    with writer(out=str(folder), columns=columns, size_limit=8 << 20) as out:
        for path, label in _listed(files):
            out.write({"image": Image.open(path), "label": label})


def _listed(files: Path) -> list[tuple[Path, int]]:
    classes = sorted(path for path in files.iterdir() if path.is_dir())
    return [(path, label) for label, own in enumerate(classes) for path in sorted(own.iterdir())]
