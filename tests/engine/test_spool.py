"""A run's files on their way to a store that is slow, away, or back again."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faulty_proxy import FaultyProxy
from s3_server import S3

from percmae.config.schema import Checkpoint
from percmae.engine.outbox import folder_of
from percmae.engine.spool import Spool
from percmae.errors import Interrupted, StoreError, UserError
from percmae.runs.checkpoints import Checkpoints
from percmae.storage import StorePath, StoreSettings

from .forked import GENEROUS, forked

AWAY = "503"


@pytest.fixture
def run(s3: S3, proxy: FaultyProxy) -> StorePath:
    """A run's folder, seen through the proxy."""
    return StorePath(s3.uri("run"), replace(s3.settings, endpoint=proxy.endpoint))


@pytest.fixture
def rules(tmp_path: Path) -> Checkpoint:
    return Checkpoint(spool=str(tmp_path / "spool"), keep_last=9)


def save(spool: Spool, step: int, milestone: bool = False) -> None:
    """A checkpoint, and the figures before it; returns when it is on the disk."""
    spool.put(spool.run / "metrics.jsonl", f"up to {step}\n".encode())
    spool.checkpoint({"w": torch.full((3,), step)}, f"step {step}\n", step, step, None, milestone)
    until = time.monotonic() + GENEROUS
    while not spool.on_disk:
        assert time.monotonic() < until
        time.sleep(0.005)


def steps(run: StorePath) -> list[int]:
    found = Checkpoints(run / "checkpoints", Checkpoint())
    found.latest()
    assert [saved.name for saved in found.kept] == [
        entry.name for entry in (run / "checkpoints").iter() if entry.name.endswith(".pt")
    ]
    return [saved.step for saved in found.kept]


def archives(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("**/*.pt"))


def test_what_was_given_arrives_and_nothing_is_left(
    tmp_store: StorePath, rules: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "events").write_text("an event")
    with Spool(tmp_store, 1.0, rules) as spool:
        spool.put_file(tmp_store / "logs/events", tmp_path / "events")
        save(spool, 3)
    names = [entry.name for entry in tmp_store.iter()]
    expected = ["checkpoints/latest.json", "checkpoints/step-00000003.pt", "logs/events"]
    assert names == [*expected, "metrics.jsonl", "run.json"]
    assert (tmp_store / "run.json").read_text() == "step 3\n"
    assert spool.left is None
    assert not Path(rules.spool or "").exists() or not list(Path(rules.spool or "").iterdir())


