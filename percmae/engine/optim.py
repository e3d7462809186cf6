"""Optimisers, parameter groups and learning-rate schedules (docs/method.md, "Recipes")."""

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


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """Step the optimiser where skip, a float32 scalar on the device, is 0; change nothing where 1.

    The host does not learn which.
    """
    if optimizer.defaults.get("fused"):
        # The fused kernels look for this as a gradient scaler leaves it.
        optimizer.found_inf = skip  # type: ignore[attr-defined]
        optimizer.step()
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [(p.detach().clone(), _tensors(optimizer.state[p], clone=True)) for p in parameters]
    optimizer.step()
    skipped = skip > 0
    with torch.no_grad():
        for parameter, (old, state) in zip(parameters, before, strict=True):
            parameter.copy_(torch.where(skipped, old, parameter))
            for name, new in _tensors(optimizer.state[parameter]).items():
                # What the first step begins, it begins as the gradient: as from zero.
                kept = state[name] if name in state else torch.zeros_like(new)
                new.copy_(torch.where(skipped, kept, new))


def _tensors(state: dict[str, Any], clone: bool = False) -> dict[str, Tensor]:
    """The tensors in a parameter's optimiser state, by name."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: value.clone() for name, value in tensors.items()} if clone else tensors


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
