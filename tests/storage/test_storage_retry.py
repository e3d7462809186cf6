"""A store that fails for a while is waited for; one that stays away is given up in time."""

from __future__ import annotations

import itertools
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import urllib3
from faulty_proxy import FaultyProxy

from percmae.errors import StoreAway, StoreError
from percmae.storage import StorePath, StoreSettings
from percmae.storage.clients import client

if TYPE_CHECKING:
    from s3_server import S3

pytestmark = pytest.mark.usefixtures("part_bytes")

PARTS = 5 << 20  # what the fixture part_bytes sets
CONTENT = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    from percmae.storage import transport

    monkeypatch.setattr(transport, "_FIRST_PAUSE", 0.01)


@pytest.fixture
def file(s3: S3, proxy: FaultyProxy) -> StorePath:
    """An object with ``CONTENT``, seen through the proxy."""
    uri = s3.uri("retry") + "/file"
    StorePath(uri, s3.settings).write_bytes(CONTENT)
    return StorePath(uri, replace(s3.settings, endpoint=proxy.endpoint, retry_seconds=8))


ACTIONS: dict[str, Callable[[StorePath], Any]] = {
    "read": lambda file: file.read_bytes() == CONTENT,
    "stream": lambda file: file.open().read() == CONTENT,
    "exists": lambda file: file.exists(),
    "write": lambda file: file.write_bytes(b"new") is None and file.read_bytes() == b"new",
    "delete": lambda file: file.delete() is None and not file.exists(),
    "list": lambda file: [entry.name for entry in file.parent.iter()] == ["file"],
}


@pytest.mark.parametrize("fault", ["503", "500", "refuse"])
@pytest.mark.parametrize("action", ACTIONS)
def test_works_in_the_end(file: StorePath, proxy: FaultyProxy, action: str, fault: str) -> None:
    proxy.fault(fault, times=3)
    assert ACTIONS[action](file)
    assert len(proxy.requests) > 3


def test_a_body_cut_short_is_taken_up_where_it_broke(file: StorePath, proxy: FaultyProxy) -> None:
    proxy.fault("cut", times=4, on="GET")
    assert file.read_bytes() == CONTENT
    assert len(proxy.requests) == 5
    assert proxy.sent(len(CONTENT)) == len(CONTENT)
    proxy.fault("cut", times=3, on="GET")
    assert file.read_bytes(1_000_000, 1_000_001) == CONTENT[1_000_000:2_000_001]
    proxy.fault("cut", times=5, on="GET")
    with file.open() as stream:
        assert stream.read(100) == CONTENT[:100]
        assert stream.read() == CONTENT[100:]


def test_patience_lasts_as_long_as_there_is_progress(
    s3: S3, file: StorePath, proxy: FaultyProxy
) -> None:
    settings = replace(s3.settings, endpoint=proxy.endpoint, retry_seconds=2)
    proxy.fault("cut", times=12, on="GET")
    assert StorePath(file, settings).read_bytes() == CONTENT
    assert not proxy._faults


def test_half_of_one_version_is_never_joined_to_half_of_another(
    s3: S3, file: StorePath, proxy: FaultyProxy
) -> None:
    proxy.fault("cut", on="GET")
    original = proxy.next_fault
    replaced = []

    def next_fault(line: str) -> str | None:
        if proxy.requests and not replaced:
            replaced.append(True)
            StorePath(file, s3.settings).write_bytes(b"2" * len(CONTENT))
        return original(line)

    proxy.next_fault = next_fault  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="was replaced while it was being read"):
        file.read_bytes()
    assert replaced


def test_a_server_that_stops_answering_is_asked_again(
    s3: S3, file: StorePath, proxy: FaultyProxy
) -> None:
    settings = replace(s3.settings, endpoint=proxy.endpoint, retry_seconds=3)
    patient = StorePath(file, settings)
    proxy.fault("hang")
    began = time.monotonic()
    assert patient.read_bytes() == CONTENT
    assert 1.4 < time.monotonic() - began < 3.5


@pytest.mark.parametrize("fault", ["hang", "refuse", "503"])
def test_gives_up_in_bounded_time(s3: S3, file: StorePath, proxy: FaultyProxy, fault: str) -> None:
    settings = replace(s3.settings, endpoint=proxy.endpoint, retry_seconds=0.6)
    impatient = StorePath(file, settings)
    proxy.fault(fault, times=1000)
    words = {"hang": "timed out", "refuse": "without response", "503": "HTTP 503 SlowDown"}
    began = time.monotonic()
    with pytest.raises(StoreAway, match=words[fault]) as error:
        impatient.read_bytes()
    seconds = time.monotonic() - began
    assert 0.2 < seconds < 2.5
    assert error.value.exit_code == 140
    assert proxy.endpoint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["refused", "unknown host"])
