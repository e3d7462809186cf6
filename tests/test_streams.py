"""Standard streams as a program may find them, in real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

# Speaks on both streams, then says in its exit code whether it came to the end.
PROGRAM = """
import sys
from percmae.command import exit_code
def work():
    print("seed 0 \\u2192 1 \\xd7 \\u2026 \\xb2 caf\\udce9 \\xf1")
    print("note \\u2026", file=sys.stderr)
    open({opened!r}, "w").write("mine")
    raise SystemExit(7)
raise SystemExit(exit_code(work))
"""


def run(
    before: Callable[[], object] = lambda: None, opened: str = os.devnull, **environment: str
) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(opened=opened)],
        env={**os.environ, **environment},
        capture_output=True,
        preexec_fn=before,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def onto(path: str, *descriptors: int) -> Callable[[], None]:
    """Lead streams to a file."""

    def before() -> None:
        for descriptor in descriptors:
            os.dup2(os.open(path, os.O_RDWR), descriptor)

    return before


def closed(*descriptors: int) -> Callable[[], None]:
    return lambda: [os.close(descriptor) for descriptor in descriptors]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("environment", "written"),
    [
        ({"PYTHONIOENCODING": "utf-8"}, "seed 0 → 1 × … ² caf".encode() + b"\xe9 \xc3\xb1\n"),
        ({"PYTHONIOENCODING": "ascii"}, b"seed 0 -> 1 x ... 2 caf\xe9 \\xf1\n"),
        ({"PYTHONIOENCODING": "latin-1"}, b"seed 0 -> 1 \xd7 ... \xb2 caf\xe9 \xf1\n"),
        (
            {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            b"seed 0 -> 1 x ... 2 caf\xe9 \\xf1\n",
        ),
    ],
)
def test_what_an_encoding_lacks_is_written_in_ascii(
    environment: dict[str, str], written: bytes
) -> None:
    code, out, err = run(**environment)
    assert (code, out) == (7, written)
    assert b"Traceback" not in err


def test_a_full_disk_behind_stdout_is_an_error_behind_stderr_it_is_not() -> None:
    code, _, err = run(onto("/dev/full", 1))
    assert code == 1
    assert err.decode().splitlines()[-1] == (
        "percmae: error: cannot write to stdout: No space left on device; what it was to show is "
        "lost, what was done before is not"
    )
    assert b"Traceback" not in err
    assert b"Exception" not in err  # nor at the end of the process
    code, out, _ = run(onto("/dev/full", 2))
    assert (code, out[:6]) == (7, b"seed 0")


@pytest.mark.parametrize("streams", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_a_closed_stream_leads_nowhere(tmp_path: object, streams: tuple[int, ...]) -> None:
    """Least of all into the file that is opened next."""
    mine = f"{tmp_path}/mine"
    code, out, err = run(closed(*streams), opened=mine)
    assert code == 7
    assert (out == b"") == (1 in streams)
    assert (err == b"") == (2 in streams)
    with open(mine) as file:
        assert file.read() == "mine"


@pytest.mark.parametrize("stream", [1, 2])
def test_a_pipe_without_a_reader_ends_the_program(stream: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    # subprocess leaves SIGPIPE as it was at the start: Python ignores it.
    code, _, err = run(lambda: os.dup2(writing, stream))
    os.close(writing)
    assert (code, b"Traceback" in err, b"Exception" in err) == (141, False, False)
