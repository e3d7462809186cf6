"""Verbs that train or read runs, in surroundings that are not as they should be: real processes,
forked from one that has torch (tests/cli/test_surroundings.py has what needs none)."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from percmae.data.shards import Dataset

from .forked import Done, forked, percmae
from .test_processes import command

STEPS = ("optim.max_steps=2", "data.batch_size=16")


def onto(path: str, *descriptors: int) -> None:
    for descriptor in descriptors:
        os.dup2(os.open(path, os.O_RDWR), descriptor)


def closed() -> None:
    for descriptor in range(3):
        os.close(descriptor)
    sys.stdin = sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None  # type: ignore


def ascii_only() -> None:
    assert sys.stdout is not None
    sys.stdout.reconfigure(encoding="ascii")  # type: ignore[union-attr]


def no_home() -> None:
    for name in ("HOME", "USER", "LOGNAME"):
        os.environ.pop(name, None)


def limit(what: int, most: int) -> None:
    resource.setrlimit(what, (most, most))


# How each changes the process before it is percmae: where all works, and where something cannot.
ODD: dict[str, Callable[[], None]] = {
    "no streams": closed,
    "full stderr": lambda: onto("/dev/full", 2),
    "ascii": ascii_only,
    "no home": no_home,
    "home is no folder": lambda: os.environ.update(HOME="/dev/null"),
    "few files": lambda: limit(resource.RLIMIT_NOFILE, 48),
}
BAD: dict[str, Callable[[], None]] = {
    "full stdout": lambda: onto("/dev/full", 1),
    "small files": lambda: limit(resource.RLIMIT_FSIZE, 12_000),
}


def under(name: str, arguments: list[str]) -> int:
    """In a process of its own."""
    from percmae.cli.verbs import main

    (ODD | BAD)[name]()
    return main(arguments)


@pytest.fixture(scope="module")
def run_uri(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    to = tmp_path_factory.mktemp("run")
    (done,) = percmae(command(tiny_dataset, to, *STEPS), to)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("verb", ["pretrain", "evaluate", "report", "doctor"])
@pytest.mark.parametrize("name", ODD)
def test_verbs_work_all_the_same(
    name: str, verb: str, tiny_dataset: Dataset, tmp_path: Path, run_uri: str
) -> None:
    arguments = {
        "pretrain": command(tiny_dataset, tmp_path / "runs", *STEPS),
        "evaluate": ["evaluate", "--run", run_uri, "--data", tiny_dataset.uri],
        "report": ["report", "--runs", run_uri, "--to", str(tmp_path / "report")],
        "doctor": ["doctor"],
    }[verb]
    (done,) = forked(under, (name, arguments), tmp_path, 1)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if verb in ("report", "doctor"):
        assert done.stderr == ""  # no library has anything to say either
    assert (done.stdout == "") == (name == "no streams")
    made = {"pretrain": "runs/mae/run.json", "report": "report/report.html"}.get(verb)
    assert made is None or (tmp_path / made).exists()


def one_line(done: Done, code: int, said: str) -> None:
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("percmae: error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr


def test_a_result_that_cannot_be_told(tiny_dataset: Dataset, tmp_path: Path) -> None:
    arguments = command(tiny_dataset, tmp_path, *STEPS)
    (done,) = forked(under, ("full stdout", arguments), tmp_path / "said", 1)
    one_line(done, 1, "cannot write to stdout: No space left on device")
    assert (tmp_path / "mae" / "run.json").exists()


def track(folder: str) -> int:
    """In a process of its own."""
    from percmae.command import exit_code
    from percmae.config.schema import Checkpoint
    from percmae.engine.spool import Spool
    from percmae.engine.tracking import Tracker
    from percmae.storage import StorePath

    def work() -> None:
        BAD["small files"]()
        spool = Spool(StorePath(folder), 0.0, Checkpoint())
        with spool, Tracker(spool, 0) as tracker:
            for step in range(1, 300):
                tracker.log(step, 0.0, "train", {"loss": 0.5})
            # What flush() does when it has written the other file.
            with tracker._events() as writer:
                writer.flush()

    return exit_code(work)


def test_no_room_for_the_figures_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's files lie in the temporary folder until they go to the store."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (done,) = forked(track, (str(tmp_path / "run"),), tmp_path / "said", 1)
    one_line(done, 1, "cannot write TensorBoard's files below ")
    assert "set TMPDIR to another folder" in done.stderr
    assert not list(tmp_path.glob("percmae-events-*"))


def test_no_room_for_the_result(tiny_dataset: Dataset, tmp_path: Path, run_uri: str) -> None:
    arguments = ["export", "--run", run_uri, "--format", "mae", "--to", str(tmp_path / "w.pth")]
    (done,) = forked(under, ("small files", arguments), tmp_path / "said", 1)
    one_line(done, 1, f"cannot write {tmp_path}/w.pth: File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["said"]


needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts need root"
)


@needs_mounts
@pytest.mark.parametrize("verb", ["pretrain", "doctor"])
def test_no_temporary_folder_at_all(verb: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """In a process of its own, with file systems of its own that may only be read."""
    arguments = command(tiny_dataset, tmp_path / "runs", *STEPS) if verb == "pretrain" else [verb]
    empty = "mount -t tmpfs -o ro none"
    kept = f"mkdir -p /run/kept && mount --bind {tmp_path.parents[1]} /run/kept"
    script = (
        f"{kept} && {empty} /var/tmp && mount -t tmpfs none /tmp && mkdir -p {tmp_path.parents[1]} "
        f"&& mount --bind /run/kept {tmp_path.parents[1]} && mount -o remount,ro /tmp "
        '&& cd /var/tmp && exec setpriv --bounding-set=-all "$@"'
    )
    # PyTorch names its cache in the environment of a process that has compiled, as others have.
    unset = ("TMPDIR", "TEMP", "TMP", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "percmae", *arguments],
        env=environment | {"TMPDIR": "/nowhere"},
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr}")
    one_line(Done(done.returncode, done.stdout, done.stderr), 2, "No usable temporary directory")
    assert not (tmp_path / "runs").exists()
