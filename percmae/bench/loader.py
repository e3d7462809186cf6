"""``percmae bench loader``: images a second of ours and of others, side by side in one run.

Each measurement is a process of its own, held to so many cores, that reads the images for the first
time. The rounds go through all in turn, so that whatever else the machine does meets all. What is
compared are images a second of processor time, of the process and its workers, which is what a
machine that is shared still tells truly; images a second by the clock stand beside it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from percmae import __version__
from percmae.bench.child import answer_of, processor
from percmae.bench.loading import (
    BATCH,
    BESIDE,
    CONTENDERS,
    Contender,
    Sources,
    write_mds,
)
from percmae.bench.photos import SIZES, photographs, prepare
from percmae.errors import UserError
from percmae.progress import note
from percmae.storage import StorePath

FORMAT = "percmae-bench-loader/1"
EPOCHS = 3  # of which the first is the one that counts; memory is looked at after each
_LOOK = 0.05  # seconds between two looks at the memory


def bench(
    store: str,
    photos: str | None = None,
    count: int = 1000,
    rounds: int = 3,
    cores: Sequence[int] = (1, 2),
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure and return the document that ``--json`` prints.

    store: URI below which the images are written, and from which they are read. photos: a folder of
    JPEGs (None: what scikit-image ships). count: images of an epoch. cores: on how many each is
    measured. only: names of contenders (None: all that are installed). Raises UserError for numbers
    below 1, unknown names and where there are no photographs, PercmaeError when a measurement
    fails.
    """
    if rounds < 1 or count < BATCH or not cores or min(cores) < 1:
        raise UserError(f"--rounds, --cores: whole numbers from 1; --images: from {BATCH}")
    chosen = _chosen(only)
    images = photographs(photos)
    sizes = []
    with tempfile.TemporaryDirectory(prefix="percmae-bench-") as scratch:
        for number, (name, size) in enumerate(SIZES.items()):
            here, to = Path(scratch) / str(number), f"{store}/{number}"
            files, manifest = prepare(images, size, count, here, f"{to}/dataset")
            sources = Sources(manifest, str(files), f"{to}/mds")
            if any(contender.package == "streaming" for contender in chosen):
                write_mds(files, here / "mds")
                _put(here / "mds", sources.mds)
            mean = statistics.mean(f.stat().st_size for f in files.rglob("*.jpg"))
            rows = _measured(chosen, sources, cores, rounds)
            sizes.append({"size": name, "mean_bytes": round(mean), "rows": rows})
    return {
        "format": FORMAT,
        "version": __version__,
        "torch": torch.__version__,
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores_of_machine": os.cpu_count(),
        "images": count,
        "batch": BATCH,
        "rounds": rounds,
        "absent": [c.name for c in CONTENDERS if not c.installed],
        "sizes": sizes,
    }


def _chosen(only: Sequence[str] | None) -> list[Contender]:
    known = {contender.name: contender for contender in CONTENDERS}
    wrong = [name for name in only or () if name not in known]
    if wrong:
        raise UserError(f"--only {', '.join(wrong)}: choose from {', '.join(known)}")
    absent = [name for name in only or () if not known[name].installed]
    if absent:
        raise UserError(f"--only {', '.join(absent)}: not installed; pip install 'percmae[bench]'")
    chosen = [known[name] for name in only] if only else [c for c in CONTENDERS if c.installed]
    for contender in CONTENDERS:
        if not only and not contender.installed:
            note(f"{contender.name}: not installed, left out")
    return chosen


