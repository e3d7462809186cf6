"""Optimisers, parameter groups and learning-rate schedules (METHOD section 6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from percmae.config import Optim

Group = dict[str, Any]


def effective_lr(optim: Optim, batch: int) -> float:
    """The peak rate for an effective batch: lr · batch / scale_batch, or lr itself."""
    return optim.lr if optim.scale_batch is None else optim.lr * batch / optim.scale_batch


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices and filters, not to biases, norms and tokens."""
    return parameter.ndim > 1 and not name.endswith(("cls_token", "mask_token", "pos_embed"))


def parameter_groups(
    network: nn.Module, optim: Optim, layer_of: Callable[[str], int] | None = None, layers: int = 0
) -> list[Group]:
    """Trainable parameters in groups of equal decay and rate.

    layer_of gives a parameter's layer in 0…layers; its rate is multiplied by
    layer_decay^(layers − layer). Each group carries ``lr_scale`` for the schedule.
    """
    groups: dict[tuple[float, bool], Group] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = layers - layer_of(name) if layer_of else 0
        scale, decay = optim.layer_decay**depth, decays(name, parameter)
        group = groups.setdefault(
            (scale, decay),
            {"params": [], "lr_scale": scale, "weight_decay": optim.weight_decay if decay else 0.0},
        )
        # LARS adapts the rate of matrices; biases and norms follow the plain rate (MAE's probe).
        group["always_adapt"] = decay
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(optim: Optim, groups: Iterable[Group]) -> torch.optim.Optimizer:
    """The optimiser over parameter groups; rates are set by the schedule before each step."""
    groups = list(groups)
    if optim.name == "lars":
        from percmae.vision import load_timm

        lars: torch.optim.Optimizer = load_timm().optim.Lars(
            groups, lr=optim.lr, momentum=optim.momentum
        )
        return lars
    for group in groups:
        del group["always_adapt"]
    if optim.name == "sgd":
        return torch.optim.SGD(
            groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov
        )
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    beta1, beta2 = optim.betas
    return kind(groups, lr=optim.lr, betas=(beta1, beta2), eps=optim.eps, fused=True)


class Schedule:
    """Learning rate as a function of the step alone, so that a resumed run follows the same course.

    peak: rate after warm-up; steps_per_epoch and total_steps count optimiser steps.
    """

    def __init__(self, optim: Optim, peak: float, steps_per_epoch: int, total_steps: int) -> None:
        self.optim, self.peak = optim, peak
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.warmup_steps = optim.warmup_epochs * steps_per_epoch

    def __call__(self, step: int) -> float:
        """Rate of optimiser step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        if self.optim.schedule == "constant":
            return self.peak
        if self.optim.schedule == "step":
            epoch = step // self.steps_per_epoch
            return self.peak * self.optim.step_factor ** (epoch // self.optim.step_epochs)
        span = max(self.total_steps - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / span, 1.0)
        floor = min(self.optim.min_lr, self.peak)
        return floor + (self.peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the rate of every group (times its ``lr_scale``) and return it."""
        rate = self(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        return rate
