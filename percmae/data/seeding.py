"""Randomness of a sample: a function of (seed, epoch, sample) and of nothing else."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from percmae.counters import BITS, key_of, numbers


@contextmanager
def private_randomness() -> Iterator[None]:
    """Whatever happens to the global generators of random, numpy and torch (CPU) is undone."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def seed_sample(seed: int, epoch: int, sample: int) -> None:
    """Seed the global generators (transforms draw from any of them) for one sample."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, epoch, sample), digest_size=16).digest()
    low, high = struct.unpack("<QQ", digest)
    random.seed(low)
    np.random.seed(high & 0xFFFFFFFF)
    torch.default_generator.manual_seed(high >> 1)


def sample_numbers(seed: int, epoch: int, samples: np.ndarray, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) for each sample, float64 (n, count), without any generator.

    samples: int64 (n,), positions in the split.
    """
    table = numbers(key_of(seed, epoch), samples, np.arange(1, count + 1))
    return table * 2.0**-BITS
