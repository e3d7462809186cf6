"""Figures of merit: classification scores and reconstruction quality."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from percmae.engine.distributed import World
from percmae.losses.pixel import ssim_map
from percmae.models.features import FeatureNetwork

CALIBRATION_BINS = 15


class ClassifierScores:
    """Counts over a split, from which every classification figure follows.

    Kept as sums, so that processes add theirs up: confusion (C, C) with rows true and columns
    predicted, right answers within the first five, summed cross-entropy, and for each confidence
    bin the number of images, their summed confidence and the right ones.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        double = {"dtype": torch.float64, "device": device}
        self.classes = classes
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        self._top5 = torch.zeros((), **double)  # type: ignore[call-overload]
        self._loss = torch.zeros((), **double)  # type: ignore[call-overload]
        self._bins = torch.zeros(3, CALIBRATION_BINS, **double)  # type: ignore[call-overload]

    def add(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Count logits (N, C) against labels (N,); the first answer of each, (N,) int64."""
        confidence, predicted = logits.softmax(1).max(1)
        cells = labels * self.classes + predicted
        counts = torch.bincount(cells, minlength=self.classes**2)
        self.confusion += counts.view(self.classes, self.classes)
        best = logits.topk(min(5, self.classes), dim=1).indices
        self._top5 += (best == labels[:, None]).any(1).sum()
        self._loss += F.cross_entropy(logits, labels, reduction="sum").double()
        # Of logits that are not finite the confidence is no number, and any bin will do.
        bins = (confidence.nan_to_num() * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
        right = (predicted == labels).double()
        for row, values in enumerate((torch.ones_like(right), confidence.double(), right)):
            self._bins[row].index_add_(0, bins, values)
        return predicted

    def gathered(self, world: World) -> ClassifierScores:
        """These counts summed over all processes."""
        for tensor in (self.confusion, self._top5, self._loss, self._bins):
            world.sum(tensor)
        return self

    @property
    def samples(self) -> int:
        """Images counted."""
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self._loss) / max(self.samples, 1)

    def top(self, k: int) -> float:
        """Share of images whose class is the first answer (k = 1) or among the first five."""
        right = float(self.confusion.diagonal().sum()) if k == 1 else float(self._top5)
        return right / max(self.samples, 1)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 15 equal bins of confidence (Guo et al., 1706.04599)."""
        _count, confidence, right = self._bins
        return float((confidence - right).abs().sum()) / max(self.samples, 1)

    def per_class(self) -> list[tuple[int, float | None]]:
        """(images, share right) of each class; None where there is no image."""
        counts = self.confusion.sum(1).tolist()
        right = self.confusion.diagonal().tolist()
        return [(n, r / n if n else None) for n, r in zip(counts, right, strict=True)]


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, (N,), for images (N, 3, H, W) in [0, 1].

    Equal images give the ratio for an error of half an 8-bit step rather than infinity.
    """
    error = (a.double() - b.double()).square().flatten(1).mean(1)
    return -10 * error.clamp(min=(0.5 / 255) ** 2).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of each image, (N,): the loss's 3×3 windows, in [0, 1] range."""
    return ssim_map(a, b).flatten(1).mean(1)


def perceptual_distance(network: FeatureNetwork, a: Tensor, b: Tensor) -> Tensor:
    """How far apart features of two images are, (N,): LPIPS without its learned weights.

    Images (N, 3, H, W) in [0, 1]. At each place of each map the features are divided by their norm;
    squared differences are summed over channels, averaged over places, summed over maps (arXiv
    1801.03924, equation 1 with w = 1): 0 for equal images, at most 4 a map.
    """
    pairs = zip(network(a), network(b), strict=True)
    maps = [(F.normalize(x) - F.normalize(y)).square().sum(1).mean((1, 2)) for x, y in pairs]
    return torch.stack(maps).sum(0)
