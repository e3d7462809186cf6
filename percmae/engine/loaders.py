"""Loaders of a run's images: for training, and for judging a whole split."""

from __future__ import annotations

import numpy as np

from percmae.config import Config
from percmae.data.augment import Drawn, Framed, build_transform
from percmae.data.cache import Cache
from percmae.data.shards import Dataset, Split
from percmae.data.stream import Loader
from percmae.engine.distributed import World
from percmae.errors import DataError
from percmae.storage import StorePath


def train_loader(config: Config, dataset: Dataset, world: World) -> Loader:
    """Batches of the training images whose labels are used, in the order of (seed, epoch)."""
    dataset.require_formats(config.data.formats)
    split = dataset.labelled(config.data.label_fraction)
    transform = build_transform(config.data, True, config.stage)
    return _loader(config, split, transform, world, _cache(config, dataset))


def eval_loader(config: Config, dataset: Dataset, split: str, world: World) -> Loader:
    """Batches of a whole split in its own order, shared over the processes.

    Raises DataError for a split without an image.
    """
    dataset.require_formats(config.data.formats)
    chosen = dataset.split(split)
    if not len(chosen):
        raise DataError(f"dataset {dataset.uri}: no image for split {split}; ingest more images")
    limit = config.trainer.val_samples
    if split == "val" and limit is not None and limit < len(chosen):
        chosen = chosen.subset("val", np.arange(limit))
    return whole_loader(config, dataset, chosen, config.data.batch_size, world)


def whole_loader(
    config: Config, dataset: Dataset, split: Split, batch_size: int, world: World
) -> Loader:
    """Batches of a whole split of a dataset, in its own order, shared over the processes."""
    transform = build_transform(config.data, False, config.stage)
    cache = _cache(config, dataset)
    return _loader(config, split, transform, world, cache, whole=True).in_order(batch_size)


def _cache(config: Config, dataset: Dataset) -> Cache | None:
    """The cache that is asked for; none for a dataset that is a folder of this machine."""
    if config.data.cache is None or not StorePath(dataset.uri).is_s3:
        return None
    return Cache(config.data.cache, config.data.cache_bytes, dataset.digest)


def _loader(
    config: Config,
    split: Split,
    transform: Framed | Drawn,
    world: World,
    cache: Cache | None,
    whole: bool = False,
) -> Loader:
    data = config.data
    return Loader(
        split,
        transform,
        batch_size=data.batch_size,
        seed=config.seed,
        shuffle=not whole,
        drop_last=not whole,
        rank=world.rank,
        world=world.size,
        workers=data.workers,
        pin_memory=data.pin_memory and world.device.type == "cuda",
        timeout=data.timeout,
        formats=data.formats,
        device=world.device,
        cache=cache,
    )
