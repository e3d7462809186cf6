"""``percmae bench step``: a training step of each variant, side by side in one run.

The rounds go through all contenders in turn, so that a machine that slows down slows them all; a
contender's time is the median of its rounds. The floor is what the machine's own matrix product,
measured in the same rounds, would need for the FLOPs of the masked autoencoder's step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from percmae import __version__
from percmae.bench.contenders import (
    Contender,
    build,
    check_variants,
    config_for,
    contenders,
)
from percmae.bench.flops import counted_flops, mae_flops, matmul_rate, timed
from percmae.engine.memory import keep_freed_memory
from percmae.errors import PercmaeError, UserError
from percmae.progress import note

FORMAT = "percmae-bench-step/1"
COUNTED = 2  # images of the step whose FLOPs are counted


def bench(
    sizes: Sequence[str] = ("base", "tiny"),
    variants: list[str] | None = None,
    batch: int | None = None,
    rounds: int = 3,
    precision: str = "auto",
    compiled: bool = False,
    memory: bool = True,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure and return the document that ``--json`` prints.

    sizes, variants: names of presets (None: all variants); batch: images a step; rounds: timed
    steps of each contender; compiled: measure torch.compile too; memory: measure each contender's
    peak memory in a process of its own; overrides: ``key=value`` settings. Raises UserError for
    numbers below 1, ConfigError for unknown names.
    """
    if rounds < 1 or (batch is not None and batch < 1):
        raise UserError(f"--rounds {rounds}, --batch {batch}: give whole numbers from 1")
    chosen = list(contenders(check_variants(variants), compiled))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    batch = batch or (64 if device.type == "cuda" else 16)
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    options = {"batch": batch, "precision": precision, "overrides": list(overrides)}
    return {
        "format": FORMAT,
        "version": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        **options,
        "sizes": [_size(size, chosen, device, rounds, memory, options) for size in sizes],
    }


def _size(
    size: str,
    chosen: list[Contender],
    device: torch.device,
    rounds: int,
    memory: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    batch, precision = options["batch"], options["precision"]
    configs = [config_for(c, size, precision, options["overrides"]) for c in chosen]
    rows: list[dict[str, Any]] = []
    steps = []
    for contender, config in zip(chosen, configs, strict=True):
        note(f"{size}: {contender.name}: building, counting, warming up")
        row: dict[str, Any] = {"name": contender.name}
        if contender.variant and not contender.compiled:
            few = build(contender, config, COUNTED, device)
            row["gflop_per_image"] = counted_flops(few) / COUNTED / 1e9
            del few
        row["peak_memory_gib"] = _peak(contender, size, options, device) if memory else None
        steps.append(build(contender, config, batch, device))
        timed(steps[-1], device)
        rows.append(row)
    times: list[list[float]] = [[] for _ in rows]
    rates = []
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for number in range(rounds):
        note(f"{size}: round {number + 1} of {rounds}")
        rates.append(matmul_rate(device, dtype))
        for step, taken in zip(steps, times, strict=True):
            taken.append(timed(step, device))
        rates.append(matmul_rate(device, dtype))
    rate = statistics.median(rates)
    flops = mae_flops(configs[0])
    floor = flops * batch / rate
    first = statistics.median(times[0])
    for row, taken in zip(rows, times, strict=True):
        seconds = statistics.median(taken)
        row.update(
            seconds=seconds,
            fastest=min(taken),
            slowest=max(taken),
            images_per_second=batch / seconds,
            ratio_to_mae=seconds / first,
        )
    return {
        "size": size,
        "image_size": configs[0].data.image_size,
        "matmul_gflops": rate / 1e9,
        "mae_gflop_per_image": flops / 1e9,
        "floor_seconds": floor,
        "mae_share_of_floor": floor / first,
        "rows": rows,
    }


def _peak(
    contender: Contender, size: str, options: dict[str, Any], device: torch.device
) -> float | None:
    """Peak memory in GiB of two steps in a process of their own: the device's, or resident."""
    request = json.dumps({"name": contender.name, "size": size, **options})
    child = subprocess.run(
        [sys.executable, "-m", "percmae.bench.step", request],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise PercmaeError(f"bench step: measuring the memory of {contender.name} failed: {reason}")
    return float(child.stdout.splitlines()[-1])


def _measure_memory(request: dict[str, Any]) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = contenders(check_variants(None), compiled=True)
    contender = next(c for c in known if c.name == request["name"])
    config = config_for(contender, request["size"], request["precision"], request["overrides"])
    step = build(contender, config, request["batch"], device)
    step()
    step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return _resident_peak()


def _resident_peak() -> float:
    """Most memory in GiB that this program has held (getrusage would count its parent's too)."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise UserError("peak memory is read from /proc, which this system lacks; use --no-memory")
    (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM:")]
    return int(line.split()[1]) / 2**20


def table(document: dict[str, Any]) -> str:
    """The document as text for a terminal."""
    lines = [
        f"a training step of {document['batch']} images, {document['precision']}, on "
        f"{document['device']} ({document['threads']} threads), torch {document['torch']}; "
        f"median of {document['rounds']}"
    ]
    for size in document["sizes"]:
        lines += [
            "",
            f"{size['size']}, {size['image_size']} px: {size['mae_gflop_per_image']:.1f} GFLOP an "
            f"image for mae, {size['matmul_gflops']:.0f} GFLOP/s in a matrix product: floor "
            f"{size['floor_seconds']:.3f} s, mae at {size['mae_share_of_floor']:.0%} of it",
            f"{'':32}{'seconds':>9}{'img/s':>9}{'x mae':>8}{'GFLOP':>9}{'peak GiB':>10}",
        ]
        for row in size["rows"]:
            flops, peak = row.get("gflop_per_image"), row["peak_memory_gib"]
            lines.append(
                f"{row['name']:32}{row['seconds']:9.3f}{row['images_per_second']:9.2f}"
                f"{row['ratio_to_mae']:8.2f}{'' if flops is None else f'{flops:.1f}':>9}"
                f"{'' if peak is None else f'{peak:.2f}':>10}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(_measure_memory(json.loads(sys.argv[1])))
