"""Images per second of one core: our loader against the webdataset package, the same work in both.

    python tests/benchmarks/loader.py [manifest URI] [--size 32] [--seconds 10] [--workers 0]

Without a manifest, the default sample is made and ingested first. Both sides read the same shards,
decode with PIL, apply the same transform and make batches of 64. webdataset reads its shards from
front to back and shuffles through a buffer of 4,096 samples; it cannot resume, and its order
depends on the number of workers. Prints both rates and their ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable

import torch
import webdataset

from percmae.config import load_config
from percmae.data.augment import build_transform
from percmae.data.sample import make_sample_archives
from percmae.data.shards import Dataset, Split
from percmae.data.stream import ImageTransform, Loader
from percmae.ingest import ingest

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", nargs="?", help="default: the mnist sample, made here")
    parser.add_argument("--size", type=int, default=32, help="image side in pixels")
    parser.add_argument("--seconds", type=float, default=10, help="of measuring each side")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        split = Dataset.open(options.manifest or make_sample(scratch)).split("train")
        transform = build_transform(load_config().data.augment, options.size, True, "pretrain")
        sides = {
            "percmae": lambda: ours(split, transform, options.workers),
            "webdataset": lambda: theirs(split, transform, options.workers),
        }
        # Turn by turn, so that whatever else the machine does meets both.
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(3):
            for name, start in sides.items():
                rates[name].append(measure(start(), options.seconds / 3))
    best = {name: max(found) for name, found in rates.items()}
    print(f"{options.size} px, {options.workers} workers, {len(split):,} samples, best of 3:")
    for name, rate in best.items():
        print(f"  {name:10} {rate:8.0f} img/s")
    print(f"  ratio      {best['percmae'] / best['webdataset']:8.2f}")


def make_sample(folder: str) -> str:
    a = make_sample_archives(f"{folder}/archives", "mnist")
    return ingest(**a.uris(), to=f"{folder}/dataset").manifest_uri


def ours(split: Split, transform: ImageTransform, workers: int) -> Iterable[int]:
    loader = Loader(
        split,
        transform,
        batch_size=BATCH,
        seed=0,
        shuffle=True,
        drop_last=True,
        workers=workers,
    )
    for _, _, batch in loader.batches(epochs=None):
        yield len(batch.ids)


def theirs(split: Split, transform: ImageTransform, workers: int) -> Iterable[int]:
    dataset = (
        webdataset.WebDataset(
            [shard.uri for shard in split.shards], shardshuffle=False, empty_check=False
        )
        .shuffle(4096)
        .decode("pil")
        .to_tuple("jpg", "cls", "__key__")
        .map_tuple(transform)
        .batched(BATCH, partial=False)
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        for images, _, _ in loader:
            yield len(images)


def measure(batches: Iterable[int], seconds: float) -> float:
    """Images a second, from the second batch on."""
    iterator = iter(batches)
    next(iterator)
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        count += next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    return count / passed


if __name__ == "__main__":
    main()