def test_a_store_that_is_away_stops_nothing_and_gets_all_that_counts(
    run: StorePath, proxy: FaultyProxy, rules: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    with Spool(run, 1.0, rules) as spool:
        save(spool, 1)
        assert spool.drain(GENEROUS)
        folder = folder_of(run, 1.0, rules.spool)
        assert folder.stat().st_mode & 0o777 == 0o700
        with proxy.lasting(AWAY):
            for step in range(2, 9):
                save(spool, step, milestone=step in (4, 6))
                assert len(archives(folder)) <= 3, "two, and one that is on its way"
            assert not spool.drain(0.01)
        assert spool.drain(GENEROUS)
    found = steps(run)
    assert {1, 8} < set(found) <= {1, 2, 4, 6, 8}
    assert (run / "metrics.jsonl").read_text() == "up to 8\n"
    assert (run / "run.json").read_text() == "step 8\n"
    said = capsys.readouterr().err
    assert said.count("is passed over") == 1
    assert f"it lies in {folder}" in said
    assert not folder.exists()


def test_figures_are_in_the_store_before_the_checkpoint_that_stands_behind_them(
    run: StorePath, proxy: FaultyProxy, rules: Checkpoint
) -> None:
    with Spool(run, 1.0, rules) as spool, proxy.lasting(AWAY):
        save(spool, 1)
    written = [line.split("?")[0].rpartition("/")[2] for line in proxy.requests if "PUT" in line]
    order = ["metrics.jsonl", "step-00000001.pt", "latest.json", "run.json"]
    assert list(dict.fromkeys(written)) == order


def test_an_outage_that_is_too_long_is_told_with_where_things_lie(
    s3: S3, proxy: FaultyProxy, rules: Checkpoint
) -> None:
    hasty = replace(s3.settings, endpoint=proxy.endpoint, retry_seconds=1)
    run = StorePath(s3.uri("run"), hasty)
    spool = Spool(run, 1.0, rules)
    folder = folder_of(run, 1.0, rules.spool)

    def train() -> None:
        with spool, proxy.lasting(AWAY):
            save(spool, 1)
            until = time.monotonic() + GENEROUS
            while time.monotonic() < until:
                spool.check()
                time.sleep(0.01)

    with pytest.raises(StoreError, match=f"no usable answer .*; it lies in {folder}; the same"):
        train()
    assert spool.left == folder
    with Spool(run, 1.0, rules):
        assert steps(run) == [1]
    assert not folder.exists()


def test_stopping_at_once_waits_for_no_store(
    run: StorePath, proxy: FaultyProxy, rules: Checkpoint
) -> None:
    spool = Spool(run, 1.0, replace(rules, grace=GENEROUS))

    def train() -> None:
        with ExitStack() as outside, spool:
            outside.enter_context(proxy.lasting(AWAY))
            save(spool, 1)
            raise Interrupted(15, "stopped at once")

    with pytest.raises(Interrupted):
        train()
    assert spool.left == folder_of(run, 1.0, rules.spool)


def killed(uri: str, endpoint: str, rules: Checkpoint) -> None:
    """In a process of its own, that ends in the midst of an outage."""
    run = StorePath(uri, replace(StoreSettings.load(), endpoint=endpoint))
    spool = Spool(run, 1.0, rules).__enter__()
    save(spool, 7)
    spool._outbox.path("checkpoints/step-00000008.pt").write_bytes(b"half an arch")  # type: ignore[union-attr]
    os._exit(9)


def test_the_next_start_sends_what_a_killed_process_left(
    run: StorePath, proxy: FaultyProxy, rules: Checkpoint, tmp_path: Path
) -> None:
    folder = folder_of(run, 1.0, rules.spool)
    with proxy.lasting(AWAY, on="PUT"):
        forked(killed, (run.uri, proxy.endpoint, rules), tmp_path / "said", 1)
    assert archives(folder) == ["step-00000007.pt", "step-00000008.pt"]
    assert steps(run) == []
    with Spool(run, 1.0, rules) as spool:
        assert steps(run) == [7]
        assert (run / "metrics.jsonl").read_text() == "up to 7\n"
        save(spool, 9)
    assert steps(run) == [7, 9]


def test_what_is_older_than_the_store_has_is_not_sent(
    run: StorePath, proxy: FaultyProxy, rules: Checkpoint, tmp_path: Path
) -> None:
    with proxy.lasting(AWAY, on="PUT"):
        forked(killed, (run.uri, proxy.endpoint, rules), tmp_path / "said", 1)
    # Meanwhile the run went on elsewhere.
    with Spool(run, 1.0, replace(rules, spool=str(tmp_path / "elsewhere"))) as spool:
        save(spool, 20)
    with Spool(run, 1.0, rules):
        assert archives(folder_of(run, 1.0, rules.spool)) == []
    assert steps(run) == [20]
    assert (run / "metrics.jsonl").read_text() == "up to 20\n"


def test_an_archive_that_the_disk_has_changed_is_not_published(
    run: StorePath, proxy: FaultyProxy, rules: Checkpoint
) -> None:
    folder = folder_of(run, 1.0, rules.spool)

    def train() -> None:
        with Spool(run, 1.0, rules) as spool, proxy.lasting(AWAY, on="metrics.jsonl"):
            save(spool, 1)
            file = folder / "checkpoints/step-00000001.pt"
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)

    with pytest.raises(StoreError, match=r"is not what was written there.*checkpoint\.spool"):
        train()
    assert steps(run) == []


def test_a_folder_that_cannot_be_used_is_named(run: StorePath, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot keep in .*file/percmae.*set checkpoint\.spool"):
        Spool(run, 1.0, Checkpoint(spool=str(tmp_path / "file")))


def full(uri: str, rules: Checkpoint) -> None:
    """In a process of its own, on a disk without room for an archive."""
    import resource
    import signal

    from percmae.command import exit_code

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def work() -> None:
        with Spool(StorePath(uri), 1.0, rules) as spool:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            spool.checkpoint({"w": torch.zeros(1 << 16)}, "", 1, 0)
            spool.drain()

    raise SystemExit(exit_code(work))


def test_a_full_disk_is_told_in_one_line(
    tmp_store: StorePath, rules: Checkpoint, tmp_path: Path
) -> None:
    (done,) = forked(full, (tmp_store.uri, rules), tmp_path / "said", 1)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert "File too large" in said
    assert ("set checkpoint.spool to another folder" in said) == tmp_store.is_s3
    assert not archives(tmp_path)
