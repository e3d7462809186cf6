"""A figure over seeds: mean and spread, as it stands in report.json and as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]
"""A JSON object: report.json and compare.json, or a part of one."""


def stats(pairs: Iterable[tuple[int, float | None]]) -> Json:
    """Mean and sample standard deviation of ``(seed, figure)`` pairs; None figures do not count.

    ``{"seeds", "values", "mean", "sd", "n"}``: the mean is None when there are none, the deviation
    when there is one.
    """
    given = {seed: float(value) for seed, value in pairs if value is not None}
    values = list(given.values())
    return {
        "seeds": list(given),
        "values": values,
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def points(stats: Json, signed: bool = False) -> str:
    """Percentage points with their spread: ``12.3 ± 0.8`` (no ± for one seed)."""
    sign = "+" if signed else ""
    text = f"{100 * stats['mean']:{sign}.1f}".replace("-", "−")
    return text if stats["sd"] is None else f"{text} ± {100 * stats['sd']:.1f}"


def spread(stats: Json, digits: int) -> str:
    """A mean with its spread over seeds, in the figure's own unit; – when there is none."""
    if stats["mean"] is None:
        return "–"
    text = f"{stats['mean']:.{digits}f}"
    return text if stats["sd"] is None else f"{text} ± {stats['sd']:.{digits}f}"
