"""The GPU check at tiny sizes: every task of every part still runs. No timing is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_check"
PARTS = {
    "environment", "rates", "correctness", "steps", "resume", "compile", "speed", "waits", "draws",
    "shards", "loader alone", "loader to step",
}  # fmt: skip


@pytest.mark.skipif(
    os.environ.get("PERCMAE_TEST_GPU_CHECK") != "1",
    reason="minutes of work that no other test needs: make test-gpu-check",
)
def test_every_part_runs_and_the_table_shows_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(CHECK), "--tiny", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {task["status"] for task in document["tasks"]} == {"ok"}
    assert {row["part"] for row in document["rows"]} == PARTS
    resumed = [row for row in document["rows"] if row["part"] == "resume"]
    assert len(resumed) == 6
    assert all(row["equal"] for row in resumed)
    text = (tmp_path / "gpu_check.txt").read_text()
    assert done.stdout.endswith(text)
    assert all(row["name"] in text for row in document["rows"] if row["part"] == "speed")


@pytest.mark.parametrize("size", [[], ["--tiny"]], ids=["full", "tiny"])
def test_what_is_not_reached_is_named_and_counts_as_failed(tmp_path: Path, size: list[str]) -> None:
    """In a second nothing is begun."""
    done = subprocess.run(
        [sys.executable, str(CHECK), *size, "--out", str(tmp_path), "--limit", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "speed MAE-B: not reached in time" in done.stdout.split("tasks done")[1]
