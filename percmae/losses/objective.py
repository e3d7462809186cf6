"""An objective: what one training step of a variant computes.

The loop knows nothing of a variant but this interface. It draws batches and masks, asks the
objective to run its forward and backward passes once for each micro-batch, and then steps one
optimiser for each of the objective's networks. A variant with a discriminator therefore needs no
other loop: it names a second network and calls ``backward`` for each loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from percmae.config import Config
from percmae.losses.draws import Draws
from percmae.models import build_model
from percmae.models.mae import Generated, MaskedAutoencoder

Terms = dict[str, Tensor]
Weighted = dict[str, tuple[float, Tensor]]


@dataclass(frozen=True)
class Micro:
    """One micro-batch's place in the run.

    index: global count of micro-batches; step: of optimiser steps, from 0; epoch: from 0; weight:
    its share of the step; first, last: of its step; logged: whether figures are logged after its
    step, so that those are due which cost time.
    """

    index: int
    step: int
    epoch: int
    weight: float
    first: bool = True
    last: bool = True
    logged: bool = False


class Call(nn.Module):
    """A network under the method that training calls.

    What wraps networks for training (DistributedDataParallel, torch.compile) wraps ``forward``
    alone; this gives a variant's own method that name.
    """

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network, self._method = network, method

    def forward(self, *args: Any) -> Any:
        return getattr(self.network, self._method)(*args)


class Objective(ABC):
    """One variant's networks and losses.

    ``networks`` holds what is trained, by name, ``generator`` first; ``calls`` what training calls,
    by the same names: the networks, wrapped for data parallelism or compilation.
    """

    method = "generate"
    """What training calls of the generator."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.generator: MaskedAutoencoder = build_model(config)
        self.networks: dict[str, nn.Module] = {"generator": self.generator}
        self.calls: dict[str, nn.Module] = {"generator": Call(self.generator, self.method)}
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def wrap(
        self,
        wrapper: Callable[[str, nn.Module], nn.Module],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Wrap each call (given its name) for training, and run the networks under ``autocast``."""
        self.calls = {name: wrapper(name, call) for name, call in self.calls.items()}
        self.autocast = autocast

    @abstractmethod
    def backward(self, images: Tensor, noise: Tensor, micro: Micro, draws: Draws) -> Terms:
        """Forward passes, losses and their gradients for one micro-batch.

        images (N, 3, H, W) normalised; noise (N, L) fixes the mask; draws: all other randomness.
        Gradients, times the micro-batch's weight, accumulate into the networks. Returns detached
        scalars: ``loss`` (the generator's total), its terms as ``loss/<term>`` and, where they are
        weighted, ``weighted/<term>``; a term that is not computed at every step is absent from the
        others.
        """

    @abstractmethod
    def terms(self, images: Tensor, noise: Tensor) -> Terms:
        """The same figures without gradients, for validation."""

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[list[Tensor], Tensor]:
        """Reconstructed images of every scale, the full size first, and the mask (N, L).

        In the input's normalisation.
        """
        with self.autocast():
            return self.generator.reconstructions(images, noise)

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


def total(terms: Weighted, prefix: str = "") -> tuple[Tensor, Terms]:
    """The weighted sum of terms, and what is logged of them (detached).

    terms: name to (weight, value).
    """
    logged: Terms = {}
    for name, (weight, value) in terms.items():
        logged[f"loss/{prefix}{name}"] = value.detach()
        logged[f"weighted/{prefix}{name}"] = weight * value.detach()
    return torch.stack([weight * value for weight, value in terms.values()]).sum(), logged


class WholeImage(Objective):
    """A variant whose loss compares the whole reconstructed image with the input."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        normalisation = config.data.augment.normalisation
        self._mean, self._std = (torch.tensor(x)[:, None, None] for x in normalisation)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)

    @abstractmethod
    def weighted(self, reconstructed: Sequence[Tensor], images: Tensor) -> Weighted:
        """The terms: reconstructed, from the full size down; images (N, 3, H, W); normalised."""

    def to_unit(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) back in [0, 1] (a reconstruction may lie beyond)."""
        return images.float() * self._std + self._mean

    def backward(self, images: Tensor, noise: Tensor, micro: Micro, draws: Draws) -> Terms:
        with self.autocast():
            generated: Generated = self.calls["generator"](images, noise)
        loss, logged = total(self.weighted(generated.images, images))
        (loss * micro.weight).backward()
        return {"loss": loss.detach(), **logged}

    @torch.no_grad()
    def terms(self, images: Tensor, noise: Tensor) -> Terms:
        with self.autocast():
            generated = self.generator.generate(images, noise)
        loss, logged = total(self.weighted(generated.images, images))
        return {"loss": loss, **logged}
