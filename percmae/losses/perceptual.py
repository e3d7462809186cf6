"""Losses on feature maps: perceptual and style (docs/method.md; arXiv 1603.08155).

Both take two lists of maps (N, C, H, W) and return a float32 scalar.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def perceptual_loss(maps: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Sum over the maps of the mean absolute difference."""
    pairs = zip(maps, target, strict=True)
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in pairs]).sum()


def gram(features: Tensor) -> Tensor:
    """Products of channels, (N, C, C), of a map (N, C, H, W), divided by C·H·W.

    In float32 whatever the precision around it: the sums overflow half precision.
    """
    n, c, h, w = features.shape
    with torch.autocast(features.device.type, enabled=False):
        flat = features.float().reshape(n, c, h * w)
        return flat @ flat.transpose(1, 2) / (c * h * w)


def style_loss(maps: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Sum over the maps of the mean absolute difference of their Gram matrices."""
    pairs = zip(maps, target, strict=True)
    return torch.stack([(gram(a) - gram(b)).abs().mean() for a, b in pairs]).sum()
