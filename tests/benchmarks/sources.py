"""Seconds of one core, and memory, that it takes to list sources of many images.

    python tests/benchmarks/sources.py [--images 100000] [--s3] [KIND …]

Images are a few bytes in folders and tables and ``--bytes`` in archives, which are never read. With
``--s3`` they lie on the embedded server. Each kind is listed in a process of its own, whose peak
memory is told beside that of a process that lists three images.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from percmae.ingest.catalogue import Wanted
from percmae.ingest.sources import open_source
from percmae.local_store import server as local_store
from percmae.storage import StorePath

KINDS = ("folder", "tar", "zip", "webdataset", "table")


def names(images: int) -> list[str]:
    return [f"class_{n % 100:03d}/photograph_{n:08d}.jpg" for n in range(images)]


def make(kind: str, root: StorePath, images: int, size: int) -> str:
    body = bytes(size)
    if kind in ("folder", "table"):
        for name in names(images):
            if root.is_s3:
                (root / "in" / name).write_bytes(b"x")
            else:  # without the fsync, which takes longer than all else
                path = Path(root.uri, "in", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
        if kind == "folder":
            return f"{root}/in"
        rows = "".join(f"in/{name},{name[:9]}\n" for name in names(images))
        (root / "t.csv").write_text(f"uri,label\n{rows}")
        return f"{root}/t.csv"
    ending = "zip" if kind == "zip" else "tar"
    with (root / f"images.{ending}").create() as out:
        if kind == "zip":
            with zipfile.ZipFile(out, "w") as archive:
                for name in names(images):
                    archive.writestr(name, body)
        else:
            with tarfile.open(fileobj=out, mode="w|") as tar:
                for n, name in enumerate(names(images)):
                    add(tar, name, body)
                    if kind == "webdataset":
                        add(tar, f"{name[:-4]}.cls", str(n % 100).encode())
    return f"{root}/images.{ending}"


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def measure(uri: str) -> None:
    """What the child process prints: seconds of its processor, images, peak MiB."""
    start = time.process_time()
    catalogue = open_source(uri, Wanted())
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds:.2f} {len(catalogue.columns.keys)} {peak:.0f}")


def listed(uri: str) -> tuple[float, int, float]:
    command = [sys.executable, __file__, "--measure", uri]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, images, peak = done.stdout.split()
    return float(seconds), int(images), float(peak)


def run(root: StorePath, args: argparse.Namespace) -> None:
    for kind in args.kinds or KINDS:
        small = listed(make(kind, root / kind / "small", 3, args.bytes))[2]
        uri = make(kind, root / kind / "large", args.images, args.bytes)
        seconds, images, peak = listed(uri)
        each = (peak - small) * 2**20 / images
        print(
            f"{kind:<12}{images:>10,} images {seconds:7.2f} s  {images / seconds:>9,.0f}/s  "
            f"peak {peak:5.0f} MiB, of which the list {peak - small:5.0f} ({each:.0f} bytes each)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=4_000)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--measure", metavar="URI")
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        if not args.s3:
            run(StorePath(folder), args)
            return
        with local_store.running(Path(folder), bucket="sources") as store:
            os.environ.update(store.environ)
            run(StorePath("s3://sources/x"), args)


if __name__ == "__main__":
    main()
