"""``percmae checkpoints``."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from percmae.cli.verbs import main
from percmae.runs.checkpoints import Checkpoints, Saved
from percmae.runs.record import CHECKPOINTS, Run
from percmae.storage.hashing import Hashing

BEFORE = Path(__file__).parent / "before"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with three checkpoints, whose content nobody reads here, and what is left of two."""
    shutil.copytree(BEFORE / "old_ssim", tmp_path / "run")
    run = Run.open(str(tmp_path / "run"))
    checkpoints = Checkpoints(run.path / CHECKPOINTS, run.config.checkpoint)
    for step, loss in ((4, 0.5), (8, None), (12, 0.75)):
        name, content = f"step-{step:08d}.pt", bytes(1000 * step)
        hashing = Hashing()
        hashing.write(content)
        (checkpoints.folder / name).write_bytes(content)
        saved = Saved(name=name, sha256=hashing.sha256, step=step, epoch=step // 4, val_loss=loss)
        checkpoints.drop(checkpoints.point_to(saved))
    for left in ("step-00000016.pt", "diagnostic-step-00000013.pt"):
        (checkpoints.folder / left).write_bytes(b"left")
    return run


def test_ls(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "ls", run.uri, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["step"], r["bytes"], r["val_loss"], r["kept"]) for r in rows] == [
        (4, 4000, 0.5, ["best"]),
        (8, 8000, None, ["last"]),
        (12, 12000, 0.75, ["latest"]),
    ]
    (Path(run.uri) / CHECKPOINTS / "step-00000008.pt").unlink()
    assert main(["checkpoints", "ls", run.uri]) == 0
    head, first, second, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "step", "epoch", "size", "val", "loss", "kept", "as", "when"]
    assert first.split()[:7] == ["step-00000004.pt", "4", "1", "3.9", "KiB", "0.5000", "best"]
    assert second.split()[3] == "missing"


def test_verify(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "verify", run.uri]) == 0
    assert capsys.readouterr().out.count("  whole\n") == 3
    folder = Path(run.uri) / CHECKPOINTS
    (folder / "step-00000004.pt").write_bytes(bytes(3999) + b"1")
    (folder / "step-00000012.pt").unlink()
    assert main(["checkpoints", "verify", run.uri]) == 2
    said = capsys.readouterr()
    assert "2 of 3 checkpoints" in said.err
    assert "step-00000004.pt (damaged), step-00000012.pt (missing)" in said.err


def test_gc(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(run.uri) / CHECKPOINTS
    assert main(["checkpoints", "gc", run.uri]) == 0
    listed, total = capsys.readouterr().out.splitlines()
    assert listed.split() == ["4", "B", "step-00000016.pt"]
    assert "--delete removes them" in total
    assert main(["checkpoints", "gc", run.uri, "--delete"]) == 2
    assert "less than an hour old" in capsys.readouterr().err
    os.utime(folder / "step-00000016.pt", (0, 0))
    assert main(["checkpoints", "gc", run.uri, "--delete"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "diagnostic-step-00000013.pt",
        "latest.json",
        *(f"step-{step:08d}.pt" for step in (4, 8, 12)),
    ]
    assert main(["checkpoints", "gc", run.uri]) == 0
    assert "nothing to collect" in capsys.readouterr().out


def test_what_is_no_run_or_has_none(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(Path(run.uri) / CHECKPOINTS)
    for uri, said in ((run.uri, "has no checkpoint yet"), (str(tmp_path), "is not a run")):
        assert main(["checkpoints", "ls", uri]) == 2
        assert said in capsys.readouterr().err


def test_looking_needs_no_torch(run: Run) -> None:
    program = f"""
import sys
sys.modules["torch"] = None
from percmae.cli.verbs import main
sys.exit(main(["checkpoints", "verify", {run.uri!r}]))
"""
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", program) == 0
