"""A tiny config for tests that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures_data import TINY

from percmae.config import Config, load_config

# The multi-scale networks need a decoder block a scale, and an encoder map for each.
DEEP = ["model.encoder.depth=3", "model.decoder.depth=3", "discriminator.width=16"]


def tiny_overrides(variant: str) -> list[str]:
    """The smallest network of a variant."""
    return [*TINY, *(DEEP if variant in ("msg_gan", "stylegan2_ada") else ())]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """``tiny("optim.epochs=1", variant="ssim")``: a config of the tiny network."""

    def make(
        *overrides: str, variant: str = "mae", stage: str = "pretrain", tag: str = "t"
    ) -> Config:
        return load_config(
            variant, "demo", stage, overrides=[*tiny_overrides(variant), *overrides], tag=tag
        )

    return make
