"""What the loop trains, of whatever stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from percmae.data.batch import Batch
from percmae.data.stream import Loader, Source
from percmae.losses.objective import Micro, Terms


class Learner(ABC):
    """What is trained. ``networks`` and ``optimizers`` share their keys."""

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    calls: dict[str, nn.Module]

    @abstractmethod
    def backward(self, batch: Batch, micro: Micro) -> Terms:
        """Forward and backward of one micro-batch (on the device); detached scalars to log."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures on the validation slice, ``loss`` among them; the same in every process."""

    @abstractmethod
    def train(self, mode: bool) -> None:
        """Put the networks into training or evaluation mode."""

    def remark(self, values: Mapping[str, float], steps: int, epoch: int) -> str | None:
        """What a person should be told about figures of training, if anything.

        values: means over so many steps; epoch: steps in one.
        """
        return None

    def source(self, loader: Loader) -> Source:
        """Where the batches of training come from; called once, before the first step."""
        return loader

    def pictures(self) -> dict[str, Tensor]:
        """Pictures (3, H, W) of how things stand, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Running state beside weights and optimisers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        assert not state, "this learner keeps no running state"
