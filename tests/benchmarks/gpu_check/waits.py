"""Where a training loop waits for the device, and the device for the loop.

The loop is the real one; its batches come from memory. Ten of its steps are profiled; in others
PyTorch tells of each call that waits.
"""

from __future__ import annotations

import gzip
import json
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

import percmae
from gpu_check.check import Check, settle
from gpu_check.settings import LOOPS, compiling
from gpu_check.speed import plain_compiler
from gpu_check.training import ONLY_STEPS, Batches, loop_over, run_out
from percmae.losses.ada import DRAWS
from percmae.losses.draws import Draws

WARM, SPOKEN, PROFILED, TIMED = 5, 5, 10, 20  # steps, one after the other
WAITING = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
OURS = str(Path(percmae.__file__).parent)
DRAWN = 256  # images whose random numbers are timed


def run(check: Check) -> None:
    settings, device = LOOPS[check.name], check.device
    plain_compiler(check)
    config = check.config(
        settings.variant,
        "base",
        *ONLY_STEPS,
        "trainer.precision=bf16",
        *compiling(settings.compiled, check.tiny),
        f"data.batch_size={check.batch(settings.batch)}",
    )
    watch = Watch(device, check.scratch / f"trace-{settings.variant}-{settings.compiled}.json")
    batches = Batches(config, device, watch.before())
    folder = check.scratch / f"loop-{settings.variant}-{settings.compiled}"
    run_out(loop_over(config, batches, 10_000_000, device, folder))
    found = traced(json.loads(watch.trace.read_text()))
    packed = check.rows.parent.parent / f"{watch.trace.name}.gz"
    packed.write_bytes(gzip.compress(watch.trace.read_bytes(), 6))
    check.write(
        "waits",
        batch=config.data.batch_size,
        images_per_second=config.data.batch_size / watch.seconds,
        host_seconds=watch.host,
        waiting_calls=found.pop("waiting"),
        told=[f"{place} ({n / SPOKEN:g} a step)" for place, n in watch.places.most_common(8)],
        told_calls=sum(watch.places.values()) / SPOKEN,
        **found,
    )
    if check.name == next(iter(LOOPS)):
        _draws(check, config.data.image_size)


class Watch:
    """What is measured between the steps of a loop.

    places: lines of ours that waited for the device, as PyTorch tells, over SPOKEN steps; seconds:
    of a step; host: until it was given to the device, both without a profiler.
    """

    def __init__(self, device: torch.device, trace: Path) -> None:
        self.device, self.trace = device, trace
        self.places: Counter[str] = Counter()
        self.seconds = self.host = 0.0
        on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *on_gpu])
        self._steps = record_function("checked steps")
        self._began = 0.0
        self._warned: Any = None

    def before(self) -> dict[int, Callable[[], None]]:
        """Actions by the number of the step they come before."""
        spoken = WARM + SPOKEN
        profiled = spoken + PROFILED
        return {
            WARM: self._listen,
            spoken: self._start_profile,
            profiled: self._start_clock,
            profiled + TIMED: self._stop_clock,
        }

    def _listen(self) -> None:
        settle(self.device)
        self._warned = warnings.catch_warnings()
        self._warned.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._heard
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")

    def _heard(self, message: Any, *rest: Any, **more: Any) -> None:
        if "synchronizing CUDA" not in str(message):
            return
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(OURS)]
        at = frames[-1] if frames else traceback.extract_stack()[-3]
        self.places[f"{Path(at.filename).name}:{at.lineno} {at.name}"] += 1

    def _start_profile(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        self._warned.__exit__(None, None, None)
        settle(self.device)
        self._profile.start()
        self._steps.__enter__()

    def _start_clock(self) -> None:
        self._steps.__exit__(None, None, None)
        settle(self.device)
        self._profile.stop()
        self._profile.export_chrome_trace(str(self.trace))
        settle(self.device)
        self._began = time.perf_counter()

    def _stop_clock(self) -> None:
        self.host = (time.perf_counter() - self._began) / TIMED
        settle(self.device)
        self.seconds = (time.perf_counter() - self._began) / TIMED


def traced(trace: dict[str, Any]) -> dict[str, Any]:
    """What a profile says of its steps.

    waiting: calls a step that wait for the device; kernels: started a step; idle_share: of the time
    between the first kernel and the end of the last, in which none ran; gaps: a step, of more than
    20 µs, and longest_gap_us; dearest: kernels (name, share of the busy time, calls a step).
    """
    events = [e for e in trace["traceEvents"] if e.get("ph") == "X"]
    (steps,) = [
        e for e in events if e["name"] == "checked steps" and e.get("cat") == "user_annotation"
    ]
    calls = Counter(
        e["name"]
        for e in events
        if e.get("cat") == "cuda_runtime"
        and e["name"] in WAITING
        and steps["ts"] <= e["ts"] <= steps["ts"] + steps["dur"]
    )
    device = sorted(
        (e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e.get("cat") in ON_DEVICE
    )
    # Without a GPU the operations of the CPU stand in, so that all of this is tried.
    device = device or sorted(
        (e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e.get("cat") == "cpu_op"
    )
    gaps, end = [], device[0][0]
    for start, stop, _ in device:
        if start > end:
            gaps.append(start - end)
        end = max(end, stop)
    whole = end - device[0][0]
    spent: Counter[str] = Counter()
    for start, stop, name in device:
        spent[name] += stop - start
    times = Counter(name for _, _, name in device)
    busy = sum(spent.values())
    return {
        "waiting": {name: count / PROFILED for name, count in calls.items()},
        "kernels": len(device) / PROFILED,
        "profiled_seconds": whole / PROFILED / 1e6,
        "idle_share": sum(gaps) / whole,
        "gaps": sum(gap > 20 for gap in gaps) / PROFILED,
        "longest_gap_us": max(gaps, default=0.0),
        "dearest": [
            {"name": name[:110], "share": time / busy, "calls": times[name] / PROFILED}
            for name, time in spent.most_common(5)
        ],
    }


def _draws(check: Check, size: int) -> None:
    """Milliseconds of the host for the random numbers of a batch, by what they are for."""
    device, patches = check.device, (size // 16) ** 2
    draws = Draws(0, 1, range(DRAWN), device)
    kinds = {
        "masks": lambda: draws.mask_noise(patches),
        "mixing share": lambda: draws.uniform(0),
        "augmentation": lambda: draws.uniform(1, DRAWS),
        "path length": lambda: draws.normal(3, 3, size, size),
    }
    found = {}
    for name, draw in kinds.items():
        draw()
        times = []
        for _ in range(5):
            settle(device)
            began = time.perf_counter()
            draw()
            times.append(time.perf_counter() - began)
        found[name] = 1000 * statistics.median(times)
    check.write("draws", images=DRAWN, milliseconds=found)
