"""Is it right: against the CPU, over twenty steps, and after an interruption.

One step of a variant at size ViT-tiny runs on the CPU in fp32 and, with the same weights, images
and random numbers, on the device in fp32 and in bf16. Compared are the loss terms, and of each
network the gradients together: ‖found − expected‖ / ‖expected‖.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gpu_check.check import Check
from gpu_check.settings import BOUNDS, STEPS
from percmae.bench.contenders import random_vgg16, training_objective
from percmae.config import Config
from percmae.data.sample import make_sample_archives
from percmae.engine import loop
from percmae.engine.optim import build_optimizer, parameter_groups
from percmae.engine.pretrain import pretrain
from percmae.engine.weights import run_state
from percmae.ingest import ingest
from percmae.losses.gan import StyleGAN2ADA
from percmae.losses.objective import Draws, Micro, Objective

# (step, epoch) of the steps compared: a plain one; one that refreshes the frozen copy, with R1 and
# the path length where a variant has them.
PLAIN, EVERYTHING = (1, 1), (0, 0)
PLACES = {"msg_gan": (PLAIN, EVERYTHING), "stylegan2_ada": (PLAIN, EVERYTHING)}
# A narrow decoder and discriminator: the CPU has to keep up.
NARROW = (
    "model.decoder.width=192",
    "model.decoder.heads=3",
    "discriminator.width=64",
    "optim.total_batch=null",
)
IMAGES = 4
CPU = torch.device("cpu")


def run(check: Check) -> None:
    _compare(check)
    _twenty_steps(check)
    _resume(check)


def _compare(check: Check) -> None:
    # What is called fp32 here is that, in convolutions too.
    torch.backends.cudnn.allow_tf32 = False
    for place in PLACES.get(check.name, (PLAIN,)):
        expected = _one_step(check, CPU, "fp32", place)
        for precision, bounds in BOUNDS.items():
            found = _one_step(check, check.device, precision, place)
            errors = {
                "terms": {k: _error(v, expected[0][k]) for k, v in found[0].items()},
                "gradients": {k: _error(v, expected[1][k]) for k, v in found[1].items()},
            }
            worst = {kind: max(values, key=values.__getitem__) for kind, values in errors.items()}
            # Not "above": NaN is no pass.
            missed = [
                f"{name}: {errors[kind][name]:.2g}, bound {bound:g}"
                for (kind, name), bound in zip(worst.items(), bounds, strict=True)
                if not errors[kind][name] <= bound
            ]
            check.write(
                "correctness",
                precision=precision,
                place=f"step {place[0]}, epoch {place[1]}",
                term_error=errors["terms"][worst["terms"]],
                worst_term=worst["terms"],
                gradient_error=errors["gradients"][worst["gradients"]],
                bounds=bounds,
                errors=errors,
                **({"missed": "; ".join(missed)} if missed else {}),
            )


def _error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def _objective(check: Check, device: torch.device, precision: str) -> tuple[Objective, Config]:
    config = check.config(check.name, "tiny", *NARROW, f"trainer.precision={precision}")
    objective = training_objective(config, device)
    if isinstance(objective, StyleGAN2ADA):
        objective.ada.p.fill_(0.5)
    return objective, config


def _images(config: Config, seed: int) -> tuple[Tensor, Tensor]:
    """(images with shades and some noise, masks' noise), on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    size, patches = config.data.image_size, (config.data.image_size // config.model.patch_size) ** 2
    shades = torch.randn(IMAGES, 3, size // 8, size // 8, generator=generator)
    images = F.interpolate(shades, size, mode="bilinear")
    images = images + 0.2 * torch.randn(images.shape, generator=generator)
    return images, torch.rand(IMAGES, patches, generator=generator)


def _pass(
    objective: Objective, images: Tensor, noise: Tensor, place: tuple[int, int]
) -> dict[str, Tensor]:
    device = next(objective.generator.parameters()).device
    micro = Micro(place[0], *place, 1.0)
    draws = Draws(0, place[0], range(len(images)), device)
    return objective.backward(images.to(device), noise.to(device), micro, draws)


def _one_step(
    check: Check, device: torch.device, precision: str, place: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(loss terms, gradients of each network as one vector), on the CPU."""
    objective, config = _objective(check, device, precision)
    terms = _pass(objective, *_images(config, 1), place)
    gradients = {
        name: torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        for name, network in objective.networks.items()
    }
    return (
        {name: value.cpu() for name, value in terms.items() if name.startswith("loss")},
        {name: vector.cpu() for name, vector in gradients.items()},
    )


def _twenty_steps(check: Check) -> None:
    """Steps of every kind with the optimisers, in bf16."""
    objective, config = _objective(check, check.device, "bf16")
    # A rate at which something happens, in spite of the few images.
    optim = dataclasses.replace(config.optim, lr=1e-4)
    optimizers = [
        build_optimizer(optim, parameter_groups(network, optim))
        for network in objective.networks.values()
    ]
    losses: list[float] = []
    for step in range(STEPS):
        terms = _pass(objective, *_images(config, step), (step, step // 5))
        losses.append(float(terms["loss"]))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    weights = [p for network in objective.networks.values() for p in network.parameters()]
    fine = all(map(math.isfinite, losses)) and all(bool(p.isfinite().all()) for p in weights)
    wrong = {} if fine else {"missed": f"not finite: losses {losses}"}
    check.write("steps", steps=STEPS, first=losses[0], last=losses[-1], **wrong)


def _resume(check: Check) -> None:
    """A run that is interrupted twice, and one that is not: equal weights in the end.

    To the bit where PyTorch has a deterministic kernel for all that is used; where it says that it
    has none, to a thousandth.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    folder = check.scratch / f"resume-{check.name}"
    config = _resume_config(check, folder)
    data = _dataset(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        whole = pretrain(config, data, str(folder / "whole")).uri
    unsettled = sorted(
        {
            str(w.message).split(" ")[0]
            for w in caught
            if "does not have a deterministic" in str(w.message)
        }
    )
    _interrupted(lambda: pretrain(config, data, str(folder / "cut")), at=(3, 5))
    cut = pretrain(config, data, str(folder / "cut")).uri
    one, two = _weights(whole), _weights(cut)
    equal = torch.equal(one, two)
    error = _error(two, one)
    right = equal or (bool(unsettled) and error < 1e-3)
    check.write(
        "resume",
        equal=equal,
        error=error,
        without_deterministic_kernel=unsettled,
        **({} if right else {"missed": f"weights differ by {error:.2g}"}),
    )


def _resume_config(check: Check, folder: Path) -> Config:
    folder.mkdir(parents=True)
    settings = [
        *NARROW, "data.batch_size=8", "data.workers=0", "checkpoint.every_steps=1",
        "optim.epochs=2", "optim.warmup_epochs=0", "stylegan.ada_kimg=0.1",
        "tracking.knn_samples=0", "tracking.rankme_samples=0", "tracking.images=0",
    ]  # fmt: skip
    if check.name == "perceptual":
        file = folder / "vgg16.pt"
        torch.manual_seed(0)
        torch.save(random_vgg16().state_dict(), file)
        settings.append(f"perceptual.weights={file}")
    return check.config(check.name, "tiny", *settings)


def _dataset(folder: Path) -> str:
    """A dataset of 40 small pictures, four steps an epoch."""
    rng = np.random.default_rng(0)
    for number in range(44):
        path = folder / "images" / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).save(path)
    a = make_sample_archives(str(folder / "archives"), str(folder / "images"))
    return ingest(**a.uris(), to=str(folder / "dataset")).manifest_uri


def _interrupted(train: Callable[[], Any], at: tuple[int, ...]) -> None:
    """Train until an error before each of these steps, counted from 0."""
    original = loop.Loop._optimise

    def break_down(until: int, self: loop.Loop, *rest: Any) -> Any:
        if self.step == until:
            raise OSError("power cut")
        return original(self, *rest)

    for until in at:
        loop.Loop._optimise = functools.partialmethod(  # type: ignore
            lambda self, *rest, until: break_down(until, self, *rest), until=until
        )
        try:
            train()
        except OSError:
            pass
        finally:
            loop.Loop._optimise = original  # type: ignore[method-assign]


def _weights(uri: str) -> Tensor:
    """All floating-point numbers of a run's networks as one vector."""
    networks = run_state(uri)["networks"]
    return torch.cat(
        [
            t.flatten()
            for state in networks.values()
            for t in state.values()
            if t.is_floating_point()
        ]
    )
