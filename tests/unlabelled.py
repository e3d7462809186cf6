"""Small datasets for tests, with labels, without, or with some: the one place that writes them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from percmae.data.shard_writer import ShardWriter
from percmae.data.shards import (
    FORMAT,
    MANIFEST,
    SPLITS,
    UNLABELLED,
    ClassInfo,
    Dataset,
    ShardInfo,
    content_digest,
)
from percmae.storage import StorePath


def pattern(kind: int, seed: int, side: int = 32) -> Image.Image:
    """Waves in one of some directions, at a random place: images of a kind look alike."""
    rng = np.random.default_rng([kind, seed])
    y, x = np.mgrid[0:side, 0:side] / side
    angle = kind * np.pi / 5
    waves = np.sin(2 * np.pi * (3 * (x * np.cos(angle) + y * np.sin(angle)) + rng.random()))
    colour = np.array([[0.2, 0.5, 0.9], [0.9, 0.4, 0.2], [0.3, 0.8, 0.3]])[kind % 3]
    pixels = (0.5 + 0.4 * waves[..., None] * colour + 0.05 * rng.normal(size=(side, side, 3))) * 255
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_dataset(
    folder: Path | str,
    labels: Sequence[int] = (UNLABELLED,) * 60,
    test: Sequence[int] = (UNLABELLED,) * 12,
    wnids: Sequence[str] = (),
    first: int = 0,
    name: str = "patterns",
) -> Dataset:
    """Ingested images, an image for each of the labels.

    labels, test: of the training and test images, in the order in which they are stored; every
    tenth of the first is held out for validation. wnids: the classes; first: seed of the first
    image, so that datasets differ.
    """
    root = StorePath(folder)
    numbered = list(enumerate(labels, first))
    images = {
        "train": [pair for n, pair in enumerate(numbered) if n % 10 != 9],
        "val": [pair for n, pair in enumerate(numbered) if n % 10 == 9],
        "test": list(enumerate(test, first + 10_000)),
    }
    shards = {}
    for split, chosen in images.items():
        with ShardWriter(root / split, f"{split}-000000") as writer:
            for seed, label in chosen:
                buffer = io.BytesIO()
                pattern(seed % 5 if label == UNLABELLED else label, seed).save(buffer, "JPEG")
                writer.add(f"image_{seed:07d}", buffer.getvalue(), label)
            shards[split] = [writer.finish()]
    classes = [ClassInfo(wnid, f"thing {wnid}") for wnid in wnids]
    none: dict[str, list[ShardInfo]] = {split: [] for split in SPLITS}
    manifest = {
        "format": FORMAT,
        "name": name,
        "digest": content_digest(classes, shards, none),
        "classes": [vars(info) for info in classes],
        "formats": ["JPEG"],
        "pixels": {"mean": [round(0.4 + first / 2e7, 4)] * 3, "std": [0.3] * 3},
        "splits": {k: {"shards": [info.to_json() for info in v]} for k, v in shards.items()},
    }
    (root / MANIFEST).write_json(manifest)
    return Dataset.open((root / MANIFEST).uri)
