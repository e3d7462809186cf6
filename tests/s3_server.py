"""The S3 server of a test session, as tests see it (fixture ``s3``)."""

from __future__ import annotations

import itertools

from percmae.local_store import LocalStore
from percmae.storage import StorePath


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
