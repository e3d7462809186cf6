"""A pipeline of a few seconds: settings, and images of a few classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TINY = [
    "data.workers=0",
    "trainer.threads=1",
    "data.batch_size=16",
    "optim.epochs=1",
    "optim.warmup_epochs=0",
    "model.encoder.depth=1",
    "model.encoder.width=24",
    "model.encoder.heads=2",
    "model.decoder.depth=1",
    "model.decoder.width=24",
    "model.decoder.heads=2",
]


def write_images(folder: Path, *classes: str, each: int = 40) -> Path:
    """So many small images of each class, one folder a class, each brighter than the one before."""
    random = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir()
        for i in range(each):
            pixels = random.integers(80 * number, 80 * number + 60, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder
