"""Loaders of a run's images: for training, and for judging a whole split."""

from __future__ import annotations

import numpy as np

from percmae.config import Config
from percmae.data.augment import build_transform
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
    return Loader(
        train_images(config, dataset),
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
