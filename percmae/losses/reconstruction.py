"""Variants without a discriminator: mae, ssim, perceptual (docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from percmae.config import Config
from percmae.losses.objective import Draws, Micro, Objective, Terms, Weighted, WholeImage
from percmae.losses.perceptual import perceptual_loss, style_loss
from percmae.losses.pixel import l1_loss, multiscale_ssim_terms
from percmae.models.features import FeatureNetwork
from percmae.models.layers import channels_last


class MaskedPatches(Objective):
    """Variant ``mae``: mean squared error on the removed patches."""

    method = "removed_loss"

    def backward(self, images: Tensor, noise: Tensor, micro: Micro, draws: Draws) -> Terms:
        with self.autocast():
            loss: Tensor = self.calls["generator"](images, noise)
        (loss * micro.weight).backward()
        return {"loss": loss.detach()}

    @torch.no_grad()
    def terms(self, images: Tensor, noise: Tensor) -> Terms:
        with self.autocast():
            return {"loss": self.generator.removed_loss(images, noise)}


class MultiscaleSSIM(WholeImage):
    """Variant ``ssim``: SSIM and L1 over a pyramid of the whole reconstructed image."""

    def weighted(self, reconstructed: Sequence[Tensor], images: Tensor) -> Weighted:
        share, levels = self.config.loss.ssim, self.config.loss.ssim_levels
        # SSIM's constants are for images in [0, 1]; both terms see the images there.
        pair = self.to_unit(reconstructed[0]), self.to_unit(images)
        ssim, l1 = multiscale_ssim_terms(*pair, levels)
        return {"ssim": (share, ssim), "l1": (1 - share, l1)}


class Perceptual(WholeImage):
    """Variant ``perceptual``: L1, and the maps and style of a frozen feature network."""

    def __init__(self, config: Config, features: FeatureNetwork) -> None:
        super().__init__(config)
        self.features = features
        channels_last(features)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.features.to(device)

    def weighted(self, reconstructed: Sequence[Tensor], images: Tensor) -> Weighted:
        weights = self.config.loss
        with self.autocast():
            with torch.no_grad():
                target = self.features(
                    self.to_unit(images).contiguous(memory_format=torch.channels_last)
                )
            maps = self.features(self.to_unit(reconstructed[0]))
        return {
            "l1": (weights.l1, l1_loss(reconstructed[0], images)),
            "perceptual": (weights.perceptual, perceptual_loss(maps, target)),
            "style": (weights.style, style_loss(maps, target)),
        }
