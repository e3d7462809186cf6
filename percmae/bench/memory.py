"""Memory of this process and this machine, as Linux tells it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_SELF = Path("/proc/self")


def resident() -> int:
    """Bytes that this process holds now; what :func:`peak_since` tells begins here."""
    with suppress(OSError):  # a container may not allow it: then the peak is of all its life
        (_SELF / "clear_refs").write_text("5")
    return _status("VmRSS")


def peak_since(before: int) -> float:
    """Most bytes that this process has held beyond ``before`` since :func:`resident`."""
    return _status("VmHWM") - before


def resident_peak() -> float:
    """Most bytes that this program has held (getrusage would count its parent's too); NaN where
    that is not told."""
    return _status("VmHWM") if (_SELF / "status").exists() else float("nan")


def available() -> float:
    """Bytes that this machine has left for programs; without end where that is not told."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return float("inf")


def _status(name: str) -> int:
    lines = (_SELF / "status").read_text().splitlines() if (_SELF / "status").exists() else []
    (line,) = [x for x in lines if x.startswith(f"{name}:")] or [f"{name}: 0"]
    return int(line.split()[1]) * 1024
