"""Features of a frozen encoder, computed once for all epochs of a probe.

Where an image looks the same in each epoch, so do its features: one pass over the images then
stands for all of them. The order of the images, the steps and what is drawn in them are those of
training on the images; figures differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from percmae.config import Config
from percmae.data.augment import is_fixed
from percmae.data.batch import Batch
from percmae.data.stream import Loader
from percmae.engine.distributed import World
from percmae.engine.precision import autocast
from percmae.models.classifier import Classifier
from percmae.progress import Progress, note

CHUNK = 256
"""Images of one forward pass."""
HELD_BYTES = 1 << 30
"""Features of all training images are held in each process where they are no larger."""


class FeatureSource:
    """Batches as a loader gives them, with features (B, D) in the place of the images."""

    def __init__(self, loader: Loader, features: Tensor) -> None:
        """features: (n, D) on the device, a row for each sample of the loader's split."""
        self._loader, self._features = loader, features
        self._labels = torch.from_numpy(loader.split.labels).to(features.device)

    def batches(
        self, start_epoch: int = 0, start_batch: int = 0, epochs: int | None = 1
    ) -> Generator[tuple[int, int, Batch], None, None]:
        """As :meth:`percmae.data.stream.Loader.batches`, without reading anything."""
        for place, ids in self._loader.planned(start_epoch, start_batch, epochs):
            if len(ids):
                rows = torch.from_numpy(ids.astype("int64")).to(self._features.device)
                yield *place, Batch(self._features[rows], self._labels[rows], rows)


def frozen_features(
    model: Classifier, config: Config, loader: Loader, world: World
) -> FeatureSource | None:
    """The loader's batches as features of the probe's encoder; None where they cannot be held.

    That is where the images of the loader are drawn anew in each epoch, and where their features
    take more than HELD_BYTES. Raises what the loader raises.
    """
    if loader.shuffle and not is_fixed(config.data.augment, config.stage):
        return None
    size = len(loader.split) * model.head.linear.in_features * torch.float32.itemsize
    if size > HELD_BYTES:
        if world.main:
            note(
                f"features of {len(loader.split):,} images are computed anew in each epoch: "
                f"{size / 2**30:.1f} GiB are too much to hold"
            )
        return None
    return FeatureSource(loader, _all_features(model, config, loader, world))


@torch.no_grad()
def _all_features(model: Classifier, config: Config, loader: Loader, world: World) -> Tensor:
    """Features (n, D) of all images of the loader's split, float32 on the device."""
    rows = torch.zeros(len(loader.split), model.head.linear.in_features, device=world.device)
    name = f"features, {loader.split.name}"
    with Progress(name, len(rows), "image", show=world.main) as bar:
        for _, _, batch in loader.in_order(CHUNK).batches():
            with autocast(config, world.device):
                features = model.encoder(batch.images)
            rows[batch.ids] = features.float()
            bar.update(min(len(rows) - bar.done, len(features) * world.size))
    # Each process has filled its rows and left the others zero: the sum is all of them.
    return world.sum(rows)
