"""What the step benchmark measures: one whole training step of each variant, and of another's code.

A step is the forward pass, the losses, the backward pass and the optimisers, on images that are in
memory already.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from percmae.config import Config, load_config
from percmae.config.load import VARIANTS
from percmae.engine.calls import set_up
from percmae.engine.distributed import World
from percmae.engine.optim import build_optimizer, parameter_groups
from percmae.engine.precision import autocast
from percmae.losses.build import build_objective
from percmae.losses.objective import Draws, Micro, Objective
from percmae.models.features import FeatureNetwork, build_features
from percmae.vision import load_torchvision

TrainingStep = Callable[[], None]
# Optimiser steps and epochs that stand for the kinds of step a variant has.
PLAIN = (1, 1)
KINDS = {
    "refreshing epoch": (1, 0),
    "R1": (16, 1),
    "path length": (4, 1),
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """name: as in the table; variant: empty for another's code; place: (step, epoch)."""

    name: str
    variant: str
    place: tuple[int, int] = PLAIN
    compiled: bool = False


def contenders(variants: list[str], compiled: bool) -> Iterator[Contender]:
    """What is measured: mae first, against which the others are set."""
    for variant in ["mae", *(v for v in variants if v != "mae")]:
        yield Contender(variant, variant)
        if variant == "mae":
            if importlib.util.find_spec("transformers") is not None:
                yield Contender("transformers ViTMAE", "")
            if compiled:
                yield Contender("mae, compiled", "mae", compiled=True)
        if variant in ("msg_gan", "stylegan2_ada"):
            kind = "refreshing epoch"
            yield Contender(f"{variant}, {kind}", variant, KINDS[kind])
        if variant == "stylegan2_ada":
            for kind in ("R1", "path length"):
                # R1 falls on steps with a path length too: that one is set aside.
                yield Contender(f"{variant}, {kind}", variant, KINDS[kind])


def config_for(contender: Contender, size: str, precision: str, overrides: list[str]) -> Config:
    """A contender's config: the MAE paper's recipe at a size."""
    more = [f"trainer.precision={precision}", f"trainer.compile={str(contender.compiled).lower()}"]
    if contender.name.endswith("R1"):
        more.append("stylegan.path_length=0")
    variant = contender.variant or "mae"
    return load_config(variant, "mae", overrides=[*more, *overrides], size=size)


def check_variants(variants: list[str] | None) -> list[str]:
    """The variants to measure. Raises ConfigError for a name that is none."""
    for variant in variants or []:
        load_config(variant)
    return variants or list(VARIANTS)


def build(contender: Contender, config: Config, batch: int, device: torch.device) -> TrainingStep:
    """A function that carries out one step on ``batch`` images."""
    generator = torch.Generator().manual_seed(0)
    size = config.data.image_size
    images = torch.randn(batch, 3, size, size, generator=generator).to(device)
    patches = (size // config.model.patch_size) ** 2
    noise = torch.rand(batch, patches, generator=generator).to(device)
    if not contender.variant:
        return _transformers(config, images, noise)
    objective = training_objective(config, device)
    optimizers = [
        build_optimizer(config.optim, parameter_groups(network, config.optim))
        for network in objective.networks.values()
    ]
    number, epoch = contender.place
    micro = Micro(number, number, epoch, 1.0)
    draws = Draws(0, number, range(batch), device)

    def step() -> None:
        objective.backward(images, noise, micro, draws)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def training_objective(config: Config, device: torch.device) -> Objective:
    """The objective of a config as pretraining has it, seeded, on a device."""
    torch.manual_seed(0)
    objective = build_objective(config, random_features(config))
    objective.train()
    set_up(objective, config, World(0, 1, device))
    return objective


def _transformers(config: Config, images: Tensor, noise: Tensor) -> TrainingStep:
    """The masked autoencoder of Hugging Face's transformers with the same weights."""
    from percmae.bench.transformers_mae import hf_model
    from percmae.models import build_model

    torch.manual_seed(0)
    model: nn.Module = hf_model(config, build_model(config).state_dict())
    model.to(images.device).train()
    optimizer = build_optimizer(config.optim, parameter_groups(model, config.optim))

    def step() -> None:
        with autocast(config, images.device):
            loss = model(images, noise=noise).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def random_features(config: Config) -> FeatureNetwork | None:
    """The feature network of a config that asks for one, with random weights."""
    return random_vgg16() if config.variant == "perceptual" else None


def random_vgg16() -> FeatureNetwork:
    """The network of variant perceptual with weights from torch's global generator.

    Its speed does not depend on them.
    """
    vgg = load_torchvision().models.vgg
    layers = vgg.make_layers(vgg.cfgs["D"][:10])
    return build_features("vgg16", {f"features.{k}": v for k, v in layers.state_dict().items()})
