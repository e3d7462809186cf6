"""``percmae bench step``: a training step of each variant, side by side in one run.

The rounds go through all contenders in turn, so that a machine that slows down slows them all. Each
measurement is a process of its own: it warms up, times some steps and tells its peak memory, and no
contender finds the memory that another one has left. A contender's time is the median over the
rounds. The floor is what the machine's own matrix product, measured in the same processes, would
need for the FLOPs of the masked autoencoder's step.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch

from percmae import __version__
from percmae.bench.child import answer_of
from percmae.bench.contenders import (
    Contender,
    build,
    check_variants,
    config_for,
    contenders,
)
from percmae.bench.flops import counted_flops, mae_flops, matmul_rate, timed
from percmae.bench.memory import resident_peak
from percmae.errors import UserError
from percmae.memory import keep_freed_memory
from percmae.progress import note

FORMAT = "percmae-bench-step/1"
COUNTED = 2  # images of the step whose FLOPs are counted
ENOUGH = 2.0  # seconds: steps are timed until they add up to this


def bench(
    sizes: Sequence[str] = ("base", "tiny"),
    variants: list[str] | None = None,
    batch: int | None = None,
    rounds: int = 3,
    precision: str = "auto",
    compiled: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure and return the document that ``--json`` prints.

    sizes, variants: names of presets (None: all variants); batch: images a step; rounds: how many
    times each contender is measured; compiled: measure torch.compile too; overrides: ``key=value``
    settings. Raises UserError for numbers below 1, ConfigError for unknown names, PercmaeError when
    a measurement fails (out of memory, say).
    """
    if rounds < 1 or (batch is not None and batch < 1):
        raise UserError(f"--rounds {rounds}, --batch {batch}: give whole numbers from 1")
    chosen = list(contenders(check_variants(variants), compiled))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        "sizes": [_size(size, chosen, rounds, options) for size in sizes],
    }


def _size(
    size: str, chosen: list[Contender], rounds: int, options: dict[str, Any]
) -> dict[str, Any]:
    for contender in chosen:  # what cannot be built is refused before anything is measured
        config_for(contender, size, options["precision"], options["overrides"])
    found: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in chosen}
    for number in range(rounds):
        for contender in chosen:
            note(f"{size}, round {number + 1} of {rounds}: {contender.name}")
            count = number == 0 and bool(contender.variant) and not contender.compiled
            request = {"name": contender.name, "size": size, "count": count, **options}
            found[contender.name].append(_in_a_process(request))
    config = config_for(chosen[0], size, options["precision"], options["overrides"])
    flops = mae_flops(config)
    rate = statistics.median(x["rate"] for results in found.values() for x in results)
    first = statistics.median(x["seconds"] for x in found[chosen[0].name])
    floor = flops * options["batch"] / rate
    return {
        "size": size,
        "image_size": config.data.image_size,
        "matmul_gflops": rate / 1e9,
        "mae_gflop_per_image": flops / 1e9,
        "floor_seconds": floor,
        "mae_share_of_floor": floor / first,
        "rows": [_row(name, results, options["batch"], first) for name, results in found.items()],
    }


def _row(name: str, results: list[dict[str, Any]], batch: int, first: float) -> dict[str, Any]:
    times = [x["seconds"] for x in results]
    seconds = statistics.median(times)
    return {
        "name": name,
        "seconds": seconds,
        "fastest": min(times),
        "slowest": max(times),
        "images_per_second": batch / seconds,
        "ratio_to_mae": seconds / first,
        "gflop_per_image": results[0]["gflop_per_image"],
        "peak_memory_gib": max(x["peak"] for x in results),
    }


def _in_a_process(request: dict[str, Any]) -> dict[str, Any]:
    what = f"bench step: {request['name']} at size {request['size']}"
    advice = "; a smaller --batch may help"
    return answer_of("percmae.bench.step", request, torch.get_num_threads(), what, advice)


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    """One measurement of one contender, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = contenders(check_variants(None), compiled=True)
    contender = next(c for c in known if c.name == request["name"])
    if device.type == "cpu" and contender.variant:
        keep_freed_memory()  # as our training does; another's code runs as it comes
    config = config_for(contender, request["size"], request["precision"], request["overrides"])
    flops = None
    if request["count"]:
        flops = counted_flops(build(contender, config, COUNTED, device)) / COUNTED / 1e9
    dtype = torch.bfloat16 if request["precision"] == "bf16" else torch.float32
    rate = matmul_rate(device, dtype)
    step = build(contender, config, request["batch"], device)
    for _ in range(2):  # the second has the optimisers' state
        timed(step, device)
    times: list[float] = []
    while sum(times) < ENOUGH:
        times.append(timed(step, device))
    on_gpu = device.type == "cuda"
    return {
        "seconds": statistics.median(times),
        "rate": max(rate, matmul_rate(device, dtype)),
        "peak": torch.cuda.max_memory_allocated(device) / 2**30
        if on_gpu
        else resident_peak() / 2**30,
        "gflop_per_image": flops,
    }


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
            flops = row["gflop_per_image"]
            lines.append(
                f"{row['name']:32}{row['seconds']:9.3f}{row['images_per_second']:9.2f}"
                f"{row['ratio_to_mae']:8.2f}{'' if flops is None else f'{flops:.1f}':>9}"
                f"{row['peak_memory_gib']:10.2f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
