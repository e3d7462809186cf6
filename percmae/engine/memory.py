"""Memory of a training process on a CPU."""

from __future__ import annotations

import ctypes
import os

# mallopt's names for its parameters (glibc's malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_GROWTH = 64 << 20


def keep_freed_memory() -> None:
    """Let this process keep the memory that a step frees for the next step.

    A step allocates and frees gigabytes of activations. glibc hands large blocks back to the kernel
    and gets them anew, page by page, which costs a ViT-B step a tenth to a quarter of its time. The
    process then holds its peak until it ends. Without effect where the C library is another.

    Large tensors are also put on pages of 2 MiB where the kernel has them (torch looks at the
    variable when it first allocates one): there are 512 times fewer of them to find.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    mallopt(_TOP_PAD, _GROWTH)
