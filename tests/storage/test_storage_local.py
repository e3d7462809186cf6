"""What is particular to local files: file systems that fail, that are full, that know no fsync."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from percmae.errors import StoreAccessError, StoreError
from percmae.storage import StorePath


def test_local_failures_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreAccessError, match=f"cannot write {tmp_path}/file/below: "):
        StorePath(tmp_path / "file/below").write_text("x")
    with pytest.raises(StoreAccessError, match="Is a directory"):
        StorePath(tmp_path).write_text("x")
    with pytest.raises(StoreAccessError, match="Is a directory"):
        StorePath(tmp_path).read_bytes()
    assert not StorePath(tmp_path).exists()
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_disk_full(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match="No space left"),
        StorePath(tmp_path / "x").create(),
        open("/dev/full", "w", buffering=1) as full,
    ):
        full.write("line\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("known", ["no files", "no directories"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_a_file_system_that_knows_no_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, known: str
) -> None:
    refused = fsync_fails(monkeypatch, code, of_directories=known == "no directories")
    StorePath(tmp_path / "x").write_text("whole")
    assert refused
    assert (tmp_path / "x").read_text() == "whole"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_an_fsync_that_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "x").write_text("old")
    fsync_fails(monkeypatch, code, of_directories=False)
    with pytest.raises(StoreError, match=f"cannot write .*/x: {os.strerror(code)}"):
        StorePath(tmp_path / "x").write_text("new")
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def fsync_fails(monkeypatch: pytest.MonkeyPatch, code: int, of_directories: bool) -> list[int]:
    """Have fsync fail, of directories or of files; the handles that it was refused for."""
    real, refused = os.fsync, []

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) is of_directories:
            refused.append(handle)
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return refused


def test_written_files_have_the_usual_mode(tmp_path: Path) -> None:
    StorePath(tmp_path / "ours").write_text("x")
    (tmp_path / "usual").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode
