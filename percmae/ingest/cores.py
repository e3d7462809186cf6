"""What there is here to work with: how many processes are worth starting, and room on the disk."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

SCRATCH_SIZE = "PERCMAE_SCRATCH_SIZE"
"""Variable that stands for --scratch-size where that is not given, as in a pod, whose disk has a
limit that a process in it does not see."""

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What a container may use of its cores, as cgroup v2 has it: microseconds in each so many."""


def usable_cores() -> int:
    """Cores that this process may use; of a container with a limit, no more than that."""
    if not hasattr(os, "sched_getaffinity"):  # another system
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no cgroup v2, or no limit ("max")
        quota, period = map(int, _QUOTA.read_text().split())
        cores = min(cores, math.ceil(quota / period))
    return max(1, cores)
