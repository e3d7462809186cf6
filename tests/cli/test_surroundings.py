"""Verbs that need no torch, in surroundings that are not as they should be: each in a process of
its own. Those that train are in tests/engine/test_surroundings.py."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

VERBS = {
    "help": ["--help"],
    "docs": ["config", "show", "--docs"],
    "run": ["run", "--help"],
    "store": ["store", "status"],
}


@dataclass(frozen=True)
class Surroundings:
    """What differs from here: variables (None: unset), and what the process does before it is
    percmae. code, said: how a verb then ends, and what the one line on stderr holds."""

    environment: dict[str, str | None] = field(default_factory=dict)
    before: Callable[[], object] | None = None
    code: int = 0
    said: str = ""


def onto(path: str, *descriptors: int) -> Callable[[], None]:
    def before() -> None:
        for descriptor in descriptors:
            os.dup2(os.open(path, os.O_RDWR), descriptor)

    return before


def gone() -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")


SURROUNDINGS = {
    "ascii": Surroundings({"PYTHONIOENCODING": "ascii"}),
    "posix": Surroundings(
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ),
    "no home": Surroundings(dict.fromkeys(("HOME", "USER", "LOGNAME"))),
    "home is no folder": Surroundings({"HOME": "/dev/null"}),
    "no temporary folder": Surroundings({"TMPDIR": "/nowhere"}),
    "few files": Surroundings(
        before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)),
    ),
    "no stdin": Surroundings(before=lambda: os.close(0)),
    "no streams": Surroundings(before=lambda: [os.close(stream) for stream in range(3)]),
    "full stderr": Surroundings(before=onto("/dev/full", 2)),
    "full stdout": Surroundings(
        before=onto("/dev/full", 1), code=1, said="cannot write to stdout: No space left on device"
    ),
    "folder gone": Surroundings(before=gone, code=2, said="the current folder cannot be used"),
    "several copies": Surroundings({"RANK": "0", "WORLD_SIZE": "2"}),
}


def run(
    arguments: list[str], found: Surroundings, folder: Path, *prefix: str
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **found.environment}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "percmae", *arguments],
        env={name: value for name, value in environment.items() if value is not None},
        cwd=folder,
        capture_output=True,
        preexec_fn=found.before,
        timeout=300,
    )


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_verbs(name: str, verb: str, tmp_path: Path) -> None:
    found = SURROUNDINGS[name]
    done = run(VERBS[verb], found, tmp_path)
    err = done.stderr.decode()
    if name == "several copies" and verb in ("run", "store"):
        assert (done.returncode, done.stdout) == (2, b"")
        assert "is the work of one process" in err
        return
    assert done.returncode == found.code, err
    if found.code:
        (line,) = err.splitlines()
        assert line.startswith("percmae: error: ")
        assert found.said in line
    else:
        assert err == ""
        silent = name == "no streams"
        assert (done.stdout == b"") == silent


def test_a_home_that_is_asked_for_and_not_there(tmp_path: Path) -> None:
    no_home = {"HOME": None, "PERCMAE_HOME": "~nobody-of-this-name/x"}
    done = run(["store", "status"], Surroundings(no_home), tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(b"percmae: error: Could not determine home directory")
    assert len(done.stderr.splitlines()) == 1


def test_too_few_files_for_the_local_store(tmp_path: Path) -> None:
    few = Surroundings(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48)))
    done = run(["store", "up"], few, tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == (
        b"percmae: error: the local store ended while starting: too many open files; raise the "
        b"limit (ulimit -n 4096)\n"
    )


needs_setpriv = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None,
    reason="root may write anywhere, and there is no setpriv to take that away",
)


@needs_setpriv
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["store", "up"], "cannot keep a store in "),
        (["sample-data", "--out", "sample"], "sample: Permission denied"),
        (["run", "--seeds", "0"], ".percmae/samples/fashion-mnist: Permission denied"),
    ],
)
def test_a_folder_that_may_not_be_written_to(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o555)
    prefix = ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else []
    done = run(arguments, Surroundings(), tmp_path, *prefix)
    (line,) = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (2, b"")
    assert line.startswith("percmae: error: ")
    assert said in line


@pytest.mark.parametrize("name", ["latin.yaml", "folder.yaml", "absent.yaml", "caf\udce9.yaml"])
def test_a_configuration_file_that_is_none(name: str, tmp_path: Path) -> None:
    if name == "folder.yaml":
        (tmp_path / name).mkdir()
    elif name != "absent.yaml":
        (tmp_path / name).write_bytes("tag: Größe\n".encode("latin-1"))
    shown = run(["config", "show", "--config", name], Surroundings(), tmp_path)
    store = {"PERCMAE_STORE_CONFIG": name, "AWS_ENDPOINT_URL": None, "AWS_ENDPOINT_URL_S3": None}
    report = ["report", "--runs", "s3://bucket/run", "--to", "r"]
    for done in (shown, run(report, Surroundings(store), tmp_path)):
        (line,) = done.stderr.decode().splitlines()
        assert (done.returncode, done.stdout) == (2, b"")
        assert line.startswith("percmae: error: ")
        assert ascii(name)[1:-1] in line


def test_a_file_name_that_is_no_text_comes_back_as_it_is(tmp_path: Path) -> None:
    """What a script reads from stdout it can open."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    images = tmp_path / "images"
    from PIL import Image

    for name in ("a", "b"):
        (images / name).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (8, 8), number).save(images / name / f"{number}.png")
    out = os.fsdecode(folder)
    done = run(
        ["sample-data", "--out", out, "--source", str(images)],
        Surroundings({"PYTHONIOENCODING": "utf-8"}),
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert all(os.path.exists(line) for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == 3
