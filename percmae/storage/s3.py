"""One object in an S3-compatible store, on minio-py.

Loaded at the first S3 request only: importing minio takes half a second.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, cast
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.datatypes import Part
from minio.error import MinioException, S3Error
from urllib3.exceptions import ProtocolError

from percmae.errors import StoreAccessError, StoreError
from percmae.storage import outage, stream
from percmae.storage.base import Stat, Target
from percmae.storage.clients import client
from percmae.storage.explain import explain, is_absent, not_a_store
from percmae.storage.transport import (
    CONNECTION_ERRORS,
    Patience,
    Server,
    raise_if_final,
)

if TYPE_CHECKING:
    from percmae.storage.settings import StoreSettings

_BODY_PIECE = 1 << 20
# Aborting an upload is a courtesy after a failure; it may not take as long again.
_ABORT_SECONDS = 3.0

_Headers: TypeAlias = dict[str, str | list[str] | tuple[str]]


class S3Object:
    """One key in one bucket. A key of "" stands for the bucket itself."""

    def __init__(self, bucket: str, key: str, settings: StoreSettings) -> None:
        self.bucket = bucket
        self.key = key
        self.settings = settings

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")

    def stat(self) -> Stat | None:
        if not self.key:
            return None
        try:
            with self.errors("look at"):
                found = self._client.stat_object(self.bucket, self.key)
        except StoreAccessError as error:
            if is_absent(error.__cause__):
                return None
            raise
        modified = found.last_modified.timestamp() if found.last_modified else 0.0
        return Stat(found.size or 0, self._etag(found.etag, "look at"), modified)

    def read(self, start: int, length: int | None, etag: str | None = None) -> bytes:
        """Bytes of the object; with ``etag``, of that version of it or not at all.

        A connection that breaks is taken up at the byte reached, on the same version.
        """
        if length == 0 or not self.key:
            self._must_exist()
            return b""
        body = stream.Body(etag)
        server = Server.store(self.settings)
        patience = Patience(server)
        while True:
            reached = body.bytes
            try:
                with self.errors("read"):
                    self._read_on(body, start, length)
            except CONNECTION_ERRORS as error:
                raise_if_final(error, server)
                if body.bytes > reached:
                    patience.renew()
                patience.pause(error)
            else:
                return body.joined()

    def open(self) -> BinaryIO:
        found = self.stat()
        if found is None:
            raise self._absent()

        def fetch(start: int, length: int) -> bytes:
            data = self.read(start, length, found.etag)
            if len(data) != length:
                raise StoreError(f"{self.uri}: the store sent {len(data)} of {length} bytes")
            return data

        return cast(BinaryIO, io.BufferedReader(stream.Reader(found.size, fetch)))

    @contextmanager
    def create(self, content_type: str | None = None) -> Iterator[BinaryIO]:
        writer = stream.Writer(self, content_type or "application/octet-stream")
        try:
            yield cast(BinaryIO, writer)
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def put(self, data: bytes, content_type: str) -> None:
        with self.errors("write"):
            done = self._client.put_object(
                self.bucket, self.key, io.BytesIO(data), len(data), content_type=content_type
            )
        self._etag(done.etag, "write")

    def update(self, change: Callable[[bytes | None], bytes], content_type: str) -> None:
        while True:
            found = self.stat()
            try:
                before = None if found is None else self.read(0, None, found.etag)
            except StoreError as error:
                if _is_replaced(error):
                    continue
                raise
            if self._swap(change(before), content_type, found.etag if found else None):
                return

    def _swap(self, data: bytes, content_type: str, etag: str | None) -> bool:
        """Put the content unless it is no more the one of ``etag`` (None: unless there is one)."""
        headers: _Headers = {"Content-Type": content_type}
        headers |= {"If-Match": f'"{etag}"'} if etag else {"If-None-Match": "*"}
        try:
            with self.errors("write"):
                self._client._put_object(self.bucket, self.key, data, headers)
        except StoreError as error:
            if _is_replaced(error):
                # By this request itself, where its first answer was lost on the way.
                return self.stat() is not None and self.read(0, None) == data
            raise
        return True

    def delete(self) -> None:
        with self.errors("delete"):
            self._client.remove_object(self.bucket, self.key)

    def prune(self) -> None:
        """There are no folders."""

    def entries(self) -> Iterator[tuple[str, int, str, float]]:
        prefix = f"{self.key}/" if self.key else ""
        with self.errors("list"):
            for found in self._client.list_objects(self.bucket, prefix=prefix, recursive=True):
                name = (found.object_name or "")[len(prefix) :]
                if name and not name.endswith("/"):  # "folder/" marks an empty folder
                    changed = found.last_modified.timestamp() if found.last_modified else 0.0
                    yield name, found.size or 0, (found.etag or "").strip('"'), changed

    def prepare(self) -> None:
        with self.errors("create the bucket of"):
            if self._client.bucket_exists(self.bucket):
                return
            try:
                self._client.make_bucket(self.bucket)
            except S3Error as error:
                # Someone else was faster.
                if error.code != "BucketAlreadyOwnedByYou":
                    raise

    # A multipart upload step by step. minio-py's public put_object pulls from a stream, and here
    # the data is pushed by whoever writes, so these use the calls it is made of.

    def start_upload(self, content_type: str) -> str:
        with self.errors("write"):
            headers: _Headers = {"Content-Type": content_type}
            return self._client._create_multipart_upload(self.bucket, self.key, headers)

    def upload_part(self, upload: str, number: int, data: bytes) -> str:
        with self.errors("write"):
            etag = self._client._upload_part(self.bucket, self.key, data, None, upload, number)
        return self._etag(etag, "write")

    def complete_upload(self, upload: str, etags: list[str], size: int) -> None:
        parts = [Part(number, etag) for number, etag in enumerate(etags, 1)]
        patience = Patience(Server.store(self.settings))
        while True:
            try:
                with self.errors("write"):
                    done = self._client._complete_multipart_upload(
                        self.bucket, self.key, upload, parts
                    )
            except StoreError as error:
                # Its first answer may have been lost on the way: the object itself tells.
                if self._is_complete(error, etags, size):
                    return
                raise
            if done.etag:
                return
            # S3 may begin with "200 OK" and still fail; only the body then says so.
            patience.pause("the upload was not completed")

    def abort_upload(self, upload: str) -> None:
        # A failure here would hide the error that led to it; the store's own rule for incomplete
        # uploads, or `mc rm --incomplete`, removes what is left.
        try:
            with outage.hurry(_ABORT_SECONDS):
                self._client._abort_multipart_upload(self.bucket, self.key, upload)
        except (MinioException, StoreError, urllib3.exceptions.HTTPError):
            return

    @property
    def _client(self) -> Minio:
        return client(self.settings)

    def _read_on(self, body: stream.Body, start: int, length: int | None) -> None:
        """Read on where ``body`` ends, all that is wanted or to the end of the object.

        A range is asked for even of the whole: the answer to it says how long the object is, so
        that a body which somebody on the way has cut short, and its Content-Length, is told.
        Raises ``ProtocolError`` where less comes than was said.
        """
        first = start + body.bytes
        last = None if length is None else start + length - 1
        headers: _Headers = {"Range": f"bytes={first}-{'' if last is None else last}"}
        if body.etag:
            headers["If-Match"] = f'"{body.etag}"'
        try:
            response = self._client.get_object(self.bucket, self.key, request_headers=headers)
        except S3Error as error:
            if error.code == "InvalidRange":  # begins at or beyond the end
                return
            raise
        try:
            if first and response.status != 206:
                raise StoreError(f"{self.uri}: the store ignored the range asked for")
            etag = self._etag(response.headers.get("etag"), "read")
            wanted = stream.promised(response, first, last)
            body.etag = body.etag or etag.strip('"')
            for piece in response.stream(_BODY_PIECE, decode_content=False):
                body.add(piece if wanted is None else piece[:wanted])
                wanted = None if wanted is None else wanted - min(wanted, len(piece))
            if wanted:
                raise ProtocolError(f"{wanted} bytes of the object have not come")
            response.release_conn()
        finally:
            response.close()

    def _is_complete(self, error: StoreError, etags: list[str], size: int) -> bool:
        cause = error.__cause__
        if not isinstance(cause, S3Error) or cause.code != "NoSuchUpload":
            return False
        found = self.stat()
        return found == Stat(size, stream.multipart_etag(etags), found.modified if found else 0.0)

    def _etag(self, etag: str | None, doing: str) -> str:
        """``etag``, which every S3 store sends and a web server taken for one rarely does."""
        if not etag:
            raise not_a_store(doing, self._target, "no ETag")
        return etag

    def _must_exist(self) -> None:
        if self.stat() is None:
            raise self._absent()

    def _absent(self) -> StoreAccessError:
        return StoreAccessError(f"{self.uri} does not exist in {Server.store(self.settings)}")

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn what minio raises while ``doing`` something into ``StoreError``."""
        try:
            yield
        except (MinioException, ValueError, ParseError) as error:
            explained = explain(error, doing, self._target, self._ask)
            raise explained from explained.__cause__

    def _ask(self) -> None:
        next(iter(self._client.list_objects(self.bucket, prefix=self.key)), None)

    @property
    def _target(self) -> Target:
        of = self.settings
        return Target(
            self.uri,
            self.bucket,
            store=Server.store(of).address,
            who=of.who,
            keys=of.origin,
            token=of.token_origin,
            sent=f" with a session token ({of.token_origin})" if of.session_token else "",
        )


def _is_replaced(error: StoreError) -> bool:
    """Whether a condition on the version of an object was not met."""
    codes = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")
    return isinstance(error.__cause__, S3Error) and error.__cause__.code in codes