def test_no_server(where: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    host = "127.0.0.1" if where == "refused" else "no-such-host.invalid"
    settings = StoreSettings(f"http://{host}:{port}", "key", "secret", retry_seconds=0.5)
    began = time.monotonic()
    with pytest.raises(StoreError) as error:
        StorePath("s3://bucket/key", settings).write_bytes(bytes(PARTS + 1))
    assert time.monotonic() - began < 4
    assert f"{host}:{port}" in str(error.value)
    assert ("refused" in str(error.value)) == (where == "refused")
    assert "0x" not in str(error.value)


def test_a_store_that_goes_away_during_an_upload(s3: S3, file: StorePath) -> None:
    with FaultyProxy(s3.endpoint) as proxy:
        settings = replace(s3.settings, endpoint=proxy.endpoint, retry_seconds=2)
        proxy.fault("refuse", times=1000, on="partNumber=2")
        began = time.monotonic()
        with pytest.raises(StoreError, match="no usable answer"):
            StorePath(file, settings).write_bytes(bytes(3 * PARTS))
        assert time.monotonic() - began < 10
    assert StorePath(file, s3.settings).read_bytes() == CONTENT
    assert s3.uploads(file) == []


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        *itertools.product(["uploads=", "partNumber=2", "?uploadId="], ["lose", "503", "cut"]),
        ("?uploadId=", "error200"),
    ],
)
def test_each_step_of_an_upload_survives_a_failure(
    s3: S3, file: StorePath, proxy: FaultyProxy, step: str, fault: str
) -> None:
    proxy.fault(fault, on=step)
    content = os.urandom(PARTS + 100)
    file.write_bytes(content)
    assert file.read_bytes() == content
    assert not proxy._faults


def test_a_completed_upload_whose_answer_was_lost_is_recognised(
    s3: S3, file: StorePath, proxy: FaultyProxy
) -> None:
    content = os.urandom(PARTS + 100)
    proxy.fault("lose", on="?uploadId=")
    proxy.fault("no upload", on="?uploadId=")  # as most stores answer the second time
    file.write_bytes(content)
    assert not proxy._faults
    assert StorePath(file, s3.settings).read_bytes() == content
    proxy.fault("no upload", on="?uploadId=")
    with pytest.raises(StoreError, match="NoSuchUpload"):
        file.write_bytes(os.urandom(PARTS + 100))
    assert StorePath(file, s3.settings).read_bytes() == content


def test_an_upload_that_someone_aborted_is_an_error(s3: S3, file: StorePath) -> None:
    def write_and_abort() -> None:
        with file.create() as stream:
            stream.write(os.urandom(PARTS + 100))
            (upload,) = s3.uploads(file)
            client(s3.settings)._abort_multipart_upload(s3.bucket, file._key, upload)

    with pytest.raises(StoreError, match="NoSuchUpload"):
        write_and_abort()
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize("page", ["page", "text"])
@pytest.mark.parametrize("action", sorted(ACTIONS.keys() - {"delete"}))  # any 200 will do for that
def test_a_web_page_is_not_a_store(
    file: StorePath, proxy: FaultyProxy, action: str, page: str
) -> None:
    proxy.fault(page, times=100)
    with pytest.raises(StoreError, match="does not answer like an S3 store") as error:
        ACTIONS[action](file)
    assert proxy.endpoint in str(error.value)


def test_retries_leave_the_global_random_numbers_alone(file: StorePath, proxy: FaultyProxy) -> None:
    random.seed(7)
    before = random.getstate()
    proxy.fault("503", times=3)
    file.write_bytes(bytes(PARTS + 1))
    assert random.getstate() == before


def test_large_bodies_are_sent_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's timeout covers a whole send, and a slow line must not look like a dead one."""
    sent: list[list[bytes]] = []

    def urlopen(*_: Any, body: Any, **options: Any) -> urllib3.HTTPResponse:
        sent.append([body] if isinstance(body, bytes) else list(body))
        return urllib3.HTTPResponse(body=b"", headers={"ETag": '"1"'}, status=200)

    monkeypatch.setattr(urllib3.PoolManager, "urlopen", urlopen)
    settings = StoreSettings("http://127.0.0.1:1", "key", "secret", region="us-east-1")
    StorePath("s3://bucket/key", settings).write_bytes(CONTENT)
    assert [len(piece) for piece in sent[0]] == [1 << 20, 1 << 20, 3_000_000 - (2 << 20)]
    assert b"".join(sent[0]) == CONTENT
