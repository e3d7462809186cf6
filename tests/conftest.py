"""Fixtures for tests that need a store: one real S3 server for the whole session."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from percmae import local_store
from percmae.local_store import LocalStore
from percmae.storage import StorePath, StoreSettings, stream

pytest_plugins = ["fixtures_data"]


class S3:
    """The session's server; the process's environment points at it."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self.endpoint = store.endpoint
        self.bucket = store.bucket
        self.settings = store.settings
        self.environ = store.environ
        self._numbers = itertools.count()

    def uri(self, prefix: str = "test") -> str:
        """An s3:// prefix that nothing has been written below yet."""
        return f"s3://{self.bucket}/{prefix}-{next(self._numbers):04d}"

    def uploads(self, path: StorePath) -> list[str]:
        """The ids of the unfinished multipart uploads to ``path``."""
        from percmae.storage.s3 import client

        found = client(self.settings)._list_multipart_uploads(self.bucket).uploads
        return [upload.upload_id for upload in found if path.uri.endswith(f"/{upload.object_name}")]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server in a temporary folder, found by ``StoreSettings.load()`` everywhere."""
    with (
        pytest.MonkeyPatch.context() as patch,
        local_store.running(tmp_path_factory.mktemp("store"), bucket="percmae-tests") as store,
    ):
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "PERCMAE_STORE_CONFIG"):
            patch.delenv(name, raising=False)
        for name, value in store.environ.items():
            patch.setenv(name, value)
        yield S3(store)


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
