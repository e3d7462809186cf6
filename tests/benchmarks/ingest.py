"""Ingest against what the store alone takes: the same photos, the same embedded S3 server.

    python tests/benchmarks/ingest.py [--photos N] [--rounds N] [--sides NAME …] [--shard-size SIZE]

Photos of 500 × 375 pixels lie in one tar in the store. Measured in turn: that tar read once from
front to back and put to another key, by one process; its images looked at, without a store; the tar
ingested with each image fetched on its own; and as it is by default, with one worker and with two.
Prints seconds, MB/s and ratios of the best of each, milliseconds of a core that an image takes here
and in the server, and the peak memory of a process.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from percmae.ingest import ingest
from percmae.ingest.checked import checked
from percmae.ingest.settings import Settings
from percmae.local_store.server import running
from percmae.storage import StorePath

PIECE = 4 << 20
DIFFERENT = 300  # photos that are drawn; the rest are copies of them under other names
PLAIN = "read and put"
SIDES = (PLAIN, "look at images", "one by one", "1 worker", "2 workers")
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--shard-size", default="4M")  # so that there are many to share out
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as store:
        os.environ.update(store.environ)
        source = StorePath(f"{store.uri}/photos.tar")
        images = drawn(min(options.photos, DIFFERENT))
        with source.create() as out:
            write_tar(out, images, options.photos)
        size = source.stat().size

        def made(n: int, workers: int, scratch: int | None = None) -> object:
            to = f"{store.uri}/made-{workers}-{scratch}-{n}"
            more = {"workers": workers, "shard_size": options.shard_size}
            return ingest(images=source.uri, to=to, scratch_size=scratch, **more)

        sides: dict[str, Callable[[int], object]] = {
            PLAIN: lambda n: copy(source, StorePath(f"{store.uri}/copy-{n}.tar")),
            "look at images": lambda n: look(images, options.photos),
            "one by one": lambda n: made(n, 1, scratch=0),
            "1 worker": lambda n: made(n, 1),
            "2 workers": lambda n: made(n, 2),
        }
        # Turn by turn, each in a process of its own, so that whatever else goes on meets all.
        found: dict[str, list[dict[str, float]]] = {name: [] for name in options.sides}
        for n in range(options.rounds):
            for name in options.sides:
                found[name].append(measured(sides[name], n, store.pid))
    print(f"{options.photos:,} photos, {size / 1e6:,.0f} MB, best of {options.rounds}:")
    best = {name: min(runs, key=lambda run: run["seconds"]) for name, runs in found.items()}
    least = {name: min(run["cpu"] for run in runs) for name, runs in found.items()}
    for name, run in best.items():
        plain = best.get(PLAIN, run)["seconds"] / run["seconds"]
        print(
            f"  {name:15}{run['seconds']:7.1f} s {size / 1e6 / run['seconds']:6.0f} MB/s "
            f"({plain:5.2f} of a plain copy); of a core {1e3 * least[name] / options.photos:5.2f} "
            f"ms an image, {1e3 * run['store'] / options.photos:5.2f} of the store's; "
            f"{run['peak']:5.0f} MB peak of one process"
        )


def drawn(count: int) -> list[bytes]:
    """JPEGs of about 40 KB: smooth pictures with some noise."""
    rng = np.random.default_rng(0)
    different = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        pixels = (smooth + rng.normal(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
        different.append(buffer.getvalue())
    return different


def write_tar(out: BinaryIO, images: list[bytes], count: int) -> None:
    """A tar of class folders with so many images, which come again and again."""
    with tarfile.open(fileobj=out, mode="w|") as tar:
        for n, data in zip(range(count), itertools.cycle(images), strict=False):
            header = tarfile.TarInfo(f"class-{n % 10}/{n:06d}.jpg")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def look(images: list[bytes], count: int) -> None:
    """What ingest does with an image beside fetching and storing it."""
    for _, data in zip(range(count), itertools.cycle(images), strict=False):
        assert checked(data, "image", Settings()).fault is None


def copy(source: StorePath, target: StorePath) -> None:
    with source.open() as file, target.create() as out:
        while piece := file.read(PIECE):
            out.write(piece)


def cpu_of(process: int) -> float:
    """Seconds of a core that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measured(work: Callable[[int], object], n: int, store: int) -> dict[str, float]:
    """Of the work in a fork: seconds, CPU seconds, here and of the store's process, and the peak of
    the largest process in MB."""
    before = cpu_of(store)
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
    return values | {"store": cpu_of(store) - before}


if __name__ == "__main__":
    main()
