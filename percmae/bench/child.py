"""A measurement in a process of its own, so that none finds what another has left behind."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from percmae.errors import PercmaeError


def answer_of(
    module: str, request: dict[str, Any], threads: int, what: str, advice: str = ""
) -> dict[str, Any]:
    """What ``python -m module <request>`` prints as its last line, JSON as the request is.

    what: the measurement, for messages; advice: what may help where it fails. Raises PercmaeError.
    """
    child = subprocess.run(
        [sys.executable, "-m", module, json.dumps(request)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or ["it was killed; out of memory?"])[-1]
        raise PercmaeError(f"{what} ended with code {child.returncode}: {reason}{advice}")
    answer: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return answer


def processor() -> str:
    """The processor's name as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
