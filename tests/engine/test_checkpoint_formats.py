"""Checkpoints of earlier formats: a training goes on from them as the code of then did.

``format_1/runs.tar.xz`` has a small dataset and two runs on it, stopped after step 4 of 9 (a crash
after step 5), as percmae 0.1.0 left them before a checkpoint named its format; beside it all that
their trainings have logged to the end, where the same code went on from there.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from percmae.engine.checkpoint import read_state
from percmae.engine.pretrain import pretrain
from percmae.engine.saving import FORMAT, migrated
from percmae.errors import CheckpointError
from percmae.runs.record import Run
from percmae.storage import StorePath

BEFORE = Path(__file__).parent / "format_1"
CLOCK = ("images_per_second", "loader_wait")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    with tarfile.open(BEFORE / "runs.tar.xz") as file:
        file.extractall(tmp_path, filter="data")
    return tmp_path


def logged(file: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, file.read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


@pytest.mark.parametrize("name", ["before_mae", "before_stylegan2_ada"])
def test_a_training_goes_on_from_a_checkpoint_of_format_1(runs: Path, name: str) -> None:
    run = Run.open(str(runs / name))
    assert (run.complete, run.record.step) == (False, 4)
    before = read_state(run.path / "checkpoints" / "step-00000004.pt")
    assert "format" not in before
    done = pretrain(run.config, str(runs / "dataset" / "manifest.json"), str(runs))
    assert done.run.complete
    found, expected = logged(runs / name / "metrics.jsonl"), logged(BEFORE / f"{name}.jsonl")
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    # Equal on the machine that wrote them; another processor adds up in another order.
    for one, other in zip(found, expected, strict=True):
        assert one.pop("split") == other.pop("split")
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)
    after = read_state(run.path / "checkpoints" / "step-00000009.pt")
    assert after["format"] == FORMAT
    assert after["key"] == run.key
    assert after["data_digest"] == run.record.data.digest
    assert after["config_digest"] == run.record.config_digest
    assert after.keys() >= before.keys()


def test_migration_keeps_what_is_there(runs: Path) -> None:
    path = StorePath(runs / "before_mae" / "checkpoints" / "step-00000004.pt")
    before = read_state(path)
    after = migrated(before, "it")
    assert {key: after[key] for key in before} == before
    assert migrated(after, "it") is after


def test_a_later_format_is_refused(runs: Path) -> None:
    with pytest.raises(CheckpointError, match=r"of format 3, written by percmae 9\.1; .*up to 2"):
        migrated({"format": 3, "percmae": "9.1", "w": torch.zeros(1)}, "it")
