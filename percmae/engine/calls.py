"""Networks as training calls them: compiled, and under data parallelism."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from percmae.config import Config
from percmae.engine.distributed import World
from percmae.engine.precision import autocast
from percmae.losses.objective import Objective


def training_call(network: nn.Module, config: Config, world: World, compiled: bool) -> nn.Module:
    """The network as training calls it: under data parallelism, compiled where asked for."""
    # Compiled inside, so that DistributedDataParallel (and its no_sync) stays on the outside.
    inner: Any = network
    if compiled and config.trainer.compile:
        inner = torch.compile(network, mode=config.trainer.compile_mode)
    return world.wrap(cast("nn.Module", inner), config.trainer.strategy == "ddp")


def set_up(objective: Objective, config: Config, world: World) -> None:
    """Put an objective on its device, its networks called as training calls them."""
    objective.to(world.device)
    objective.wrap(
        lambda name, call: training_call(call, config, world, compiled=name == "generator"),
        lambda: autocast(config, world.device),
    )
