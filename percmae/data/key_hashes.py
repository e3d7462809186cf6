"""A hash of each key: what is chosen by it does not move when other images come or go."""

from __future__ import annotations

import hashlib

import numpy as np


def key_hashes(keys: np.ndarray, purpose: str) -> np.ndarray:
    """A 64-bit hash of each key (BLAKE2b, personalised with ``purpose``), uint64 (n,).

    keys: bytes (n,). Another purpose gives other, independent hashes.
    """
    person = purpose.encode()
    digests = [hashlib.blake2b(key, digest_size=8, person=person).digest() for key in keys.tolist()]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def key_fractions(keys: np.ndarray, purpose: str) -> np.ndarray:
    """The hash of each key as a number in [0, 1), float64 (n,), exact in its 53 bits."""
    return (key_hashes(keys, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53
