"""k-nearest-neighbour accuracy of the encoder: the live sign that a representation improves.

Nothing is trained for it: labelled training images near a validation image in feature space vote
on its class.

- Bank: at most ``tracking.knn_samples`` images of the training split, chosen by a fixed seed and
  spread over the classes as evenly as they allow (see :func:`spread_out`): the same ones in each
  run on a dataset. Queries: the validation slice that the loss is measured on
  (``trainer.val_samples``), at most ``tracking.knn_samples`` of it, chosen likewise. Both under the
  evaluation transform, without augmentation.
- Features: the encoder's output on the whole image (no patch removed), mean over the patch tokens
  after the final norm, scaled to length 1.
- Vote: each of the ``tracking.knn_neighbours`` images of the bank with the largest cosine counts
  exp(cosine / 0.07) for its class; the class with the largest sum is the answer (Wu et al. 2018,
  arXiv 1805.01978; as in DINO, arXiv 2104.14294). A smaller bank votes as a whole.

A bank with fewer images than there are classes cannot answer with all of them; raise
``tracking.knn_samples`` where that matters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from percmae.config import Config
from percmae.data.batch import Batch
from percmae.data.shards import Dataset, Split
from percmae.data.stream import Loader
from percmae.engine.distributed import World
from percmae.engine.loaders import whole_loader
from percmae.engine.precision import autocast
from percmae.models.mae import CHANNELS, MaskedAutoencoder

TEMPERATURE = 0.07
CHOICE_SEED = 20180505
# Images of one forward pass. Not data.batch_size: with chunks that never change, a feature is the
# same number however many processes share the work.
CHUNK = 64
# A process keeps its share of the decoded images between validations when it is no larger.
CACHE_BYTES = 256 << 20


class KNN:
    """k-NN top-1 of an encoder on one dataset; call it at each validation, in every process.

    train, val: the splits of the dataset that the bank and the queries are taken from.
    """

    def __init__(
        self, config: Config, dataset: Dataset, train: Split, val: Split, world: World
    ) -> None:
        self.config, self.world = config, world
        loaders = [_loader(config, dataset, split, world) for split in (train, val)]
        pixels = CHANNELS * config.data.image_size**2
        share = sum(min(len(x.split), x.batches_per_epoch * CHUNK) for x in loaders)
        keep = share * pixels * torch.float32.itemsize <= CACHE_BYTES
        self._bank, self._queries = (_Images(loader, keep) for loader in loaders)

    @torch.no_grad()
    def __call__(self, generator: MaskedAutoencoder) -> float:
        """Share of the queries whose class the vote finds; the same in every process.

        Draws no random numbers and leaves the network in the mode it was in. Raises what the
        loader raises.
        """
        training = generator.training
        generator.eval()
        try:
            return self._top1(generator)
        finally:
            generator.train(training)

    def _top1(self, generator: MaskedAutoencoder) -> float:
        device = self.world.device
        bank = torch.zeros(len(self._bank.split), generator.cls_token.shape[-1], device=device)
        for batch in self._bank:
            bank[batch.ids] = self._features(generator, batch)
        # Each process has filled its rows and left the others zero: the sum is the whole bank.
        bank = self.world.sum(bank)
        labels = torch.from_numpy(self._bank.split.labels).to(device)
        right = torch.zeros((), dtype=torch.int64, device=device)
        for batch in self._queries:
            found = vote(
                self._features(generator, batch),
                bank,
                labels,
                self.config.tracking.knn_neighbours,
            )
            right += (found == batch.labels).sum()
        return int(self.world.sum(right)) / len(self._queries.split)

    def _features(self, generator: MaskedAutoencoder, batch: Batch) -> Tensor:
        with autocast(self.config, self.world.device):
            return features(generator, batch.images)


def build_knn(config: Config, dataset: Dataset, val: Split, world: World) -> KNN | None:
    """The figure as ``config.tracking`` has it, on the validation slice ``val``; None for none."""
    if not config.tracking.knn_samples:
        return None
    return KNN(config, dataset, dataset.split("train"), val, world)


def features(generator: MaskedAutoencoder, images: Tensor) -> Tensor:
    """Features (N, D), float32 of length 1, of normalised images (N, 3, H, W), all patches kept."""
    everywhere = torch.arange(generator.patches, device=images.device).expand(len(images), -1)
    latent = generator.encode(generator.patchify(images), everywhere)
    return F.normalize(latent[:, 1:].float().mean(dim=1), dim=1)


def vote(queries: Tensor, bank: Tensor, labels: Tensor, neighbours: int) -> Tensor:
    """Class (N,) of each query (N, D): the weighted vote of its neighbours in the bank (M, D).

    labels: class (M,) of each image of the bank; the rows of queries and bank have length 1.
    """
    nearest = (queries @ bank.T).topk(min(neighbours, len(bank)), dim=1)
    # In double precision: on a GPU the order of the additions is not fixed.
    weights = (nearest.values.double() / TEMPERATURE).exp()
    scores = weights.new_zeros(len(queries), int(labels.max()) + 1)
    return scores.scatter_add_(1, labels[nearest.indices], weights).argmax(dim=1)


def spread_out(labels: np.ndarray, count: int) -> np.ndarray:
    """Sorted positions of at most ``count`` samples, as many of each class as can be.

    labels: class of each sample, int64 (n,). Classes are gone through in rounds, each giving one
    sample a round as long as it has any; which, is drawn with a fixed seed. A last round that is
    not whole takes the first classes, so that two splits are cut to the same ones.
    """
    # Raw generator words, which numpy keeps stable over versions.
    words = np.random.PCG64(np.random.SeedSequence(CHOICE_SEED)).random_raw(len(labels))
    by_class = np.lexsort((words, labels))
    ordered = labels[by_class]
    rounds = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return np.sort(by_class[np.argsort(rounds, kind="stable")[:count]])


def _loader(config: Config, dataset: Dataset, split: Split, world: World) -> Loader:
    """Chunks of what is chosen of a split, shared over the processes."""
    chosen = spread_out(split.labels, config.tracking.knn_samples)
    return whole_loader(config, dataset, split.subset(split.name, chosen), CHUNK, world)


class _Images:
    """A process's share of some images; ``keep``: decoded once, and held from then on."""

    def __init__(self, loader: Loader, keep: bool) -> None:
        self.split = loader.split
        self._loader, self._keep = loader, keep
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        seen = []
        for _, _, batch in self._loader.batches():
            if self._keep:
                seen.append(batch)
            yield batch
        if self._keep:
            self._kept = seen
