"""From a config to its objective."""

from __future__ import annotations

from percmae.config import Config
from percmae.losses.gan import Adversarial, StyleGAN2ADA
from percmae.losses.objective import Objective
from percmae.losses.reconstruction import MaskedPatches, MultiscaleSSIM, Perceptual
from percmae.models.features import FeatureNetwork


def build_objective(config: Config, features: FeatureNetwork | None = None) -> Objective:
    """The objective of ``config.variant``; features: the frozen network of variant perceptual."""
    if config.variant == "mae":
        return MaskedPatches(config)
    if config.variant == "ssim":
        return MultiscaleSSIM(config)
    if config.variant == "perceptual":
        assert features is not None, "variant perceptual needs its feature network"
        return Perceptual(config, features)
    if config.adversarial.kind == "stylegan2_ada":
        return StyleGAN2ADA(config)
    return Adversarial(config)
