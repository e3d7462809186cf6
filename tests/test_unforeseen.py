"""What nobody has put into words: one line, an exit code, and the traceback where it is needed."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from percmae import command, unforeseen
from percmae.command import exit_code
from percmae.engine.place import first_host
from percmae.errors import PercmaeError, UserError
from percmae.unforeseen import DEBUG

Captured = pytest.CaptureFixture[str]


def of(number: int, *path: str) -> OSError:
    return OSError(number, os.strerror(number), *path)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (of(errno.ENOSPC, "/x/y"), 1, "/x/y: No space left on device; make room, or use another"),
        (of(errno.EDQUOT, "/x"), 1, "/x: Disk quota exceeded; make room"),
        (of(errno.EFBIG), 1, "File too large; raise the limit on the size of a file"),
        (of(errno.ENFILE), 1, "Too many open files in system; the whole system has"),
        (of(errno.EIO, "/x"), 1, "/x: Input/output error; see to the disk"),
        (of(errno.EMFILE), 2, "Too many open files; raise the limit on open files (ulimit -n"),
        (of(errno.EROFS, "/x"), 2, "/x: Read-only file system; use a place that may be written"),
        (of(errno.EACCES, "/x"), 2, "/x: Permission denied; use a place that may be written to"),
        (of(errno.ENOTDIR, "/x"), 2, "/x: Not a directory; check the path"),
        (of(errno.ENAMETOOLONG, "/x"), 2, "/x: File name too long; check the path"),
        (of(errno.ENOENT, "/caf\udce9"), 2, "/caf\udce9: No such file or directory; check the"),
        (of(errno.EAGAIN), 2, "Resource temporarily unavailable; no more processes or threads"),
        (RuntimeError("can't start new thread"), 2, "can't start new thread; no more processes"),
        (MemoryError(), 1, "memory ran out: MemoryError; there is not enough memory"),
        (RuntimeError("[…] DefaultCPUAllocator: can't allocate memory: …"), 1, "memory ran out"),
        (ImportError("x.so: failed to map segment", name="torch._C"), 1, "memory ran out"),
        (ModuleNotFoundError("No module named 'timm'", name="timm"), 2, "timm cannot be used here"),
        (RuntimeError("Could not determine home directory."), 2, "Could not determine home"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            2,
            "No usable temporary directory found in ['/tmp']; set TMPDIR to one with room in it",
        ),
        # What libraries make of the system's errors.
        (
            RuntimeError("unable to open shared memory object </t> in read-write mode: "
                         "Too many open files (24)"),
            2,
            "Too many open files; raise",
        ),
        (
            OSError("Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most "
                    "recent call last):\n  File …\nOSError: [Errno 28] No space left on device"),
            1,
            "No space left on device; make room",
        ),
    ],
)  # fmt: skip
def test_surroundings(error: Exception, code: int, line: str, capsys: Captured) -> None:
    known = unforeseen.in_words(error)
    assert (known.exit_code, isinstance(known, UserError)) == (code, code == 2)
    assert str(known).startswith(line)
    assert "\n" not in str(known)
    assert capsys.readouterr() == ("", "")


def fault() -> None:
    raise KeyError("odd")


def test_a_fault_is_one_line_and_its_traceback_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(DEBUG, raising=False)
    assert exit_code(lambda: first_host(None)) == 1  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    (file,) = tmp_path.iterdir()
    assert out == ""
    assert re.fullmatch(
        r"percmae: error: unexpected TypeError in percmae/engine/place\.py, line \d+: expected "
        r"string or bytes-like object, got 'NoneType'; this is a fault of percmae: report it with "
        rf"its traceback, {file}\n",
        err,
    )
    text = file.read_text()
    assert text.startswith("percmae ")
    assert "Traceback (most recent call last)" in text
    assert "test_unforeseen.py" in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("why", ["asked for", "a log", "no room"])
def test_a_traceback_goes_to_stderr_where(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent" if why == "no room" else "."))
    monkeypatch.setenv(DEBUG, "1" if why == "asked for" else "0")
    assert exit_code(fault, logged=why == "a log") == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last.startswith("percmae: error: unexpected KeyError: 'odd'; this is a fault of percmae")


def test_errors_in_words_have_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv(DEBUG, "1")

    def work() -> None:
        raise PercmaeError("the loss is not finite")

    assert exit_code(work) == 1
    assert capsys.readouterr().err == "percmae: error: the loss is not finite\n"


def test_a_thread_that_ends_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(threading, "excepthook", command._thread_ended)

    class Keeping(threading.Thread):
        """As TensorBoard's: who has started it raises the error again."""

        exception: Exception | None = None

        def run(self) -> None:
            self.exception = of(errno.ENOSPC)
            raise self.exception

    def work() -> None:
        raise of(errno.EROFS, "/x")

    for thread in (Keeping(), threading.Thread(target=work)):
        thread.start()
        thread.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("percmae: error: /x: Read-only file system;")


def test_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert exit_code(lambda: None) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the current folder cannot be used (No such file or directory)" in line
