"""Fixtures for tests that need a store: one real S3 server for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from s3_server import S3, SERVERS, running

from percmae.progress import log_to_stderr
from percmae.storage import StorePath, StoreSettings, stream

pytest_plugins = ["fixtures_data"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--s3", choices=SERVERS, default="seaweedfs", help="the tests' S3 server")


# Files that take long as a whole, though few of their tests do: slow, like the tests marked so.
LONG_FILES = {
    "cli/test_cli.py",
    "cli/test_surroundings.py",
    "data/test_ingest.py",
    "data/test_opened_dataset.py",
    "data/test_loader.py",
    "data/test_mixture.py",
    "data/test_odd_archives.py",
    "data/test_workers.py",
    "doctor/test_doctor_tries.py",
    "engine/test_features.py",
    "engine/test_finetune.py",
    "engine/test_formats.py",
    "engine/test_frozen.py",
    "engine/test_joining.py",
    "engine/test_knn.py",
    "engine/test_mlflow_away.py",
    "engine/test_pretrain.py",
    "engine/test_random_settings.py",
    "engine/test_serving.py",
    "engine/test_strategy.py",
    "engine/test_surroundings.py",
    "engine/test_unlabelled.py",
    "engine/test_variants.py",
    "engine/test_waiting.py",
    "engine/test_weight_files.py",
    "engine/test_weights_parent.py",
    "engine/test_whose_settings.py",
    "ingest/test_growth.py",
    "ingest/test_make.py",
    "jobs/test_digest.py",
    "jobs/test_manifests.py",
    "jobs/test_overlays.py",
    "jobs/test_schema.py",
    "jobs/test_work.py",
    "losses/test_objectives.py",
    "models/test_agreement.py",
    "models/test_features.py",
    "pipelines/local/test_tasks.py",
    "pipelines/server/test_forward.py",
    "pipelines/server/test_schedule.py",
    "pipelines/server/test_submit.py",
    "pipelines/test_compile.py",
    "report/test_report_compare.py",
    "report/test_report_figures.py",
    "report/test_report_page.py",
    "report/test_report_rows.py",
    "stages/test_requests.py",
    "stages/test_without_labels.py",
    "storage/test_storage_proxy.py",
    "storage/test_storage_retry.py",
    "storage/test_storage_roles.py",
    "storage/test_storage_s3.py",
    "test_python.py",
    "test_unused.py",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: of two processes that share them, neither is left with one."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
    here = Path(__file__).parent
    files = {here / name for name in LONG_FILES}
    for item in items:
        if item.path in files:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A test hears what a command would say, whatever it calls."""
    with log_to_stderr():
        yield


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server in a temporary folder, found by ``StoreSettings.load()`` everywhere."""
    server, folder = request.config.getoption("--s3"), tmp_path_factory.mktemp("store")
    with (
        pytest.MonkeyPatch.context() as patch,
        running(server, folder, bucket="percmae-tests") as store,
    ):
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "PERCMAE_STORE_CONFIG"):
            patch.delenv(name, raising=False)
        for name, value in store.environ.items():
            patch.setenv(name, value)
        yield S3(store, server)


@pytest.fixture
def proxy(s3: S3) -> Iterator[FaultyProxy]:
    """What misbehaves on demand before the server."""
    with FaultyProxy(s3.endpoint) as running:
        yield running


@pytest.fixture(params=["local", "s3"])
def tmp_store(request: pytest.FixtureRequest, tmp_path: Path) -> StorePath:
    """An empty place to write to: once a local folder, once a prefix in the S3 server."""
    if request.param == "local":
        return StorePath(tmp_path / "store")
    server: S3 = request.getfixturevalue("s3")
    return StorePath(server.uri("tmp"), StoreSettings.load())


@pytest.fixture
def part_bytes(monkeypatch: pytest.MonkeyPatch) -> int:
    """The size of an upload's parts, made as small as S3 allows."""
    monkeypatch.setattr(stream, "PART_BYTES", 5 << 20)
    return stream.PART_BYTES
