"""The S3 server of a test session, as tests see it (fixture ``s3``): SeaweedFS, or MinIO.

``pytest --s3=minio`` takes MinIO, of the program that PERCMAE_TEST_MINIO names.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from percmae.local_store import server as local_store
from percmae.local_store.server import LocalStore
from percmae.storage import StorePath

SERVERS = ("seaweedfs", "minio")


class S3:
    """The session's server; the process's environment points at it."""

    def __init__(self, store: LocalStore, server: str) -> None:
        self.store = store
        self.keeps_rules_for_uploads = server != "minio"
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
        from percmae.storage.clients import client

        found = client(self.settings)._list_multipart_uploads(self.bucket).uploads
        return [upload.upload_id for upload in found if path.uri.endswith(f"/{upload.object_name}")]


@contextmanager
def running(server: str, folder: Path, bucket: str) -> Iterator[LocalStore]:
    """One of SERVERS, for the length of a ``with`` block."""
    if server == "minio":
        with _minio(os.environ["PERCMAE_TEST_MINIO"], folder, bucket) as store:
            yield store
    else:
        with local_store.running(folder, bucket=bucket) as store:
            yield store


@contextmanager
def _minio(program: str, folder: Path, bucket: str) -> Iterator[LocalStore]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    keys = "tests", secrets.token_hex(20)
    log = folder / "server.log"
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "MINIO_ROOT_USER": keys[0],
        "MINIO_ROOT_PASSWORD": keys[1],
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
    }
    data = folder / "data"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "server", str(data), "--address", address],
            env=environment,
            stdout=output,
            stderr=output,
        )
    store = LocalStore(f"http://{address}", *keys, bucket, data, process.pid, log)
    try:
        deadline = time.monotonic() + 60
        while not store.answers():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        StorePath(store.uri, store.settings).prepare()
        yield store
    finally:
        process.kill()
        process.wait()
