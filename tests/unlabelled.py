"""Small datasets for tests, with labels, without, or with some: the one place that writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from percmae.data.checked import statistics
from percmae.data.shard_writer import ShardWriter
from percmae.data.shards import FORMAT, UNLABELLED, ClassInfo, Dataset, content_digest
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

    labels, test: of the training and test images, in the order in which they are stored; wnids: the
    classes; first: seed of the first image, so that datasets differ.
    """
    root = StorePath(folder)
    shards = {}
    for split, of_images in (("train", labels), ("test", test)):
        with ShardWriter(root / split, f"{split}-000000") as writer:
            for number, label in enumerate(of_images):
                buffer = io.BytesIO()
                kind = number % 5 if label == UNLABELLED else label
                offset = first + number + (10_000 if split == "test" else 0)
                pattern(kind, offset).save(buffer, "JPEG", quality=90)
                writer.add(f"image_{offset:06d}", buffer.getvalue(), label)
            shards[split] = [writer.finish()]
    classes = [ClassInfo(wnid, f"thing {wnid}") for wnid in wnids]
    moments = [[0.4 + 0.001 * first] * 3, [0.25] * 3]
    manifest = {
        "format": FORMAT,
        "name": name,
        "digest": content_digest(classes, shards),
        "classes": [vars(info) for info in classes],
        "formats": ["JPEG"],
        "pixels": statistics([x for part in moments for x in part], 1),
        "splits": {k: {"shards": [vars(s) for s in infos]} for k, infos in shards.items()},
    }
    (root / "manifest.json").write_bytes(json.dumps(manifest).encode())
    return Dataset.open((root / "manifest.json").uri)
