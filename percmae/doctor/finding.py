"""What ``percmae doctor`` finds, and how it says so: one line a finding."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One line: whether it is fine, what was looked at, what was found, how to fix it."""

    fine: bool
    what: str
    found: str
    fix: str = ""


def show(finding: Finding, needed: bool) -> bool:
    """Print one finding; False when something needed is missing."""
    mark = "ok     " if finding.fine else ("MISSING" if needed else "absent ")
    fix = f"  → {finding.fix}" if finding.fix and not finding.fine else ""
    print(f"{mark} {finding.what}: {finding.found}{fix}", flush=True)
    return finding.fine or not needed
