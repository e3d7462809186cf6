"""Training steps, timed: ours, transformers' masked autoencoder, timm's supervised network.

A step is the forward pass, the losses, the backward pass and the optimisers, in bf16, on images
that lie on the device. Steps are timed in blocks, as training gives them to the device: without
waiting for one before the next is begun.
"""

from __future__ import annotations

import functools
import gc
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_check.check import Check
from gpu_check.settings import (
    GOAL_TFLOPS,
    GOALS,
    Contender,
    compiling,
    contenders,
)
from percmae.bench.contenders import Contender as Ours
from percmae.bench.contenders import TrainingStep, build, training_objective
from percmae.bench.flops import counted_flops, mae_flops, timed
from percmae.config import Config
from percmae.engine.optim import build_optimizer, parameter_groups
from percmae.engine.precision import autocast
from percmae.vision import load_timm

COUNTED = 2  # images of the step whose operations are counted
BLOCK = 0.7  # seconds that a block of steps takes, about
BLOCKS = 3


def run(check: Check) -> None:
    contender, device = contenders(check.tiny)[check.name], check.device
    plain_compiler(check)
    rate = check.matmul_rate(torch.bfloat16)
    counted = _counted(check, contender) / 1e9
    config = _config(check, contender, compiled=False)
    # By the formula, which counts what ours spares: so that others' compare.
    gflop = mae_flops(config) / 1e9 if contender.variant in ("mae", "vitmae") else counted
    batch = check.batch(contender.batch)
    for compiled in (False, True) if contender.compiled else (False,):
        make = functools.partial(_step, check, contender, compiled)
        batch, found = _largest(make, batch, device, 0.0 if check.tiny else BLOCK)
        reached = found["images_per_second"] * gflop * 1e9 / rate
        goal = GOALS.get(check.name)
        check.write(
            "speed",
            mode="compiled" if compiled else "eager",
            batch=batch,
            **found,
            gflop_per_image=gflop,
            counted_gflop_per_image=counted,
            matmul_tflops=rate / 1e12,
            roof_images_per_second=rate / gflop / 1e9,
            share_of_roof=reached,
            goal_images_per_second=goal and goal * rate / 1e12 / GOAL_TFLOPS,
        )


def compile(check: Check) -> None:
    """Compile a contender's generator, forward and backward, so that its turn finds it done."""
    contender, device = contenders(check.tiny)[check.name], check.device
    plain_compiler(check)
    config = _config(check, contender, compiled=True)
    objective = training_objective(config, device)
    size = config.data.image_size
    batch = check.batch(contender.batch)
    images = torch.randn(batch, 3, size, size, device=device)
    noise = torch.rand(batch, objective.generator.patches, device=device)
    if contender.variant != "mae":
        images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with autocast(config, device):
            made = objective.calls["generator"](images, noise)
        torch.stack([x.float().mean() for x in _differentiable(made)]).sum().backward()

    check.write("compile", seconds=timed(step, device))


def plain_compiler(check: Check) -> None:
    """Small sizes are there to try this out: traced as for a GPU, but no code is generated."""
    if check.tiny:
        torch.compile = functools.partial(torch.compile, backend="aot_eager")  # type: ignore


def _differentiable(made: Any) -> Iterator[Tensor]:
    if isinstance(made, Tensor):
        if made.requires_grad:
            yield made
    else:
        for part in made:
            yield from _differentiable(part)


def _config(check: Check, contender: Contender, compiled: bool) -> Config:
    variant = contender.variant if not contender.variant.startswith("vit") else "mae"
    settings = ("trainer.precision=bf16", *compiling(compiled, check.tiny))
    return check.config(variant, contender.size, *settings)


def _step(check: Check, contender: Contender, compiled: bool, batch: int) -> TrainingStep:
    config = _config(check, contender, compiled)
    if contender.variant == "vit":
        return _supervised(config, batch, check.device)
    ours = "" if contender.variant == "vitmae" else contender.variant
    return build(Ours(check.name, ours, (1, contender.epoch)), config, batch, check.device)


def _supervised(config: Config, batch: int, device: torch.device) -> TrainingStep:
    """timm's Vision Transformer of the encoder's sizes on 1,000 classes, as timm makes it."""
    encoder = config.model.encoder
    model = load_timm().models.vision_transformer.VisionTransformer(
        img_size=config.data.image_size,
        patch_size=config.model.patch_size,
        num_classes=1000,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
    )
    model.to(device).train()
    optimizer = build_optimizer(config.optim, parameter_groups(model, config.optim))
    images = torch.randn(batch, 3, config.data.image_size, config.data.image_size, device=device)
    labels = torch.randint(1000, (batch,), device=device)

    def step() -> None:
        with autocast(config, device):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _counted(check: Check, contender: Contender) -> float:
    """FLOPs of an image's products and convolutions."""
    return counted_flops(_step(check, contender, False, COUNTED)) / COUNTED


def _largest(
    make: Callable[[int], TrainingStep], batch: int, device: torch.device, block: float
) -> tuple[int, dict[str, float]]:
    """The measurement at the first batch, of it and its halves, that fits into memory."""
    while True:
        try:
            return batch, _measured(make(batch), batch, device, block)
        except torch.OutOfMemoryError:
            if batch < 32:
                raise
        batch //= 2
        gc.collect()
        torch.cuda.empty_cache()


def _measured(
    step: TrainingStep, batch: int, device: torch.device, block: float
) -> dict[str, float]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first = timed(step, device)
    timed(step, device)
    steps = max(1, round(block / timed(step, device)))

    def several() -> None:
        for _ in range(steps):
            step()

    times = [timed(several, device) / steps for _ in range(BLOCKS)]
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return {
        "first_seconds": first,
        "seconds": statistics.median(times),
        "slowest": max(times),
        "images_per_second": batch / statistics.median(times),
        "peak_gib": peak,
    }
