"""How much arithmetic a training step is, and how fast a device multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from percmae.config import Config
from percmae.models.mae import CHANNELS


def mae_flops(config: Config) -> float:
    """FLOPs of a masked autoencoder's training step for one image: 3 × forward, 2 a MAC.

    As docs/method.md, "Masked autoencoder" counts (58.7 GFLOP for ViT-B at 224 px): every patch
    embedded, every patch predicted, attention included, nothing for norms and activations.
    """
    model, encoder, decoder = config.model, config.model.encoder, config.model.decoder
    patches = (config.data.image_size // model.patch_size) ** 2
    seen = 1 + int(patches * (1 - model.mask_ratio))
    values = model.patch_size**2 * CHANNELS

    def blocks(depth: int, width: int, mlp_ratio: float, tokens: int) -> float:
        linear = (4 + 2 * mlp_ratio) * width**2 * tokens
        return depth * (linear + 2 * tokens**2 * width)

    macs = (
        patches * values * encoder.width
        + blocks(encoder.depth, encoder.width, encoder.mlp_ratio, seen)
        + seen * encoder.width * decoder.width
        + blocks(decoder.depth, decoder.width, decoder.mlp_ratio, patches + 1)
        + patches * decoder.width * values
    )
    return 3 * 2 * macs


class _Counter(TorchDispatchMode):
    """Adds up the FLOPs of every operation that PyTorch has a formula for.

    (PyTorch's own FlopCounterMode follows modules too, which fails on gradients of leaves.)
    """

    total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def counted_flops(step: Callable[[], None]) -> float:
    """FLOPs of matrix products and convolutions in what ``step`` does, forward and backward."""
    # The fused attention kernels of CPUs have no formula; spelled out, attention is products.
    with sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
        step()
    return float(counter.total)


def matmul_rate(device: torch.device, dtype: torch.dtype, n: int | None = None) -> float:
    """FLOP/s of a square matrix product of (n, n) matrices, large ones by default: best of three.

    Where a CPU has no units for bf16, a large one in that precision takes the better part of a
    minute.
    """
    n = n or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):  # the first one warms up
        best = min(best, timed(lambda: a @ b, device))
    return 2 * n**3 / best


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the work is done, on the device too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
