"""An objective: what one training step of a variant computes.

The loop knows nothing of a variant but this interface. It draws batches and masks, asks the
objective to run its forward and backward passes once for each micro-batch, and then steps one
optimiser for each of the objective's networks. A variant with a discriminator therefore needs no
other loop: it names a second network and calls ``backward`` for each loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from percmae.config import Config
from percmae.errors import ConfigError
from percmae.losses.pixel import multiscale_ssim_terms
from percmae.models.mae import MaskedAutoencoder, build_model

Terms = dict[str, Tensor]


class Objective(ABC):
    """One variant's networks and losses.

    ``networks`` holds what is trained, by name, ``generator`` first; ``calls`` the same networks as
    they must be called in training (wrapped for data parallelism or compilation).
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.networks: dict[str, nn.Module] = {"generator": build_model(config)}
        self.calls: dict[str, Callable[..., Any]] = dict(self.networks)

    @property
    def generator(self) -> MaskedAutoencoder:
        """The masked autoencoder, unwrapped."""
        network = self.networks["generator"]
        assert isinstance(network, MaskedAutoencoder)
        return network

    def wrap(self, wrapper: Callable[[nn.Module], Callable[..., Any]]) -> None:
        """Wrap each trained network (DistributedDataParallel, torch.compile) for training calls."""
        self.calls = {name: wrapper(network) for name, network in self.networks.items()}

    @abstractmethod
    def backward(self, images: Tensor, noise: Tensor, weight: float, step: int) -> Terms:
        """Forward passes, losses and their gradients for one micro-batch.

        images (N, 3, H, W) normalised; noise (N, L) fixes the mask; weight is the micro-batch's
        share of the step; step counts optimiser steps from 0. Gradients accumulate into the
        networks. Returns detached scalars: ``loss`` (the generator's total) and its unweighted
        terms as ``loss/<term>``.
        """

    @abstractmethod
    def terms(self, images: Tensor, noise: Tensor) -> Terms:
        """The same figures without gradients, for validation."""

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructed images (N, 3, H, W) in the input's range, and the mask (N, L)."""
        prediction, mask = self.generator.reconstruct(images, noise)
        return self.generator.to_images(prediction.float(), images), mask

    def train(self, mode: bool = True) -> None:
        """Put every network into training or evaluation mode."""
        for network in self.networks.values():
            network.train(mode)

    def to(self, device: torch.device) -> None:
        """Move every network to a device."""
        for network in self.networks.values():
            network.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Running state beside the weights (augmentation strength, running means …)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        assert not state, f"variant {self.config.variant} keeps no running state"


class MaskedPatches(Objective):
    """Variant ``mae``: mean squared error on the removed patches."""

    def backward(self, images: Tensor, noise: Tensor, weight: float, step: int) -> Terms:
        loss = self.calls["generator"](images, noise).loss
        (loss * weight).backward()
        return {"loss": loss.detach()}

    @torch.no_grad()
    def terms(self, images: Tensor, noise: Tensor) -> Terms:
        return {"loss": self.generator(images, noise).loss}


class MultiscaleSSIM(Objective):
    """Variant ``ssim``: SSIM and L1 over a pyramid of the whole reconstructed image."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        augment = config.data.augment
        self._mean = torch.tensor(augment.mean)[:, None, None]
        self._std = torch.tensor(augment.std)[:, None, None]

    def _terms(self, images: Tensor, prediction: Tensor) -> Terms:
        share, levels = self.config.loss.ssim, self.config.loss.ssim_levels
        # SSIM's constants are for images in [0, 1]; both terms see the images there.
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        reconstruction = self.generator.unpatchify(prediction.float()) * std + mean
        ssim, l1 = multiscale_ssim_terms(reconstruction, images.float() * std + mean, levels)
        return {"loss": share * ssim + (1 - share) * l1, "loss/ssim": ssim, "loss/l1": l1}

    def backward(self, images: Tensor, noise: Tensor, weight: float, step: int) -> Terms:
        terms = self._terms(images, self.calls["generator"](images, noise).prediction)
        (terms["loss"] * weight).backward()
        return {name: value.detach() for name, value in terms.items()}

    @torch.no_grad()
    def terms(self, images: Tensor, noise: Tensor) -> Terms:
        return self._terms(images, self.generator(images, noise).prediction)


OBJECTIVES: dict[str, type[Objective]] = {"mae": MaskedPatches, "ssim": MultiscaleSSIM}


def build_objective(config: Config) -> Objective:
    """The objective of ``config.variant``. Raises ConfigError for one that is not built in."""
    try:
        kind = OBJECTIVES[config.variant]
    except KeyError:
        raise ConfigError(
            f"variant {config.variant} is not available in this version; "
            f"available: {', '.join(OBJECTIVES)}"
        ) from None
    return kind(config)
