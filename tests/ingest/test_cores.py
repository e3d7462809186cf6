"""How many workers there are where nobody says."""

from __future__ import annotations

from pathlib import Path

import pytest

from percmae.ingest import cores


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000\n", 6), ("150000 100000\n", 2), ("50000 100000\n", 1), ("900000 100000", 6)],
)
def test_a_container_s_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    assert cores.usable_cores() == 6
    (tmp_path / "cpu.max").write_text(quota)
    assert cores.usable_cores() == expected
