"""A pipeline's step whose store is away goes on, whether it works itself or has a job do it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from faulty_proxy import FaultyProxy
from fixtures_data import TINY

from percmae.config import load_config
from percmae.data.sample import SampleArchives
from percmae.data.shards import Dataset
from percmae.engine.pretrain import pretrain
from percmae.ingest import ingest
from percmae.jobs.settings import JobSettings
from percmae.jobs.work import Work
from percmae.stages import steps
from percmae.stages.placement import Placement
from percmae.storage import outage
from percmae.storage.settings import RETRY_VARIABLE

if TYPE_CHECKING:
    from s3_server import S3

pytestmark = pytest.mark.faults


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """What the steps see of the store; a request is repeated for a second."""
    monkeypatch.setattr(outage, "_FIRST", 0.5)
    with FaultyProxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        monkeypatch.setenv(RETRY_VARIABLE, "1")
        monkeypatch.setenv(outage.OUTAGE_VARIABLE, "60")
        yield running


@pytest.fixture(scope="module")
def data(s3: S3, tiny_archives: SampleArchives) -> Dataset:
    return ingest(**tiny_archives.uris(), to=s3.uri("data")).dataset


def artifact(folder: Path, **metadata: Any) -> Any:
    """One that a step reads or writes, and what it logs."""
    folder.mkdir(exist_ok=True)
    return SimpleNamespace(
        path=str(folder / "artifact"), metadata=metadata, log_metric=lambda name, value: None
    )


def test_an_ingest(
    s3: S3, proxy: FaultyProxy, data: Dataset, tiny_archives: SampleArchives, tmp_path: Path
) -> None:
    """Its processes write shards; the same images give the same digest."""
    made, store = artifact(tmp_path / "made"), s3.uri("steps")
    proxy.when("train-000000.tar", lambda: proxy.last(4, "refuse"))
    began = time.monotonic()
    steps.ingest("", "", list(tiny_archives.uris().values()), store, "tiny", made)
    assert time.monotonic() - began > 3
    assert made.metadata["digest"] == data.digest


@pytest.mark.parametrize("seconds", [60.0, 2.0])
def test_a_step_that_launches(
    s3: S3,
    proxy: FaultyProxy,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
) -> None:
    """The store goes away while the job is under way, and is still away when that has ended."""
    settings = [*TINY, "optim.epochs=1"]
    store = s3.uri("steps")

    def job(work: Work, settings_: JobSettings, pipeline_run: str) -> None:
        config = load_config("mae", "demo", overrides=settings, tag="t")
        pretrain(config, data.uri, steps.runs_folder(store, 0))
        proxy.last(4, "refuse")

    monkeypatch.setattr("percmae.stages.launch.launch", job)
    monkeypatch.setenv(outage.OUTAGE_VARIABLE, str(seconds))
    given, model = artifact(tmp_path / "data", uri=data.uri), artifact(tmp_path / "model")

    def step() -> None:
        how = ("mae", "demo", "", "t", settings)
        steps.pretrain(given, store, 0, *how, model, model, Placement("pytorchjob"))

    if seconds > 4:
        step()
        assert model.metadata["uri"] == f"{store}/runs/seed-0/t_mae"
        return
    with pytest.raises(SystemExit) as ended:
        step()
    assert ended.value.code == 140
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("percmae: error: no usable answer from the store at")


def test_a_step_in_a_pod_waits_for_its_first_answer(
    s3: S3, proxy: FaultyProxy, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_answered", set())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr("percmae.stages.launch.launch", lambda *_: pytest.fail("launched"))
    config = load_config("mae", "demo", overrides=[*TINY, "optim.epochs=1"], tag="t")
    store = s3.uri("steps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        pretrain(config, data.uri, steps.runs_folder(store, 0))
    proxy.last(4, "refuse")
    given, model = artifact(tmp_path / "data", uri=data.uri), artifact(tmp_path / "model")
    how = ("mae", "demo", "", "t", [*TINY, "optim.epochs=1"])
    steps.pretrain(given, store, 0, *how, model, model, Placement("pytorchjob"))
    assert model.metadata["reused"]
