"""What a pretrained encoder's features tell of the test images, without anything being trained.

- k-nearest neighbours as while it is pretrained (:mod:`percmae.engine.knn`), but of test images
  among training images, at most ``LARGEST`` of each, spread over the classes; and the same for the
  encoder as it was before pretraining.
- A picture: the features of some test images in two dimensions, by t-SNE
  (:mod:`percmae.engine.tsne`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from percmae.data.shards import Dataset, Split
from percmae.engine.distributed import World
from percmae.engine.finetune import before_pretraining
from percmae.engine.knn import features, spread_out, vote
from percmae.engine.loaders import whole_loader
from percmae.engine.precision import autocast
from percmae.engine.tsne import tsne
from percmae.models import build_model
from percmae.models.mae import MaskedAutoencoder
from percmae.models.weights import load_strict
from percmae.progress import Progress
from percmae.runs.evaluation import Embedding, Neighbours
from percmae.runs.record import Run

LARGEST = 10_000
"""Images of the bank, and of the queries."""
NEIGHBOURS = 20
DRAWN, DRAWN_CLASSES = 500, 10
"""Points of the picture, and classes they are of: more cannot be told apart by colour."""
_CHUNK = 256
_VOTES = 1000  # queries whose similarities to the bank are held at a time


def representation(
    generator: MaskedAutoencoder, run: Run, dataset: Dataset, world: World
) -> tuple[Neighbours | None, Embedding | None]:
    """The figures and the picture of a pretraining run's encoder; None without training images.

    generator: the trained one, in evaluation mode, on the world's device.
    """
    bank, queries = (_some(dataset.split(name), LARGEST) for name in ("train", "test"))
    if not len(bank) or not len(queries):
        return None, None
    before = build_model(run.config)
    load_strict(before, before_pretraining(run.config, run.config.seed), f"before {run.uri}")
    encoders = [generator, before.to(world.device).eval()]
    banks, asked = (_features(encoders, split, run, dataset, world) for split in (bank, queries))
    labels = torch.from_numpy(bank.labels).to(world.device)
    right = torch.from_numpy(queries.labels).to(world.device)
    top1, untrained = (
        _top1(mine, theirs, labels, right) for mine, theirs in zip(asked, banks, strict=True)
    )
    found = Neighbours(
        top1=top1,
        untrained_top1=untrained,
        bank=len(bank),
        queries=len(queries),
        neighbours=min(NEIGHBOURS, len(bank)),
    )
    return found, _embedding(asked[0].cpu(), queries.labels, dataset)


def _some(split: Split, count: int) -> Split:
    return split.subset(split.name, spread_out(split.labels, count))


@torch.no_grad()
def _features(
    encoders: list[MaskedAutoencoder], split: Split, run: Run, dataset: Dataset, world: World
) -> list[Tensor]:
    """Each encoder's features (n, D) of all images of a split, which are decoded once."""
    # Not shared out over processes: the rows are wanted in their order.
    loader = whole_loader(run.config, dataset, split, _CHUNK, World(0, 1, world.device))
    found: list[list[Tensor]] = [[] for _ in encoders]
    with Progress(f"features, {split.name}", len(split), "image") as bar:
        for _, _, batch in loader.batches():
            for rows, encoder in zip(found, encoders, strict=True):
                with autocast(run.config, world.device):
                    rows.append(features(encoder, batch.images))
            bar.update(len(batch.images))
    return [torch.cat(rows) for rows in found]


def _top1(queries: Tensor, bank: Tensor, labels: Tensor, right: Tensor) -> float:
    found = [vote(some, bank, labels, NEIGHBOURS) for some in queries.split(_VOTES)]
    return float((torch.cat(found) == right).double().mean())


def _embedding(found: Tensor, labels: np.ndarray, dataset: Dataset) -> Embedding:
    """The picture: features (n, D) of images whose classes (n,) are the labels."""
    shown = np.flatnonzero(labels < DRAWN_CLASSES)
    shown = shown[spread_out(labels[shown], DRAWN)]
    places = tsne(found[torch.from_numpy(shown)])
    return Embedding(
        method="t-SNE",
        points=[[round(value, 3) for value in place] for place in places.tolist()],
        labels=labels[shown].tolist(),
        classes=[info.name for info in dataset.classes[:DRAWN_CLASSES]],
    )
