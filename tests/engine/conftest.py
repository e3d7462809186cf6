"""A tiny config for tests that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from fixtures_data import TINY

from percmae.config import Config, config_from_dict, load_config, to_dict
from percmae.config.load import stages_of

# The multi-scale networks need a decoder block a scale, and an encoder map for each.
DEEP = ["model.encoder.depth=3", "model.decoder.depth=3", "discriminator.width=16"]


def tiny_overrides(variant: str) -> list[str]:
    """The smallest network of a variant."""
    return [*TINY, *(DEEP if variant in ("msg_gan", "stylegan2_ada") else ())]


def changed(config: Config, *overrides: str) -> Config:
    """The config with settings changed, those of other stages too, which a command refuses."""
    values = to_dict(config)
    for override in overrides:
        key, _, text = override.partition("=")
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[name] = yaml.safe_load(text)
    return config_from_dict(values)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """``tiny("optim.epochs=1", variant="ssim")``: a config of the tiny network."""

    def make(
        *overrides: str, variant: str = "mae", stage: str = "pretrain", tag: str = "t"
    ) -> Config:
        small = [s for s in tiny_overrides(variant) if stage in stages_of(s.partition("=")[0])]
        return load_config(variant, "demo", stage, overrides=[*small, *overrides], tag=tag)

    return make
