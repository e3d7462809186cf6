"""What machine this is, and how fast it multiplies and copies (random data, best of several)."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from gpu_check.check import Check
from percmae.bench.flops import timed

PACKAGES = ("torch", "torchvision", "timm", "transformers", "triton", "numpy", "pydantic", "pillow")


def run(check: Check) -> None:
    device = check.device
    check.write("environment", **_machine(device))
    rates = {"bf16": _rate(check, torch.bfloat16), "fp32": _rate(check, torch.float32)}
    torch.set_float32_matmul_precision("high")
    rates["tf32"] = _rate(check, torch.float32)
    check.write("rates", **rates, copy_gb_per_s=_copy_rate(device, check.tiny))


def _machine(device: torch.device) -> dict[str, object]:
    found: dict[str, object] = {"cpus": os.cpu_count(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        found |= {
            "card": properties.name,
            "memory_gib": properties.total_memory / 2**30,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver and power limit": answer.stdout.strip(),
        }
    return found


def _rate(check: Check, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product."""
    return check.matmul_rate(dtype) / 1e12


def _copy_rate(device: torch.device, tiny: bool) -> float:
    """GB/s of a copy on the device, bytes read and written."""
    source = torch.randn((1 << 22) if tiny else (1 << 30), device=device)
    target = torch.empty_like(source)
    best = min(timed(lambda: target.copy_(source), device) for _ in range(6))
    return 2 * source.nbytes / best / 1e9
