"""t-SNE (van der Maaten and Hinton 2008, JMLR 9), exact, for some hundred points.

Begun from the first two principal components, as openTSNE does, so that nothing is drawn at random
and what is far apart tends to stay so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PERPLEXITY = 30.0
_STEPS, _EARLY = 500, 125
_EXAGGERATION = 12.0
_TINY = 1e-12


def tsne(features: Tensor) -> Tensor:
    """Places (n, 2) of features (n, D): what is near there is near here."""
    points = features.double()
    n = len(points)
    places = principal_components(points)
    if n < 4:
        return places
    near = _affinities(torch.cdist(points, points).square(), min(PERPLEXITY, (n - 1) / 3)).float()
    places = (places / places[:, 0].std().clamp(min=_TINY) * 1e-4).float()
    rate, speed = max(n / _EXAGGERATION, 50.0), torch.zeros_like(places)
    gains = torch.ones_like(places)
    for step in range(_STEPS):
        early = step < _EARLY
        kernel = 1 / (1 + torch.cdist(places, places).square())
        kernel.fill_diagonal_(0)
        pull = near * _EXAGGERATION if early else near
        force = (pull - kernel / kernel.sum()) * kernel
        gradient = 4 * (force.sum(1, keepdim=True) * places - force @ places)
        against = gradient.sign() != speed.sign()
        gains = torch.where(against, gains + 0.2, gains * 0.8).clamp(min=0.01)
        speed = (0.5 if early else 0.8) * speed - rate * gains * gradient
        places = places + speed
    return places - places.mean(0)


def principal_components(points: Tensor) -> Tensor:
    """The first two (n, 2) of points (n, D), each with its largest part positive."""
    centred = points - points.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:2]
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return torch.nn.functional.pad(centred @ (axes * signs).T, (0, 2 - len(axes)))


def _affinities(squares: Tensor, perplexity: float) -> Tensor:
    """Joint probabilities (n, n) of neighbours at squared distances (n, n).

    Each point's Gaussian is as wide as gives it this many neighbours; found by bisection.
    """
    n = len(squares)
    itself = torch.eye(n, dtype=torch.bool)
    squares = squares / squares.mean().clamp(min=_TINY)
    low, high = torch.full((2, n, 1), -10.0, dtype=torch.float64).unbind()
    high = high + 30
    for _ in range(50):
        middle = (low + high) / 2
        chances = (-squares * middle.exp()).masked_fill(itself, -math.inf).softmax(1)
        entropy = -(chances * chances.clamp(min=_TINY).log()).sum(1, keepdim=True)
        wide = entropy > math.log(perplexity)
        low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
    return (chances + chances.T) / (2 * n)
