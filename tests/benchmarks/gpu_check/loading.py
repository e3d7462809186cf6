"""From shards on the local disk through the real loader into training steps."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from typing import Any

import numpy as np
from PIL import Image

from gpu_check.check import Check
from gpu_check.training import ONLY_STEPS, loop_over, run_out
from percmae.config import Config
from percmae.data.batch import Batch
from percmae.data.sample import make_sample_archives
from percmae.data.shards import Dataset
from percmae.data.stream import Loader
from percmae.engine.distributed import World
from percmae.engine.loaders import train_loader
from percmae.ingest import ingest

PHOTOS, DIFFERENT = 2000, 200
WARM = 4  # batches that are not counted
LOADING, TRAINING = 8.0, 15.0  # seconds


def shards(check: Check) -> None:
    """Photo-like JPEGs of 500 × 375 pixels and about 100 kB, ingested as ImageNet is."""
    photos, different = (60, 6) if check.tiny else (PHOTOS, DIFFERENT)
    root = check.scratch / "photos"
    rng = np.random.default_rng(0)
    sizes = []
    for number in range(different):
        first = root / "images" / f"class {number % 4}" / f"{number}.jpg"
        first.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_photo(rng)).save(first, "JPEG", quality=90)
        sizes.append(first.stat().st_size)
        for copy in range(1, photos // different):
            os.link(first, first.with_name(f"{number}-{copy}.jpg"))
    a = make_sample_archives(str(root / "archives"), str(root / "images"))
    ingest(**a.uris(), to=str(root / "dataset"))
    check.write("shards", photos=photos, mean_kb=sum(sizes) / len(sizes) / 1000)


def _photo(rng: np.random.Generator) -> np.ndarray:
    """Shades and texture from coarse to fine, (375, 500, 3) uint8."""
    image = np.zeros((375, 500, 3))
    for cells, strength in ((4, 60.0), (16, 30.0), (64, 18.0), (250, 10.0)):
        coarse = rng.normal(0, strength, (cells, cells, 3))
        rows, columns = (np.arange(n) * cells // n for n in (375, 500))
        image += coarse[rows][:, columns]
    return np.clip(image + rng.normal(128, 6, image.shape), 0, 255).astype(np.uint8)


class Timed:
    """A loader whose batches are counted until a time is over; and how long each was waited for."""

    def __init__(self, loader: Loader, seconds: float) -> None:
        self.split, self._loader, self._seconds = loader.split, loader, seconds
        self.waited = self.lasted = 0.0
        self.count = 0

    def batches(self, *place: Any, **more: Any) -> Generator[tuple[int, int, Batch], None, None]:
        inner = self._loader.batches(*place, **more)
        try:
            for number, item in enumerate(self._clocked(inner)):
                if number == WARM:
                    self.waited, began = 0.0, time.perf_counter()
                elif number > WARM:
                    self.count += 1
                    self.lasted = time.perf_counter() - began
                    if self.lasted > self._seconds:
                        return
                yield item
        finally:
            inner.close()

    def _clocked(self, inner: Any) -> Any:
        while True:
            began = time.perf_counter()
            item = next(inner)
            self.waited += time.perf_counter() - began
            yield item


def run(check: Check) -> None:
    dataset = Dataset.open(str(check.scratch / "photos" / "dataset" / "manifest.json"))
    workers = max(1, (os.cpu_count() or 1) - 1)
    config = check.config(
        "mae",
        "base",
        *ONLY_STEPS,
        "trainer.precision=bf16",
        f"data.workers={workers}",
        f"data.batch_size={check.batch(256)}",
    )
    world = World(0, 1, check.device)
    alone = Timed(train_loader(config, dataset, world), 1 if check.tiny else LOADING)
    for _ in alone.batches(0, 0, epochs=None):
        pass
    common = {"workers": workers, "batch": config.data.batch_size}
    check.write("loader alone", **common, images_per_second=_rate(alone, config))
    both = Timed(train_loader(config, dataset, world), 1 if check.tiny else TRAINING)
    folder = check.scratch / "loading"
    run_out(loop_over(config, both, len(both.split), check.device, folder))
    check.write(
        "loader to step",
        **common,
        images_per_second=_rate(both, config),
        waiting_share=both.waited / both.lasted,
    )


def _rate(timed: Timed, config: Config) -> float:
    return timed.count * config.data.batch_size / timed.lasted