def _put(folder: Path, uri: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target = StorePath(uri)
            for part in path.relative_to(folder).parts:
                target = target / part
            target.write_file(path)


def _measured(
    chosen: list[Contender], sources: Sources, cores: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number in range(rounds):
        for contender in chosen:
            for many in cores:
                note(f"round {number + 1} of {rounds}: {contender.name} on {many} core(s)")
                request = {"name": contender.name, "cores": many, "sources": vars(sources)}
                what = f"bench loader: {contender.name}"
                answer = answer_of("percmae.bench.loader", request, 1, what)
                found.setdefault((contender.name, many), []).append(answer)
    rows = [_row(name, many, results) for (name, many), results in found.items()]
    for row in rows:
        beside = [r for r in rows if (r["name"], r["cores"]) == (BESIDE, row["cores"])]
        rate = beside[0]["images_per_cpu_second"] if beside else None
        row["ratio"] = None if rate is None else row["images_per_cpu_second"] / rate
    return rows


def _row(name: str, cores: int, results: list[dict[str, Any]]) -> dict[str, Any]:
    def median(key: str) -> float:
        return statistics.median(x[key] for x in results)

    return {
        "name": name,
        "cores": cores,
        "images_per_cpu_second": median("images_per_cpu_second"),
        "images_per_second": median("images_per_second"),
        "first_batch_seconds": median("first_batch_seconds"),
        "peak_memory_mib": [max(x["memory"][e] for x in results) for e in range(EPOCHS)],
    }


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    """One measurement of one contender, in this process.

    With one core it works in this process, with more in as many workers.
    """
    cores = request["cores"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(1)
    contender = next(c for c in CONTENDERS if c.name == request["name"])
    with tempfile.TemporaryDirectory(prefix="percmae-bench-") as scratch, _Memory() as memory:
        workers = 0 if cores == 1 else cores
        began = time.perf_counter()
        epoch = contender.build(Sources(**request["sources"]), workers, Path(scratch))
        peaks, first = [], 0.0
        count, busy, started = 0, _processor_seconds(), time.perf_counter()
        for number in range(EPOCHS):
            for batch in epoch():
                if number == 0:
                    first = first or time.perf_counter() - began
                    count += batch
            if number == 0:
                seconds = time.perf_counter() - started
                busy = _processor_seconds() - busy
            peaks.append(memory.peak)
    return {
        "images_per_cpu_second": count / busy,
        "images_per_second": count / seconds,
        "first_batch_seconds": first,
        "memory": peaks,
    }


def _family() -> list[int]:
    """This process and its children, whatever they were forked by."""
    found, at = [os.getpid()], 0
    while at < len(found):
        for task in Path(f"/proc/{found[at]}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has ended
                continue
        at += 1
    return found


def _processor_seconds() -> float:
    """Of this process, of its children that live, and of those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total, tick = ended.ru_utime + ended.ru_stime + time.process_time(), os.sysconf("SC_CLK_TCK")
    for pid in _family()[1:]:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / tick
    return total


class _Memory:
    """The most memory in MiB that the process and its children have held: their own pages."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_LOOK):
            self.peak = max(self.peak, sum(map(_private_mib, _family())))


def _private_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def table(document: dict[str, Any]) -> str:
    """The document as text for a terminal."""
    lines = [
        f"{document['images']} images in batches of {document['batch']}, "
        f"{document['processor']} ({document['cpu_capability']}), torch {document['torch']}; "
        f"median of {document['rounds']}, the first epoch"
    ]
    for size in document["sizes"]:
        lines += [
            "",
            f"{size['size']}, {size['mean_bytes'] / 1000:.0f} kB each",
            f"{'':30}{'cores':>6}{'img/CPU s':>11}{'x ' + BESIDE:>14}{'img/s':>8}"
            f"{'first s':>9}   MiB, epochs 1 to {EPOCHS}",
        ]
        for row in size["rows"]:
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            memory = " ".join(f"{peak:.0f}" for peak in row["peak_memory_mib"])
            lines.append(
                f"{row['name']:30}{row['cores']:6}{row['images_per_cpu_second']:11.0f}"
                f"{ratio:>14}{row['images_per_second']:8.0f}{row['first_batch_seconds']:9.2f}"
                f"   {memory}"
            )
    if document["absent"]:
        lines += ["", f"not installed: {', '.join(document['absent'])}"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
