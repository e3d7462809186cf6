"""A training whose store is away, slow, full, or gives and takes damaged bytes, goes on.

Its course is what it would have been: figures are compared with those of a run that was left alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from engine.forked import GENEROUS, percmae
from faulty_proxy import FaultyProxy
from fixtures_data import TINY

from percmae.cli.verbs import main
from percmae.config import load_config
from percmae.data.sample import SampleArchives
from percmae.engine.pretrain import pretrain
from percmae.errors import UserError
from percmae.ingest import ingest
from percmae.local_store import server
from percmae.local_store.server import LocalStore
from percmae.runs.record import Run
from percmae.storage import StorePath, outage
from percmae.storage.settings import RETRY_VARIABLE

if TYPE_CHECKING:
    from s3_server import S3

pytestmark = pytest.mark.faults

SETTINGS = [
    *TINY,
    "optim.epochs=3",
    "data.workers=1",
    "tracking.knn_samples=0",
    "tracking.rankme_samples=0",
]
CHECKPOINT = "/checkpoints/step-"


@pytest.fixture(scope="module")
def data(s3: S3, tiny_archives: SampleArchives) -> str:
    """A small dataset in the store."""
    return ingest(**tiny_archives.uris(), to=s3.uri("faults")).dataset.uri


@pytest.fixture(scope="module")
def undisturbed(data: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The figures of a training that nothing has happened to."""
    config = load_config("mae", "demo", overrides=SETTINGS, tag="t")
    return figures(pretrain(config, data, str(tmp_path_factory.mktemp("whole"))).uri)


