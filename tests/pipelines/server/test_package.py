"""The name of an uploaded version."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from percmae import __version__
from pipelines.server import package


def test_version_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    file = folder / "package.py"
    file.write_text("")
    monkeypatch.setattr(package, "__file__", str(file))
    assert package.version_name() == __version__  # no checkout

    def git(*words: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-qm", "another project")
    assert package.version_name() == __version__  # installed below a checkout of something else
    git("add", "pipelines")
    git("commit", "-qm", "this project")
    commit = git("rev-parse", "--short", "HEAD")
    assert package.version_name() == commit
    (tmp_path / "new").write_text("")
    assert package.version_name() == commit  # as git has it: an unknown file is no change
    file.write_text("changed")
    assert package.version_name() == f"{commit}-dirty"
