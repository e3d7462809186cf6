"""Fixtures for tests that need a store: one real S3 server for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3, SERVERS, running

from percmae.storage import StorePath, StoreSettings, stream

pytest_plugins = ["fixtures_data"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--s3", choices=SERVERS, default="seaweedfs", help="the tests' S3 server")


# Files that take long as a whole, though few of their tests do: slow, like the tests marked so.
LONG_FILES = {
    *("cli/test_cli.py", "data/test_ingest.py", "data/test_loader.py"),
    *(f"engine/test_{name}.py" for name in ("features", "finetune", "formats", "knn", "pretrain")),
    *(f"engine/test_{name}.py" for name in ("random_settings", "strategy", "variants", "waiting")),
    "engine/test_whose_settings.py",
    *("jobs/test_digest.py", "doctor/test_doctor_tries.py", "jobs/test_manifests.py"),
    *("jobs/test_schema.py", "jobs/test_work.py", "losses/test_objectives.py"),
    *("models/test_agreement.py", "models/test_features.py", "pipelines/test_compile.py"),
    *("pipelines/server/test_forward.py", "pipelines/server/test_schedule.py"),
    *("pipelines/server/test_submit.py", "pipelines/local/test_tasks.py"),
    *("report/test_report_compare.py", "report/test_report_figures.py"),
    *("report/test_report_page.py", "stages/test_requests.py", "storage/test_storage_retry.py"),
    "storage/test_storage_s3.py",
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