@pytest.fixture
def proxy(s3: S3, data: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """What the training sees of the store; a request is repeated for a second."""
    monkeypatch.setattr(outage, "_FIRST", 0.5)
    with FaultyProxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        monkeypatch.setenv(RETRY_VARIABLE, "1")
        monkeypatch.setenv(outage.OUTAGE_VARIABLE, "60")
        yield running


def figures(run: str) -> list[dict[str, Any]]:
    """All that was logged, without what the clock says."""
    lines = StorePath(f"{run}/metrics.jsonl").read_text().splitlines()
    clock = ("images_per_second", "loader_wait")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def command(data: str, to: str, *overrides: str) -> list[str]:
    options = ["--data", data, "--to", to, "--recipe", "demo", "--tag", "t"]
    return ["pretrain", *options, *SETTINGS, *overrides]


def damage(proxy: FaultyProxy) -> None:
    """Images and an index arrive as other bytes."""
    proxy.fault("damage", on=".tar")
    proxy.fault("damage", times=2, on=".npy")


DISTURBED: dict[str, Callable[[FaultyProxy], None]] = {
    "away": lambda proxy: proxy.when(CHECKPOINT, lambda: proxy.last(3.5, "refuse")),
    "full": lambda proxy: proxy.when(CHECKPOINT, lambda: proxy.last(3.5, "full", "PUT")),
    "keys revoked": lambda proxy: proxy.when(CHECKPOINT, lambda: proxy.last(3.5, "revoked")),
    "away from reading": lambda proxy: proxy.when(".tar", lambda: proxy.last(3.5, "refuse")),
    "slow": lambda proxy: proxy.last(GENEROUS, "slow", "GET"),
    "some requests fail": lambda proxy: proxy.fail_some(0.1, seed=1),
    "damaged": damage,
    "all cut short": lambda proxy: proxy.fault("short", times=10, on="GET"),
}


@pytest.mark.parametrize("what", DISTURBED)
def test_a_disturbed_training_takes_its_course(
    s3: S3, data: str, proxy: FaultyProxy, undisturbed: list[dict[str, Any]], what: str
) -> None:
    to = s3.uri("runs")
    # Workers are given up after two seconds, were it not for the store.
    config = load_config("mae", "demo", overrides=[*SETTINGS, "data.timeout=2"], tag="t")
    DISTURBED[what](proxy)
    began = time.monotonic()
    result = pretrain(config, data, to)
    if "away" in what:
        assert time.monotonic() - began > 3
    assert not proxy._faults
    proxy.fail_some(0, seed=0)
    assert Run.open(result.uri).complete
    assert figures(result.uri) == undisturbed


def test_longer_than_is_borne(
    s3: S3,
    data: str,
    proxy: FaultyProxy,
    undisturbed: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    to = s3.uri("runs")
    with pytest.MonkeyPatch.context() as patch:
        proxy.when(CHECKPOINT, lambda: patch.setattr(proxy, "next_fault", lambda line: "refuse"))
        assert main(command(data, to, "trainer.store_outage=0.05")) == 140
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(
        f"percmae: error: no usable answer from the store at {proxy.endpoint}"
    )
    assert [line for line in said if line.startswith("percmae:")] == said[-1:]
    assert "Traceback" not in "".join(said)
    assert any("asked again until" in line for line in said)
    assert main([*command(data, to), "--resume", "auto"]) == 0
    assert figures(f"{to}/t_mae") == undisturbed


@pytest.mark.parametrize(("seconds", "ends"), [(60, {0}), (3, {138, 140})])
def test_processes_that_share_a_training(
    s3: S3, data: str, proxy: FaultyProxy, tmp_path: Path, seconds: float, ends: set[int]
) -> None:
    """The one that the store kept waiting ends with 140, which torchrun hands on."""
    proxy.when(CHECKPOINT, lambda: proxy.last(6, "refuse"))
    half = ("data.batch_size=8", "data.workers=0", f"trainer.store_outage={seconds / 60}")
    done = percmae(command(data, s3.uri("runs"), *half), tmp_path / "said", size=2)
    codes = {one.returncode for one in done}
    assert codes <= ends, [one.stderr for one in done]
    assert (140 in codes) == (140 in ends)


@pytest.fixture
def own(tmp_path: Path, tiny_archives: SampleArchives) -> Iterator[LocalStore]:
    """A server of the test's own, which it may stop, and all that percmae does unasked."""
    root = tmp_path / "store"
    store = server.up(root)
    try:
        with store.in_environment(), pytest.MonkeyPatch.context() as patch:
            patch.delenv(RETRY_VARIABLE, raising=False)
            ingest(**tiny_archives.uris(), to=f"{store.uri}/data")
            yield store
    finally:
        server.down(root)


def until_checkpoint(store: LocalStore, alive: Callable[[], bool]) -> None:
    latest = StorePath(f"{store.uri}/runs/t_mae/checkpoints/latest.json", store.settings)
    deadline = time.monotonic() + GENEROUS
    while not latest.exists():
        assert alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def started_again(store: LocalStore, root: Path) -> LocalStore:
    """The server on the port that it had."""
    deadline = time.monotonic() + GENEROUS
    while True:
        try:
            return server.up(root, port=int(store.endpoint.rpartition(":")[2]))
        except UserError:  # connections to the one before are not gone yet
            assert time.monotonic() < deadline
            time.sleep(0.2)


LONG = "optim.epochs=10"
LONGER = "optim.epochs=40"  # seconds more than a server takes to stop


def test_a_server_that_is_stopped_for_longer_than_a_minute(own: LocalStore, tmp_path: Path) -> None:
    """By default a request is repeated for 60 s."""
    data = f"{own.uri}/data/manifest.json"
    config = load_config("mae", "demo", overrides=[*SETTINGS, LONGER], tag="t")
    undisturbed = figures(pretrain(config, data, str(tmp_path / "whole")).uri)
    verb = command(data, f"{own.uri}/runs", LONGER)
    process = subprocess.Popen(
        [sys.executable, "-m", "percmae", *verb], stderr=subprocess.PIPE, text=True
    )
    try:
        until_checkpoint(own, lambda: process.poll() is None)
        server.down(tmp_path / "store")
        time.sleep(65)  # what is tested
        assert process.poll() is None
        started_again(own, tmp_path / "store")
        _, said = process.communicate(timeout=GENEROUS)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert 1 <= said.count("asked again until") <= 3
    assert said.count("answers again, after") == 1
    assert figures(f"{own.uri}/runs/t_mae") == undisturbed


def test_keys_that_are_revoked_and_renewed_later(
    own: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is started again with other keys, and some time later they are in the file."""
    file, root = tmp_path / "store.yaml", tmp_path / "store"

    def give(store: LocalStore) -> None:
        words = {name: getattr(store, name) for name in ("endpoint", "access_key", "secret_key")}
        file.with_suffix(".new").write_text(json.dumps(words | {"region": "us-east-1"}))
        file.with_suffix(".new").replace(file)

    def renew() -> LocalStore:
        until_checkpoint(own, lambda: True)
        server.down(root)
        (root / "credentials.json").unlink()
        store = started_again(own, root)
        time.sleep(3)  # so long the keys that the training has are refused
        give(store)
        return store

    give(own)
    for name in own.environ:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERCMAE_STORE_CONFIG", str(file))
    monkeypatch.setenv(outage.OUTAGE_VARIABLE, "120")
    with ThreadPoolExecutor(1) as pool:
        renewed = pool.submit(renew)
        code = main(command(f"{own.uri}/data/manifest.json", f"{own.uri}/runs", LONG))
    assert renewed.result().secret_key != own.secret_key
    assert code == 0
    assert Run.open(f"{own.uri}/runs/t_mae").complete
