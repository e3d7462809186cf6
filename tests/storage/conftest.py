"""A store whose keys the environment does not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from percmae.storage import StorePath

if TYPE_CHECKING:
    from s3_server import S3


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose .aws is empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    return tmp_path


@pytest.fixture
def keyless(s3: S3, home: Path, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The session's store, for which the environment has no keys."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERCMAE_STORE_RETRY_SECONDS", "1")
    return s3


@pytest.fixture
def works(s3: S3) -> Callable[[], bool]:
    """Whether the store can be written and read, with the keys that the environment leads to."""

    def write_and_read() -> bool:
        file = StorePath(s3.uri("keys")) / "file"
        file.write_text("x")
        return file.read_text() == "x"

    return write_and_read
