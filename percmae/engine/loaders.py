"""Loaders of a run's images: for training, and for judging a whole split."""

from __future__ import annotations

import numpy as np

from percmae.config import Config
from percmae.data.augment import Drawn, Framed, build_transform
from percmae.data.cache import Cache
from percmae.data.mixture import AnyDataset, require_labels
from percmae.data.shards import Dataset, Split
from percmae.data.stream import Loader
from percmae.engine.distributed import World
from percmae.errors import DataError, UserError


def train_images(config: Config, dataset: AnyDataset) -> Split:
    """What a stage trains on: all training images, or those whose labels it uses.

    Raises UserError for a probe or fine-tuning without labels.
    """
    if config.stage == "pretrain":
        return dataset.split("train")
    assert isinstance(dataset, Dataset), "a stage that uses labels takes one dataset"
    return _with_labels(dataset.labelled(config.data.label_fraction), dataset, config.stage)


def _with_labels(split: Split, dataset: AnyDataset, what: str) -> Split:
    require_labels(dataset, what)
    if not len(split):
        raise UserError(
            f"{what} needs labels, and no {split.name} image of {dataset.uri} has one: give --data "
            "of a labelled dataset"
        )
    return split


def train_loader(config: Config, dataset: AnyDataset, world: World) -> Loader:
    """Batches of :func:`train_images`, in the order of (seed, epoch)."""
    dataset.require_formats(config.data.formats)
    transform = build_transform(config.data, True, config.stage)
    return _loader(config, train_images(config, dataset), transform, world)


def eval_loader(config: Config, dataset: AnyDataset, split: str, world: World) -> Loader:
    """Batches of a whole split in its own order, shared over the processes.

    For a probe or fine-tuning, of its labelled images. Raises DataError for a split without an
    image, UserError for a classifier's without a label.
    """
    dataset.require_formats(config.data.formats)
    chosen = dataset.split(split)
    if not len(chosen):
        raise DataError(f"dataset {dataset.uri}: no image for split {split}; ingest more images")
    if config.stage != "pretrain":
        chosen = _with_labels(chosen.labelled(), dataset, config.stage)
    limit = config.trainer.val_samples
    if split == "val" and limit is not None and limit < len(chosen):
        # Of several datasets, some of each.
        apart = 1 if isinstance(dataset, Dataset) else len(chosen) / limit
        chosen = chosen.subset("val", (np.arange(limit) * apart).astype(np.int64))
    return whole_loader(config, chosen, config.data.batch_size, world)


def whole_loader(config: Config, split: Split, batch_size: int, world: World) -> Loader:
    """Batches of a whole split in its own order, as they are judged, shared over the processes."""
    transform = build_transform(config.data, False, config.stage)
    return _loader(config, split, transform, world, whole=True).in_order(batch_size)


def _cache(config: Config, split: Split) -> Cache | None:
    """The cache that is asked for; none where all shards are files of this machine."""
    if config.data.cache is None or not any(shard.is_s3 for shard in split.shards):
        return None
    return Cache(config.data.cache, config.data.cache_bytes)


def _loader(
    config: Config, split: Split, transform: Framed | Drawn, world: World, whole: bool = False
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
        cache=_cache(config, split),
    )
