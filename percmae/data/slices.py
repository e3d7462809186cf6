"""Which of a dataset's images make up a part of it, and how large that is."""

from __future__ import annotations

import numpy as np

from percmae.counters import STEP, splitmix64

# About 2 % of ImageNet's training images, and enough of a small set to mean something.
_HELD_OUT_SHARE, _HELD_OUT_AT_LEAST = 0.02, 500


def held_out_images(images: int) -> int:
    """How many of so many images are put aside for validation, or for testing."""
    share = max(round(images * _HELD_OUT_SHARE), min(images // 10, _HELD_OUT_AT_LEAST))
    return max(share, 1) if images > 1 else 0


def val_slice(samples: int, digest: str) -> np.ndarray:
    """Sorted positions of the validation samples among the ingested training samples.

    Those with the smallest hash of (digest, position): a choice that looks random, never moves,
    and takes from every class of a training set sorted by class.
    """
    count = held_out_images(samples)
    return np.sort(np.argsort(_hashes(samples, digest), kind="stable")[:count])


def labelled_share(labels: np.ndarray, fraction: float, hashes: np.ndarray) -> np.ndarray:
    """Sorted positions of a share of each class, at least one: those with the smallest hash.

    labels: class of each training sample, int64 (n,), those without one are left out; hashes:
    uint64 (n,).
    """
    by_class = np.lexsort((hashes, labels))
    by_class = by_class[np.searchsorted(labels[by_class], 0) :]
    ordered = labels[by_class]
    counts = np.bincount(ordered)
    taken = np.maximum(np.rint(fraction * counts).astype(np.int64), 1)
    # The place of each sample among those of its class.
    places = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    return np.sort(by_class[places < taken[ordered]])


def position_hashes(samples: int, digest: str) -> np.ndarray:
    """Another hash of (digest, position) than the one that chooses for validation, uint64 (n,)."""
    return _mix(_hashes(samples, digest))


def _hashes(samples: int, digest: str) -> np.ndarray:
    """A hash of (digest, position) for each position, uint64 (n,)."""
    key = np.uint64(int(digest.removeprefix("sha256:")[:16], 16))
    with np.errstate(over="ignore"):
        return _mix(np.arange(samples, dtype=np.uint64) + key)


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64 as a hash: a bijection of 64-bit words, uint64 (n,)."""
    return splitmix64(values.view(np.int64) * STEP).view(np.uint64)
