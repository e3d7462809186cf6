"""Event files of a store as a local folder, against the session's S3 server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from s3_server import S3
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from percmae.errors import StoreError, UserError
from percmae.storage import StorePath
from percmae.storage.follow import LOGS, Changes, follow, follow_once

STEPS_OF_ONE_FLUSH = 3


@pytest.fixture
def runs(s3: S3) -> StorePath:
    return StorePath(s3.uri("runs"))


class Writer:
    """A run's event file, put into the store as the trainer does: whole, at each flush."""

    def __init__(self, runs: StorePath, run: str, scratch: Path) -> None:
        self.writer = SummaryWriter(str(scratch))
        self.file = next(scratch.iterdir())
        self.remote = runs / f"{run}/{LOGS}/{self.file.name}"
        self.local = f"{run}/{self.file.name}"
        self.step = 0

    def flush(self) -> None:
        for _ in range(STEPS_OF_ONE_FLUSH):
            self.step += 1
            self.writer.add_scalar("loss", 1 / self.step, self.step)
        self.writer.flush()
        self.remote.write_file(self.file)


def steps(loader: EventFileLoader) -> list[int]:
    return [event.step for event in loader.Load() if event.step]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_reader_that_keeps_the_file_open_sees_it_grow(runs: StorePath, tmp_path: Path) -> None:
    run = Writer(runs, "seed-0/a_mae", tmp_path / "scratch")
    folder = tmp_path / "logs"
    run.flush()
    assert follow_once(runs, folder) == Changes(added=1)
    assert files(folder) == {run.local}
    reader = EventFileLoader(str(folder / run.local))
    assert steps(reader) == [1, 2, 3]
    inode = (folder / run.local).stat().st_ino

    run.flush()
    assert follow_once(runs, folder) == Changes(grown=1)
    assert steps(reader) == [4, 5, 6]
    assert (folder / run.local).stat().st_ino == inode
    assert (folder / run.local).read_bytes() == run.remote.read_bytes()
    assert follow_once(runs, folder) == Changes()


def test_only_event_files_come_and_other_objects_do_not(runs: StorePath, tmp_path: Path) -> None:
    (runs / "a/checkpoints/last.pt").write_bytes(b"x" * 1000)
    (runs / f"a/{LOGS}/events.1").write_bytes(b"one")
    (runs / f"a_probe/{LOGS}/events.1").write_bytes(b"two")
    (runs / f"a/{LOGS}/below/events.1").write_bytes(b"no run writes here")
    assert follow_once(runs, tmp_path / "logs") == Changes(added=2)
    assert files(tmp_path / "logs") == {"a/events.1", "a_probe/events.1"}


def test_a_resumed_run_adds_a_file_and_keeps_the_old_one(runs: StorePath, tmp_path: Path) -> None:
    first = Writer(runs, "a", tmp_path / "first")
    first.flush()
    follow_once(runs, tmp_path / "logs")
    second = Writer(runs, "a", tmp_path / "second")
    second.flush()
    assert second.local != first.local
    assert follow_once(runs, tmp_path / "logs") == Changes(added=1)
    assert files(tmp_path / "logs") == {first.local, second.local}


def test_deleted_runs_vanish_with_their_folders(runs: StorePath, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    for run in ("seed-0/a", "seed-1/a"):
        (runs / f"{run}/{LOGS}/events.1").write_bytes(b"one")
    follow_once(runs, folder)
    (runs / f"seed-1/a/{LOGS}/events.1").delete()
    assert follow_once(runs, folder) == Changes(removed=1)
    assert files(folder) == {"seed-0/a/events.1"}
    assert not (folder / "seed-1").exists()
    (runs / f"seed-0/a/{LOGS}/events.1").delete()
    assert follow_once(runs, folder) == Changes(removed=1)
    assert folder.is_dir(), "TensorBoard's --logdir itself stays"


@pytest.mark.parametrize("other", [b"another file, and longer than it was", b"shorter"])
def test_another_file_of_the_same_name_replaces_it(
    other: bytes, runs: StorePath, tmp_path: Path
) -> None:
    remote = runs / f"a/{LOGS}/events.1"
    remote.write_bytes(b"what it was before")
    follow_once(runs, tmp_path / "logs")
    remote.write_bytes(other)
    assert follow_once(runs, tmp_path / "logs") == Changes(replaced=1)
    assert (tmp_path / "logs/a/events.1").read_bytes() == other
    assert files(tmp_path / "logs") == {"a/events.1"}


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 65, 199])
def test_a_file_half_brought_over_is_completed(cut: int, runs: StorePath, tmp_path: Path) -> None:
    content = bytes(range(200))
    (runs / f"a/{LOGS}/events.1").write_bytes(content)
    local = tmp_path / "logs/a/events.1"
    local.parent.mkdir(parents=True)
    local.write_bytes(content[:cut])
    follow_once(runs, tmp_path / "logs")
    assert local.read_bytes() == content


def test_keys_do_not_lead_out_of_the_folder(
    runs: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from percmae.storage import Entry

    bad = Entry(runs / "x", f"../../outside/{LOGS}/events.1", 3, "", 0.0)
    monkeypatch.setattr(StorePath, "iter", lambda self: iter([bad]))
    assert follow_once(runs, tmp_path / "a/b/logs") == Changes()
    assert files(tmp_path) == set()


def test_goes_on_when_the_store_fails(
    runs: StorePath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (runs / f"a/{LOGS}/events.1").write_bytes(b"one")
    real, rounds = StorePath.iter, []

    class Enough(Exception):
        pass

    def fail_twice(self: StorePath) -> object:
        if len(rounds) in (1, 2):
            raise StoreError("the store is away")
        return real(self)

    def sleep(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 4:
            raise Enough

    monkeypatch.setattr(StorePath, "iter", fail_twice)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(Enough):
        follow(runs.uri, str(tmp_path / "logs"), 5)
    assert rounds == [5, 5, 5, 5]
    assert files(tmp_path / "logs") == {"a/events.1"}
    said = [line.split("Z ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        f"INFO: {runs}: 1 added",
        "WARNING: the store is away",
        f"INFO: {runs}: followed again",
    ]


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--every 0"):
        follow("s3://bucket/runs", str(tmp_path), 0)
    with pytest.raises(UserError, match="ftp://x"):
        follow("ftp://x", str(tmp_path), 1)


def test_a_folder_that_cannot_be_written(runs: StorePath, tmp_path: Path) -> None:
    (runs / f"a/{LOGS}/events.1").write_bytes(b"one")
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*/logs"):
        follow(runs.uri, str(tmp_path / "logs"), 1)


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_command(runs: StorePath, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    command = [sys.executable, "-m", "percmae.storage.follow", runs.uri, str(folder)]
    process = subprocess.Popen([*command, "--every", "0.1"], stderr=subprocess.PIPE, text=True)
    try:
        (runs / f"a/{LOGS}/events.1").write_bytes(b"one")
        wait_for(lambda: files(folder) == {"a/events.1"})
        (runs / f"a/{LOGS}/events.1").delete()
        wait_for(lambda: files(folder) == set())
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=600)
