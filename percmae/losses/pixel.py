"""Losses on pixels: L1 and the multi-scale SSIM of variant ``ssim``.

See docs/method.md, "Whole-image losses".

All take two images (N, C, H, W) of the same shape and return a float32 scalar.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (prediction.float() - target.float()).abs().mean()


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity around each pixel, (N, C, H, W), for images in [0, 1].

    Means and (biased) variances over 3×3 windows by average pooling, borders mirrored by one
    pixel. H and W must be at least 2.
    """
    a, b = (F.pad(x.float(), (1, 1, 1, 1), mode="reflect") for x in (a, b))
    mean_a, mean_b = F.avg_pool2d(a, 3, 1), F.avg_pool2d(b, 3, 1)
    var_a = F.avg_pool2d(a * a, 3, 1) - mean_a**2
    var_b = F.avg_pool2d(b * b, 3, 1) - mean_b**2
    covariance = F.avg_pool2d(a * b, 3, 1) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (var_a + var_b + SSIM_C2)
    return luminance * structure


def ssim_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of clamp((1 − SSIM) / 2, 0, 1)."""
    return ((1 - ssim_map(prediction, target)) / 2).clamp(0, 1).mean()


def resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Images (N, C, H, W) resized bilinearly, corner to corner."""
    return F.interpolate(images, size, mode="bilinear", align_corners=True)


def pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """The images and their halvings: level i is the *full* image resized to H//2^i × W//2^i."""
    h, w = images.shape[2:]
    return [images] + [resized(images, (h // 2**i, w // 2**i)) for i in range(1, levels)]


def multiscale_ssim_terms(prediction: Tensor, target: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """(sum over levels of the SSIM loss, sum over levels of L1)."""
    pairs = list(zip(pyramid(prediction, levels), pyramid(target, levels), strict=True))
    ssim = sum((ssim_loss(a, b) for a, b in pairs), start=prediction.new_zeros(()))
    l1 = sum((l1_loss(a, b) for a, b in pairs), start=prediction.new_zeros(()))
    return ssim, l1
