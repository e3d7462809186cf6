"""Processes that a process has forked, as /proc tells of them."""

from __future__ import annotations

import os
from pathlib import Path


def forked(parent: int | None = None) -> set[int]:
    """Children of a process (default: this one) that run its program and have not ended."""
    parent = parent or os.getpid()
    program = Path(f"/proc/{parent}/cmdline").read_bytes()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            same = (folder / "cmdline").read_bytes() == program
        except OSError:
            continue
        if int(ppid) == parent and same and state != "Z":
            found.add(int(folder.name))
    return found
