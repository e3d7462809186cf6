"""Small objectives of every variant, for the tests of this folder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percmae import load_config
from percmae.bench.contenders import random_vgg16
from percmae.config import Config
from percmae.losses.build import build_objective
from percmae.losses.objective import Draws, Micro, Objective, Terms
from percmae.models.features import FeatureNetwork

VARIANTS = ("mae", "ssim", "perceptual", "ls_gan", "msg_gan", "stylegan2_ada")
ADVERSARIAL = ("ls_gan", "msg_gan", "stylegan2_ada")
SMALL = [
    "data.image_size=32",
    "data.augment.mean=[0.13,0.13,0.13]",
    "data.augment.std=[0.31,0.31,0.31]",
    "model.patch_size=8",
    "model.encoder.width=24",
    "model.encoder.depth=4",
    "model.encoder.heads=2",
    "model.decoder.width=16",
    "model.decoder.depth=3",
    "model.decoder.heads=2",
    "discriminator.width=16",
    "perceptual.extractor=vgg16",
]


def config_of(variant: str, *overrides: str) -> Config:
    """A network of a few thousand weights on 32-pixel images."""
    return load_config(variant, "demo", overrides=[*SMALL, *overrides])


def vgg16() -> FeatureNetwork:
    """torchvision's VGG16 with seeded weights."""
    torch.manual_seed(11)
    return random_vgg16()


def objective_of(config: Config) -> Objective:
    """Seeded, in training mode."""
    features = vgg16() if config.variant == "perceptual" else None
    torch.manual_seed(0)
    objective = build_objective(config, features)
    objective.train()
    return objective


def batch(objective: Objective, n: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    """(images (n, 3, 32, 32) without detail, noise)."""
    generator = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.randn(n, 3, 3, 3, generator=generator), 32, mode="bilinear")
    return images, torch.rand(n, objective.generator.patches, generator=generator)


def step(
    objective: Objective, images: Tensor, noise: Tensor, number: int = 0, epoch: int = 0
) -> Terms:
    """One step's forward and backward passes."""
    micro = Micro(number, number, epoch, 1.0)
    draws = Draws(0, number, range(len(images)), torch.device("cpu"))
    return objective.backward(images, noise, micro, draws)


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    """Gradients of the trained parameters, by name."""
    return {
        name: None if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
        if p.requires_grad
    }
