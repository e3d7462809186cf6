"""Ingest against what the store alone takes: the same photos, the same embedded S3 server.

    python tests/benchmarks/ingest.py [--photos 3000] [--rounds 3]

Photos of 500 × 375 pixels lie in one tar in the store. Measured in turn: that tar read once from
front to back and put to another key, by one process; and ingested with one worker and with two.
Prints seconds, MB/s and ratios of the best of each, CPU time, and the peak memory of a process.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from percmae.ingest import ingest
from percmae.local_store.server import running
from percmae.storage import StorePath

PIECE = 4 << 20
DIFFERENT = 300  # photos that are drawn; the rest are copies of them under other names


SHARD = 4 << 20  # bytes, so that there are many to share out


def made(source: StorePath, to: str, workers: int) -> object:
    return ingest(images=source.uri, to=to, workers=workers, shard_size=SHARD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch)) as store:
        os.environ.update(store.environ)
        source = StorePath(f"{store.uri}/photos.tar")
        source.write_bytes(photos(options.photos))
        size = source.stat().size
        sides: dict[str, Callable[[int], object]] = {
            "read and put": lambda n: copy(source, StorePath(f"{store.uri}/copy-{n}.tar")),
            "1 worker": lambda n: made(source, f"{store.uri}/one-{n}", 1),
            "2 workers": lambda n: made(source, f"{store.uri}/two-{n}", 2),
        }
        # Turn by turn, each in a process of its own, so that whatever else goes on meets all.
        found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for n in range(options.rounds):
            for name, work in sides.items():
                found[name].append(measured(work, n))
    print(f"{options.photos:,} photos, {size / 1e6:,.0f} MB, best of {options.rounds}:")
    best = {name: min(runs, key=lambda run: run["seconds"]) for name, runs in found.items()}
    for name, run in best.items():
        print(
            f"  {name:13}{run['seconds']:7.1f} s {size / 1e6 / run['seconds']:7.0f} MB/s "
            f"{run['cpu']:7.1f} s CPU {run['peak']:6.0f} MB peak of one process"
        )
    seconds = {name: run["seconds"] for name, run in best.items()}
    print(f"  1 worker / read and put: {seconds['1 worker'] / seconds['read and put']:.2f}")
    print(f"  1 worker / 2 workers:    {seconds['1 worker'] / seconds['2 workers']:.2f}")


def photos(count: int) -> bytes:
    """A tar of class folders with JPEGs of about 50 KB: smooth pictures with some noise."""
    rng = np.random.default_rng(0)
    different = []
    for _ in range(min(count, DIFFERENT)):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        pixels = (smooth + rng.normal(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
        different.append(buffer.getvalue())
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for n in range(count):
            data = different[n % len(different)]
            header = tarfile.TarInfo(f"class-{n % 10}/{n:06d}.jpg")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return whole.getvalue()


def copy(source: StorePath, target: StorePath) -> None:
    with source.open() as file, target.create() as out:
        while piece := file.read(PIECE):
            out.write(piece)


def measured(work: Callable[[int], object], n: int) -> dict[str, float]:
    """Seconds, CPU seconds and the peak of the largest process in MB, of the work in a fork."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        began = time.perf_counter()
        work(n)
        seconds = time.perf_counter() - began
        used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu = sum(of.ru_utime + of.ru_stime for of in used)
        peak = max(of.ru_maxrss for of in used) / 1024
        os.write(writer, json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak}).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        values: dict[str, float] = json.loads(told.read())
    return values


if __name__ == "__main__":
    main()
