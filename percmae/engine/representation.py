"""What a pretrained encoder's features tell of the test images, without anything being trained.

Of at most ``LARGEST`` test images and as many training images, spread over the classes:

- The effective rank of the test images' features (:mod:`percmae.engine.rankme`), and of the same
  by the encoder as it was before pretraining.
- A picture: some test images, each beside the training images whose features are nearest to its
  own.

And where there are labels:

- k-nearest neighbours as while it is pretrained (:mod:`percmae.engine.knn`), but of test images
  among training images; and the same for the encoder as it was before pretraining.
- A picture: the features of some test images in two dimensions, by t-SNE
  (:mod:`percmae.engine.tsne`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from percmae.data.mixture import AnyDataset
from percmae.data.shards import Split
from percmae.data.stream import Loader
from percmae.engine.distributed import World
from percmae.engine.finetune import before_pretraining
from percmae.engine.knn import pooled, spread_out, vote
from percmae.engine.loaders import whole_loader
from percmae.engine.pictures import denormalise, neighbours_grid
from percmae.engine.precision import autocast
from percmae.engine.rankme import rankme
from percmae.engine.tsne import tsne
from percmae.models import build_model
from percmae.models.mae import MaskedAutoencoder
from percmae.models.weights import load_strict
from percmae.progress import Progress
from percmae.runs.evaluation import EffectiveRank, Embedding, Neighbours
from percmae.runs.record import Run

LARGEST = 10_000
"""Images of the bank, and of the queries."""
NEIGHBOURS = 20
DRAWN, DRAWN_CLASSES = 500, 10
"""Points of the picture, and classes they are of: more cannot be told apart by colour."""
SHOWN, SHOWN_NEIGHBOURS = 10, 5
"""Rows of the gallery, and training images in each."""
_CHUNK = 256
_VOTES = 1000  # queries whose similarities to the bank are held at a time


class Representation(NamedTuple):
    """What there is to tell; None for what the dataset does not allow."""

    rank: EffectiveRank | None = None
    knn: Neighbours | None = None
    embedding: Embedding | None = None
    gallery: Tensor | None = None
    """A picture (3, H, W) in [0, 1], see :func:`percmae.engine.pictures.neighbours_grid`."""


def representation(
    generator: MaskedAutoencoder, run: Run, dataset: AnyDataset, world: World
) -> Representation:
    """The figures and pictures of a pretraining run's encoder; nothing without training images.

    generator: the trained one, in evaluation mode, on the world's device.
    """
    bank, queries = (_some(dataset.split(name), LARGEST) for name in ("train", "test"))
    if not len(bank) or not len(queries):
        return Representation()
    before = build_model(run.config)
    load_strict(before, before_pretraining(run.config, run.config.seed), f"before {run.uri}")
    encoders = [generator, before.to(world.device).eval()]
    banks, asked = (_features(encoders, split, run, world) for split in (bank, queries))
    value, untrained = (rankme(rows) for rows in asked)
    images, dimensions = asked[0].shape
    rank = EffectiveRank(value=value, untrained=untrained, images=images, dimensions=dimensions)
    banks, asked = ([F.normalize(rows, dim=1) for rows in found] for found in (banks, asked))
    gallery = _gallery(bank, queries, banks[0], asked[0], run, world)
    known, right = (np.flatnonzero(split.labels >= 0) for split in (bank, queries))
    if not len(known) or not len(right):
        return Representation(rank, gallery=gallery)
    banks = [rows[torch.from_numpy(known)] for rows in banks]
    asked = [rows[torch.from_numpy(right)] for rows in asked]
    labels = torch.from_numpy(bank.labels[known]).to(world.device)
    answers = torch.from_numpy(queries.labels[right]).to(world.device)
    top1, untrained_top1 = (
        _top1(mine, theirs, labels, answers) for mine, theirs in zip(asked, banks, strict=True)
    )
    knn = Neighbours(
        top1=top1,
        untrained_top1=untrained_top1,
        bank=len(known),
        queries=len(right),
        neighbours=min(NEIGHBOURS, len(known)),
    )
    embedding = _embedding(asked[0].cpu(), queries.labels[right], dataset)
    return Representation(rank, knn, embedding, gallery)


def _some(split: Split, count: int) -> Split:
    return split.subset(split.name, spread_out(split.labels, count))


@torch.no_grad()
def _features(
    encoders: list[MaskedAutoencoder], split: Split, run: Run, world: World
) -> list[Tensor]:
    """Each encoder's features (n, D), not scaled, of all images of a split, decoded once."""
    loader = _loader(split, run, world)
    found: list[list[Tensor]] = [[] for _ in encoders]
    with Progress(f"features, {split.name}", len(split), "image") as bar:
        for _, _, batch in loader.batches():
            for rows, encoder in zip(found, encoders, strict=True):
                with autocast(run.config, world.device):
                    rows.append(pooled(encoder, batch.images))
            bar.update(len(batch.images))
    return [torch.cat(rows) for rows in found]


def _loader(split: Split, run: Run, world: World) -> Loader:
    """A split in its own order: not shared out over processes, the rows are wanted in theirs."""
    return whole_loader(run.config, split, _CHUNK, World(0, 1, world.device))


def _gallery(
    bank: Split,
    queries: Split,
    banks: Tensor,
    asked: Tensor,
    run: Run,
    world: World,
) -> Tensor:
    """Some queries, each with its nearest images of the bank by the cosine of their features."""
    shown = spread_out(queries.labels, SHOWN)
    rows = asked[torch.from_numpy(shown)]
    nearest = (rows @ banks.T).topk(min(SHOWN_NEIGHBOURS, len(banks)), dim=1).indices.cpu()
    ids, places = np.unique(nearest.numpy(), return_inverse=True)
    augment = run.config.data.augment
    seen = denormalise(_images(queries.subset("test", shown), run, world), augment)
    near = denormalise(_images(bank.subset("train", ids), run, world), augment)
    return neighbours_grid(seen, near[torch.from_numpy(places.reshape(nearest.shape))])


def _images(split: Split, run: Run, world: World) -> Tensor:
    """All images (n, 3, H, W) of a small split, normalised."""
    found = (batch.images for _, _, batch in _loader(split, run, world).batches())
    return torch.cat(list(found)).cpu()


def _top1(queries: Tensor, bank: Tensor, labels: Tensor, right: Tensor) -> float:
    found = [vote(some, bank, labels, NEIGHBOURS) for some in queries.split(_VOTES)]
    return float((torch.cat(found) == right).double().mean())


def _embedding(found: Tensor, labels: np.ndarray, dataset: AnyDataset) -> Embedding:
    """The picture: features (n, D) of images whose classes (n,) are the labels, all known."""
    shown = np.flatnonzero(labels < DRAWN_CLASSES)
    shown = shown[spread_out(labels[shown], DRAWN)]
    places = tsne(found[torch.from_numpy(shown)])
    return Embedding(
        method="t-SNE",
        points=[[round(value, 3) for value in place] for place in places.tolist()],
        labels=labels[shown].tolist(),
        classes=[info.name for info in dataset.classes[:DRAWN_CLASSES]],
    )
