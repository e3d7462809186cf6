"""What is particular to S3: its errors in words, multipart uploads, ranged reading, buckets."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from faulty_proxy import FaultyProxy
from web_server import Handler, serving, tls_for

from percmae.errors import StoreAccessError, StoreError
from percmae.storage import StorePath, StoreSettings
from percmae.storage.clients import client

if TYPE_CHECKING:
    from s3_server import S3

pytestmark = pytest.mark.usefixtures("part_bytes")

PARTS = 5 << 20  # what the fixture part_bytes sets

ACTIONS: dict[str, Callable[[StorePath], Any]] = {
    "read": lambda path: path.read_bytes(),
    "read a range": lambda path: path.read_bytes(1, 2),
    "open": lambda path: path.open(),
    "exists": lambda path: path.exists(),
    "stat": lambda path: path.stat(),
    "write": lambda path: path.write_bytes(b"x"),
    "write parts": lambda path: path.write_bytes(bytes(PARTS + 1)),
    "update": lambda path: path.update(lambda before: b"x"),
    "delete": lambda path: path.delete(),
    "list": lambda path: list(path.iter()),
}


@pytest.mark.parametrize("region", [None, "us-east-1"])
@pytest.mark.parametrize("action", ACTIONS)
def test_what_no_retry_will_cure_fails_at_once(s3: S3, action: str, region: str | None) -> None:
    right = replace(s3.settings, region=region)
    path = StorePath(s3.uri()) / "key"
    StorePath(path, right).write_bytes(b"here")
    cases = {
        "does not know the access key 'WRONGKEY'": (
            path.uri,
            replace(right, access_key="WRONGKEY"),
        ),
        "refuses the secret key": (path.uri, replace(right, secret_key="WRONGSECRET")),
        "the bucket 'no-such-bucket' of s3://no-such-bucket/key does not": (
            "s3://no-such-bucket/key",
            right,
        ),
    }
    for expected, (uri, settings) in cases.items():
        began = time.monotonic()
        with pytest.raises(StoreAccessError) as error:
            ACTIONS[action](StorePath(uri, settings))
        message = str(error.value)
        assert expected in message
        assert s3.endpoint in message
        assert "\n" not in message
        assert settings.secret_key not in message
        assert error.value.exit_code == 2
        assert time.monotonic() - began < 5


def test_a_bucket_is_made_by_prepare_only(s3: S3) -> None:
    path = StorePath("s3://made-by-prepare/a/b", s3.settings)
    with pytest.raises(StoreAccessError, match="bucket 'made-by-prepare'"):
        path.write_text("x")
    threads = [threading.Thread(target=path.prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path.prepare()
    path.write_text("x")
    assert [entry.name for entry in path.parent.parent.iter()] == ["a/b"]


def test_a_bucket_is_not_an_object(s3: S3) -> None:
    bucket = StorePath(f"s3://{s3.bucket}", s3.settings)
    assert not bucket.exists()
    for action in (bucket.read_bytes, bucket.open, bucket.stat, bucket.delete):
        with pytest.raises(StoreAccessError, match="names a bucket"):
            action()
    with pytest.raises(StoreAccessError, match="names a bucket"):
        bucket.write_text("x")


def test_content_types(s3: S3) -> None:
    folder = StorePath(s3.uri(), s3.settings)
    (folder / "report.html").write_text("<p>")
    (folder / "image").write_bytes(b"", "image/png")
    (folder / "weights.pt").write_bytes(bytes(PARTS + 1))
    found = {
        entry.name: client(s3.settings).stat_object(s3.bucket, entry.path._key).content_type
        for entry in folder.iter()
    }
    assert found == {
        "image": "image/png",
        "report.html": "text/html; charset=utf-8",
        "weights.pt": "application/octet-stream",
    }


def test_markers_of_empty_folders_are_not_listed(s3: S3) -> None:
    folder = StorePath(s3.uri(), s3.settings)
    for key in (f"{folder._key}/", f"{folder._key}/empty/"):
        client(s3.settings).put_object(s3.bucket, key, io.BytesIO(), 0)
    (folder / "file").write_text("x")
    assert [entry.name for entry in folder.iter()] == ["file"]


def test_an_abandoned_upload_is_removed(s3: S3) -> None:
    path = StorePath(s3.uri(), s3.settings) / "large"
    with contextlib.suppress(KeyboardInterrupt), path.create() as stream:
        stream.write(bytes(2 * PARTS + 1))
        assert len(s3.uploads(path)) == 1
        raise KeyboardInterrupt
    assert s3.uploads(path) == []
    assert not path.exists()


def test_a_refused_part_removes_the_upload_and_keeps_the_old(s3: S3, proxy: FaultyProxy) -> None:
    path = StorePath(s3.uri(), replace(s3.settings, endpoint=proxy.endpoint)) / "large"
    path.write_text("old")
    proxy.fault("page", on="partNumber=2")
    with pytest.raises(StoreError, match="does not answer like an S3 store"):
        path.write_bytes(bytes(2 * PARTS + 1))
    assert s3.uploads(path) == []
    assert path.read_text() == "old"


def test_skipping_over_tar_members_does_not_read_them(s3: S3, proxy: FaultyProxy) -> None:
    path = StorePath(s3.uri(), replace(s3.settings, endpoint=proxy.endpoint)) / "archive.tar"
    count, size = 12, 600_000
    with path.create() as stream, tarfile.open(fileobj=stream, mode="w:") as archive:
        for number in range(count):
            member = tarfile.TarInfo(f"{number}")
            member.size = size
            archive.addfile(member, io.BytesIO(os.urandom(size)))
    before = proxy.body_bytes
    with path.open() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        assert [member.name for member in archive] == [str(number) for number in range(count)]
    skipping = proxy.body_bytes - before
    assert skipping < 0.15 * count * size
    before = proxy.body_bytes
    with path.open() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        third = archive.extractfile("3")
        assert third is not None
        assert len(third.read()) == size
    assert proxy.body_bytes - before < 3 * size + skipping


def test_reading_on_takes_few_requests_and_transfers_nothing_twice(
    s3: S3, proxy: FaultyProxy
) -> None:
    uri = f"{s3.uri()}/file"
    path = StorePath(uri, replace(s3.settings, endpoint=proxy.endpoint))
    content = os.urandom(20_000_000)
    # Past the proxy, which may count the last answer to a write only after it has come.
    StorePath(uri, s3.settings).write_bytes(content)
    proxy.requests.clear()
    before = proxy.body_bytes
    with path.open() as stream:
        read = b"".join(iter(lambda: stream.read(50_000), b""))
    assert read == content
    assert proxy.sent(before + len(content)) - before == len(content)
    assert len(proxy.requests) <= 12


def test_an_object_replaced_while_it_is_read_is_noticed(s3: S3) -> None:
    path = StorePath(s3.uri(), s3.settings) / "file"
    path.write_bytes(b"1" * 500_000)
    with path.open() as stream:
        assert stream.read(10) == b"1" * 10
        path.write_bytes(b"2" * 500_000)
        with pytest.raises(StoreError, match="was replaced while it was being read"):
            stream.read()
    with path.open() as stream:
        path.delete()
        with pytest.raises(StoreAccessError, match="does not exist"):
            stream.read()


def test_endpoints_with_and_without_scheme(s3: S3) -> None:
    path = StorePath(s3.uri(), s3.settings) / "file"
    path.write_text("x")
    for endpoint in (s3.endpoint, s3.endpoint + "/", s3.endpoint.removeprefix("http://")):
        assert StorePath(path, replace(s3.settings, endpoint=endpoint, secure=None)).exists()


def test_https_to_a_server_without_tls_fails_at_once(s3: S3) -> None:
    endpoint = s3.endpoint.replace("http://", "https://")
    path = StorePath(s3.uri(), replace(s3.settings, endpoint=endpoint, secure=None)) / "file"
    began = time.monotonic()
    with pytest.raises(StoreAccessError, match=f"does not speak TLS.* {s3.endpoint}$"):
        path.exists()
    assert time.monotonic() - began < 2


class Object(Handler):
    def do_GET(self) -> None:
        self.answer(200, b"hello", ETag='"1"')


@pytest.mark.parametrize(
    ("name", "days", "message"),
    [
        ("localhost", (-1, 1), None),
        ("other.example", (-1, 1), r"another host's \(Hostname mismatch.*'localhost'\): give the"),
        ("127.0.0.1", (-1, 1), "another host's"),
        ("localhost", (-9, -1), "has expired: it has to be renewed"),
        ("localhost", (1, 9), "is not valid yet: set this machine's clock"),
    ],
)
def test_what_is_wrong_with_a_certificate(
    s3: S3, tmp_path: Path, name: str, days: tuple[int, int], message: str | None
) -> None:
    authority, file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    with serving(Object, tls_for(authority, name, days)) as port:
        endpoint = f"https://localhost:{port}"
        settings = replace(s3.settings, endpoint=endpoint, secure=None, ca_file=str(file))
        path = StorePath("s3://bucket/key", settings)
        if message is None:
            assert path.read_bytes() == b"hello"
            return
        with pytest.raises(StoreAccessError, match=f"certificate of {endpoint} .*{message}") as e:
            path.read_bytes()
        assert "AWS_CA_BUNDLE" not in str(e.value), "a file of authorities does not cure it"


def test_the_files_of_authorities(s3: S3, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    (tmp_path / "none.pem").write_text("no certificate")
    cases = {
        None: r"certificate of .* is not trusted: name its authority's PEM file in AWS_CA_BUNDLE",
        "other.pem": r"certificate of .* is of no authority in .*other\.pem: name its",
        "absent.pem": r"authorities .*absent\.pem .* does not exist",
        "none.pem": r"authorities .*none\.pem .* has no certificate in PEM form",
        ".": r"authorities .* cannot be read: Is a directory",
    }
    with serving(Object, tls_for(authority, "localhost")) as port:
        settings = replace(s3.settings, endpoint=f"https://localhost:{port}", secure=None)
        for name, message in cases.items():
            file = None if name is None else str(tmp_path / name)
            with pytest.raises(StoreAccessError, match=message):
                StorePath("s3://bucket/key", replace(settings, ca_file=file)).read_bytes()


def test_a_refused_session_token_is_named(s3: S3) -> None:
    """SeaweedFS calls it an unknown access key, which sends people to look at the wrong thing."""
    environment = s3.environ | {"AWS_SESSION_TOKEN": "expired-long-ago"}
    path = StorePath(s3.uri(), StoreSettings.load(environment)) / "file"
    for action in ACTIONS.values():
        with pytest.raises(StoreAccessError, match=r"session token.*AWS_SESSION_TOKEN") as error:
            action(path)
        assert "expired-long-ago" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("InvalidToken", r"does not accept the session token: check AWS_SESSION_TOKEN, or leave"),
        ("InvalidTokenId", r"does not accept the session token: check AWS_SESSION_TOKEN, or leave"),
        ("ExpiredToken", r"the session token \(AWS_SESSION_TOKEN\) .* has expired"),
        ("AccessDenied", r"does not let the access key 'k' with a session token \(AWS_SESSION_T"),
    ],
)
def test_how_stores_refuse_a_session_token(code: str, message: str) -> None:
    class Refusing(Handler):
        def do_GET(self) -> None:
            body = f"<Error><Code>{code}</Code><Message>No</Message></Error>".encode()
            self.answer(400, body, Content_Type="application/xml")

        do_HEAD = do_GET

    with serving(Refusing) as port:
        settings = StoreSettings.load(
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "k",
                "AWS_SECRET_ACCESS_KEY": "s",
                "AWS_SESSION_TOKEN": "t",
                "AWS_REGION": "us-east-1",
            }
        )
        path = StorePath("s3://bucket/key", settings)
        for action in (path.read_bytes, path.exists):
            with pytest.raises(StoreAccessError, match=message):
                action()


def test_a_header_that_cannot_be_sent_is_not_shown(s3: S3) -> None:
    path = StorePath(s3.uri(), s3.settings) / "file"
    with pytest.raises(StoreAccessError, match="a header that cannot be sent") as error:
        path.write_bytes(b"x", content_type="text/plain\nX-Secret: 1")
    assert "X-Secret" not in str(error.value)


def test_one_client_for_equal_settings(s3: S3) -> None:
    assert client(s3.settings) is client(replace(s3.settings))
    assert client(s3.settings) is not client(replace(s3.settings, retry_seconds=1))


def test_a_forked_child_has_connections_of_its_own(s3: S3) -> None:
    path = StorePath(s3.uri(), s3.settings) / "file"
    path.write_text("x")
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child() -> None:
        results.put((path.read_text(), id(client(s3.settings))))

    process = context.Process(target=child)
    process.start()
    text, identity = results.get()
    process.join(10)
    assert process.exitcode == 0
    assert text == "x"
    assert identity != id(client(s3.settings))
