"""What is told of an encoder while it is pretrained: the live signs that it learns something.

Nothing is trained for it. Two figures on held-out images, both without augmentation:

**k-nearest-neighbour accuracy**, where there are labels: labelled training images near a held-out
image in feature space vote on its class.

- Bank: at most ``tracking.knn_samples`` labelled images of the training split, chosen by a fixed
  seed and spread over the classes as evenly as they allow (see :func:`spread_out`): the same ones
  in each run on a dataset. Queries: the labelled images of the validation slice that the loss is
  measured on (``trainer.val_samples``), at most ``tracking.knn_samples`` of it, chosen likewise.
- Features: the encoder's output on the whole image (no patch removed), mean over the patch tokens
  after the final norm, scaled to length 1.
- Vote: each of the ``tracking.knn_neighbours`` images of the bank with the largest cosine counts
  exp(cosine / 0.07) for its class; the class with the largest sum is the answer (Wu et al. 2018,
  arXiv 1805.01978; as in DINO, arXiv 2104.14294). A smaller bank votes as a whole.

A bank with fewer images than there are classes cannot answer with all of them; raise
``tracking.knn_samples`` where that matters.

**Effective rank**, with labels or without (:mod:`percmae.engine.rankme`): of the features, before
they are scaled, of at most ``tracking.rankme_samples`` images of the validation slice. Of one
choice of both sizes the smaller is among the larger, so each image is seen once.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from percmae.config import Config
from percmae.data.batch import Batch
from percmae.data.mixture import AnyDataset, require_labels
from percmae.data.shards import Split
from percmae.data.stream import Loader
from percmae.engine.distributed import World
from percmae.engine.loaders import whole_loader
from percmae.engine.precision import autocast
from percmae.engine.rankme import rankme
from percmae.engine.signals import together
from percmae.models.mae import CHANNELS, MaskedAutoencoder

KNN_SAMPLES = 1000
"""Images of the bank, and of the queries, where nothing else is asked for."""
TEMPERATURE = 0.07
CHOICE_SEED = 20180505
# Images of one forward pass. Not data.batch_size: with chunks that never change, a feature is the
# same number however many processes share the work.
CHUNK = 64
# A process keeps its share of the decoded images between validations when it is no larger.
CACHE_BYTES = 256 << 20


class Judge:
    """The figures of an encoder on held-out images; call it at each validation, in every process.

    train, val: the splits that the bank and the queries are taken from; samples: of the bank, and
    of the queries, for k-NN (0 for none); ranked: images whose features' rank is measured.
    """

    def __init__(
        self, config: Config, train: Split, val: Split, world: World, samples: int, ranked: int
    ) -> None:
        self.config, self.world = config, world
        held_out = spread_out(val.labels, max(samples, ranked))
        # Places of each choice among all that are held out.
        self._asked = np.flatnonzero(
            np.isin(held_out, spread_out(val.labels, samples)) & (val.labels[held_out] >= 0)
        )
        self._ranked = np.flatnonzero(np.isin(held_out, spread_out(val.labels, ranked)))
        bank = spread_out(train.labels, samples) if len(self._asked) else np.empty(0, np.int64)
        loaders = [
            whole_loader(config, split.subset(split.name, chosen), CHUNK, world)
            for split, chosen in ((train, bank), (val, held_out))
        ]
        pixels = CHANNELS * config.data.image_size**2
        share = sum(min(len(x.split), x.batches_per_epoch * CHUNK) for x in loaders)
        keep = share * pixels * torch.float32.itemsize <= CACHE_BYTES
        self._bank, self._held_out = (_Images(loader, keep) for loader in loaders)

    @torch.no_grad()
    def __call__(self, generator: MaskedAutoencoder) -> dict[str, float]:
        """``rankme``, and ``knn_top1``, the share of the queries whose class the vote finds.

        Each where it is asked for; the same in every process. Draws no random numbers and leaves
        the network in the mode it was in. Raises what the loader raises.
        """
        training = generator.training
        generator.eval()
        try:
            return self._figures(generator)
        finally:
            generator.train(training)

    def _figures(self, generator: MaskedAutoencoder) -> dict[str, float]:
        held_out, figures = self._all_features(generator, self._held_out), {}
        if len(self._ranked):
            figures["rankme"] = rankme(held_out[torch.from_numpy(self._ranked)])
        if len(self._asked) and len(self._bank.split):
            figures["knn_top1"] = self._top1(generator, F.normalize(held_out, dim=1))
        return figures

    def _top1(self, generator: MaskedAutoencoder, held_out: Tensor) -> float:
        device, neighbours = self.world.device, self.config.tracking.knn_neighbours
        bank = F.normalize(self._all_features(generator, self._bank), dim=1)
        labels = torch.from_numpy(self._bank.split.labels).to(device)
        # A process asks for its share of them.
        mine = self._asked[self.world.rank :: self.world.size]
        right = torch.zeros((), dtype=torch.int64, device=device)
        for some in np.split(mine, range(CHUNK, len(mine), CHUNK)):
            found = vote(held_out[torch.from_numpy(some)], bank, labels, neighbours)
            answers = torch.from_numpy(self._held_out.split.labels[some])
            right += (found == answers.to(device)).sum()
        return int(self.world.sum(right)) / len(self._asked)

    def _all_features(self, generator: MaskedAutoencoder, images: _Images) -> Tensor:
        """Features (n, D), not scaled, of all images, in every process."""
        device = self.world.device
        rows = torch.zeros(len(images.split), generator.cls_token.shape[-1], device=device)
        for batch in together(images.batches(), self.world):
            with autocast(self.config, device):
                rows[batch.ids] = pooled(generator, batch.images)
        # Each process has filled its rows and left the others zero: the sum is all of them.
        return self.world.sum(rows)


def build_judge(config: Config, dataset: AnyDataset, val: Split, world: World) -> Judge | None:
    """The figures as ``config.tracking`` has them, on the validation slice ``val``; None for none.

    Raises UserError where k-NN is asked for in so many words and there are no labels.
    """
    tracking = config.tracking
    if tracking.knn_samples:
        require_labels(dataset, f"tracking.knn_samples={tracking.knn_samples}")
    samples = KNN_SAMPLES if tracking.knn_samples is None else tracking.knn_samples
    if not samples and not tracking.rankme_samples:
        return None
    train = dataset.split("train").labelled()
    return Judge(config, train, val, world, samples, tracking.rankme_samples)


def pooled(generator: MaskedAutoencoder, images: Tensor) -> Tensor:
    """Features (N, D), float32, of normalised images (N, 3, H, W), all patches kept: the mean."""
    everywhere = torch.arange(generator.patches, device=images.device).expand(len(images), -1)
    latent = generator.encode(generator.patchify(images), everywhere)
    return latent[:, 1:].float().mean(dim=1)


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

    labels: class of each sample, int64 (n,); those without a label are as one class more. Classes
    are gone through in rounds, each giving one sample a round as long as it has any; which, is
    drawn with a fixed seed. A last round that is not whole takes the first classes, so that two
    splits are cut to the same ones.
    """
    # Raw generator words, which numpy keeps stable over versions.
    words = np.random.PCG64(np.random.SeedSequence(CHOICE_SEED)).random_raw(len(labels))
    by_class = np.lexsort((words, labels))
    ordered = labels[by_class]
    rounds = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return np.sort(by_class[np.argsort(rounds, kind="stable")[:count]])


class _Images:
    """A process's share of some images; ``keep``: decoded once, and held from then on."""

    def __init__(self, loader: Loader, keep: bool) -> None:
        self.split = loader.split
        self._loader, self._keep = loader, keep
        self._kept: list[Batch] | None = None

    def batches(self) -> Generator[Batch, None, None]:
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
