"""Loaders of a run's images: for training, and for judging a whole split."""

from __future__ import annotations

import numpy as np

from percmae.config import Config
from percmae.data.augment import build_transform
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
from percmae.engine.distributed import World
from percmae.errors import DataError


def train_loader(config: Config, dataset: Dataset, world: World) -> Loader:
    """Batches of the training images whose labels are used, in the order of (seed, epoch)."""
    dataset.require_formats(config.data.formats)
    return Loader(
        dataset.labelled(config.data.label_fraction),
        build_transform(config.data.augment, config.data.image_size, True, config.stage),
        batch_size=config.data.batch_size,
        seed=config.seed,
        shuffle=True,
        drop_last=True,
        rank=world.rank,
        world=world.size,
        workers=config.data.workers,
        pin_memory=config.data.pin_memory and world.device.type == "cuda",
        timeout=config.data.timeout,
        formats=config.data.formats,
    )


def in_order(loader: Loader, batch_size: int) -> Loader:
    """All images of a loader's split in its own order, under the loader's transform."""
    return Loader(
        loader.split,
        loader.transform,
        batch_size=batch_size,
        seed=loader.seed,
        shuffle=False,
        drop_last=False,
        rank=loader.rank,
        world=loader.world,
        workers=loader.workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        formats=loader.formats,
    )


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
    return Loader(
        chosen,
        build_transform(config.data.augment, config.data.image_size, False, config.stage),
        batch_size=config.data.batch_size,
        seed=0,
        shuffle=False,
        drop_last=False,
        rank=world.rank,
        world=world.size,
        workers=0,
        formats=config.data.formats,
    )
