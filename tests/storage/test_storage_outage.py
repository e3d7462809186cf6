"""An outage of the store is borne as long as it may be, told once a minute, and ends with 140."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from faulty_proxy import FaultyProxy

from percmae.errors import StoreAccessError, StoreAway, StoreError, UserError
from percmae.storage import StorePath, transport
from percmae.storage import outage as module
from percmae.storage.outage import hurry, outage, repeated, waiting

if TYPE_CHECKING:
    from s3_server import S3

CONTENT = os.urandom(200_000)


@pytest.fixture(autouse=True)
def told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST", 0.2)
    monkeypatch.setattr(module, "_EVERY", 0.6)
    monkeypatch.setattr(transport, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(transport, "_LONGEST_PAUSE", 0.2)


@pytest.fixture
def file(s3: S3, proxy: FaultyProxy) -> StorePath:
    """An object seen through the proxy, by requests that are repeated for half a second."""
    uri = s3.uri("outage") + "/file"
    StorePath(uri, s3.settings).write_bytes(CONTENT)
    return StorePath(uri, replace(s3.settings, endpoint=proxy.endpoint, retry_seconds=0.3))


@pytest.mark.parametrize("fault", ["refuse", "503", "revoked", "full"])
def test_is_borne_for_longer_than_a_request(
    file: StorePath, proxy: FaultyProxy, fault: str
) -> None:
    with outage(20):
        file.write_bytes(CONTENT)
        assert file.read_bytes() == CONTENT
        proxy.last(0.8, fault, "PUT" if fault == "full" else "")
        began = time.monotonic()
        file.write_bytes(CONTENT[::-1])
        assert 0.6 < time.monotonic() - began < 15
        assert file.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refuse", "is it running, and is the endpoint right"),
        ("full", r"HTTP 507 XMinioStorageFull\): make room there"),
        ("revoked", r"HTTP 403 InvalidAccessKeyId\): the keys were good before: renew access_key"),
    ],
)
def test_longer_than_is_borne(
    file: StorePath, proxy: FaultyProxy, fault: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with outage(0.9):
        file.write_bytes(b"")
        began = time.monotonic()
        with proxy.lasting(fault), pytest.raises(StoreAway, match=words) as error:
            file.write_bytes(CONTENT)
        assert 0.6 < time.monotonic() - began < 10
    assert error.value.exit_code == 140
    assert "\n" not in str(error.value)
    said = capsys.readouterr().err.splitlines()
    assert 1 <= len([line for line in said if "asked again until" in line]) <= 3
    assert not [line for line in said if "answers again" in line]


def test_repeated_requests_are_counted_over_processes(file: StorePath, proxy: FaultyProxy) -> None:
    assert repeated() == 0
    with outage(20):
        file.write_bytes(CONTENT)
        proxy.fault("503", 3)
        assert file.read_bytes() == CONTENT
        assert repeated() == 3
        proxy.fault("503", 2)
        child = os.fork()
        if not child:
            os._exit(file.read_bytes() != CONTENT)
        assert os.waitpid(child, 0)[1] == 0
        assert repeated() == 5


def test_without_an_outage_it_is_an_error_at_once(file: StorePath, proxy: FaultyProxy) -> None:
    file.write_bytes(b"")
    for fault, kind in (("full", StoreError), ("revoked", StoreAccessError)):
        proxy.fault(fault)
        with pytest.raises(kind) as error:
            file.write_bytes(CONTENT)
        assert error.value.exit_code < 128
    proxy.fault("revoked")
    with outage(20), pytest.raises(StoreAccessError):  # which have not been good before
        file.write_bytes(CONTENT)


def test_what_was_never_allowed_is_an_error_at_once(file: StorePath, proxy: FaultyProxy) -> None:
    file.write_bytes(b"")
    with outage(20), proxy.lasting("denied", "DELETE"):
        with pytest.raises(StoreAccessError, match="does not let"):
            file.delete()
        assert len([line for line in proxy.requests if line.startswith("DELETE")]) == 1


def test_the_first_answer_is_waited_for_in_a_pod_alone(
    file: StorePath, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_answered", set())
    with outage(20):
        with proxy.lasting("refuse"), pytest.raises(StoreAway, match=r"in 0\.3 s"):
            file.read_bytes()
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        proxy.last(0.8, "refuse")
        assert file.read_bytes() == CONTENT


def test_is_told_by_one_of_all_threads_and_processes(
    file: StorePath, proxy: FaultyProxy, capfd: pytest.CaptureFixture[str]
) -> None:
    file.read_bytes()
    said = ""
    with outage(20), ThreadPoolExecutor(4) as pool:
        with proxy.lasting("refuse"):
            began = time.monotonic()
            children = [_forked(file) for _ in range(3)]
            reads = [pool.submit(file.read_bytes) for _ in range(4)]
            while said.count("asked again") < 3:
                assert time.monotonic() - began < 15
                time.sleep(0.05)
                said += capfd.readouterr().err
            assert waiting()
            assert time.monotonic() - began > 2 * module._EVERY
        assert {read.result() for read in reads} == {CONTENT}
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 3
        said += capfd.readouterr().err
        assert not waiting()
    assert said.count("asked again") <= 1 + (time.monotonic() - began) / module._EVERY
    assert 1 <= said.count("answers again, after") <= 2  # one may fail once more


def _forked(file: StorePath) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(file.read_bytes() != CONTENT)
        finally:
            os._exit(code)
    return child


def test_keys_are_read_anew_from_their_file(
    s3: S3, file: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, config = file._settings, tmp_path / "store.yaml"
    assert settings is not None

    def give(secret: str) -> None:
        text = f"endpoint: {settings.endpoint}\naccess_key: {settings.access_key}\n"
        text += f"secret_key: {secret}\nretry_seconds: 0.3\nregion: us-east-1\n"
        config.with_suffix(".new").write_text(text)
        config.with_suffix(".new").replace(config)

    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERCMAE_STORE_CONFIG", str(config))
    give(settings.secret_key)
    found = StorePath(file.uri)
    with outage(20):
        assert found.read_bytes() == CONTENT
        give("wrong")  # which the server refuses
        timer = threading.Timer(1.0, give, [settings.secret_key])
        timer.start()
        began = time.monotonic()
        assert found.read_bytes() == CONTENT
        assert time.monotonic() - began > 0.8


def test_each_try_is_signed_anew(file: StorePath, proxy: FaultyProxy) -> None:
    """A signature is good for 15 minutes."""
    file.read_bytes()
    proxy.dates.clear()
    with outage(20):
        proxy.last(1.2, "503")
        file.read_bytes()
    assert len(set(proxy.dates)) > 1


def test_hurry_goes_before_an_outage(file: StorePath, proxy: FaultyProxy) -> None:
    file.read_bytes()
    with outage(20), proxy.lasting("refuse"):
        began = time.monotonic()
        with hurry(0.2), pytest.raises(StoreAway, match=r"in 0\.2 s"):
            file.read_bytes()
        assert time.monotonic() - began < 5


def test_how_long_says_the_environment(
    file: StorePath, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.read_bytes()
    monkeypatch.setenv(module.OUTAGE_VARIABLE, "0.8")
    with proxy.lasting("refuse"):
        with outage(), pytest.raises(StoreAway, match=r"in 0\.8 s"):
            file.read_bytes()
        with outage(), outage(0.5), pytest.raises(StoreAway, match=r"in 0\.5 s"):
            file.read_bytes()
    for wrong in ("soon", "-1", "inf", "nan", "1e9"):
        monkeypatch.setenv(module.OUTAGE_VARIABLE, wrong)
        with pytest.raises(UserError, match=f"from 0 to 2592000, not '{wrong}'"), outage():
            pass


@pytest.mark.parametrize("fault", ["short", "elsewhere"])
def test_a_body_that_is_not_what_was_asked_for_is_read_again(
    file: StorePath, proxy: FaultyProxy, fault: str
) -> None:
    """Even where its length is as its header says: something on the way has cut it."""
    proxy.fault(fault, times=2, on="GET")
    assert file.read_bytes() == CONTENT
    proxy.fault(fault, times=2, on="GET")
    assert file.read_bytes(1000, 100_000) == CONTENT[1000:101_000]
    proxy.fault(fault, times=2, on="GET")
    assert file.read_bytes(150_000, 100_000) == CONTENT[150_000:]
    with file.open() as stream:
        proxy.fault(fault, times=2, on="GET")
        assert stream.read() == CONTENT
    assert not proxy._faults


def test_a_listing_that_is_cut_short_is_asked_for_again(
    file: StorePath, proxy: FaultyProxy
) -> None:
    proxy.fault("short", times=2, on="GET")
    assert [entry.name for entry in file.parent.iter()] == ["file"]
    with proxy.lasting("short"), pytest.raises(StoreAway, match="XML that is cut short or damaged"):
        list(file.parent.iter())


def test_what_arrives_of_an_upload_is_all_or_nothing(file: StorePath, proxy: FaultyProxy) -> None:
    proxy.fault("short body", on="PUT")
    try:
        file.write_bytes(CONTENT * 2)
    except StoreError:
        assert file.read_bytes() == CONTENT
    else:
        assert file.read_bytes() == CONTENT * 2


def test_what_a_checksum_refuses_is_read_again(
    file: StorePath, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def is_whole(data: bytes) -> bool:
        seen.append(data)
        return len(seen) == 2

    assert file.read_bytes(is_whole=is_whole) == CONTENT
    assert seen == [CONTENT] * 2
    assert "what was read is damaged; reading it again" in capsys.readouterr().err
    assert file.read_bytes(is_whole=lambda data: bool(seen.append(data))) == CONTENT
    assert len(seen) == 2 + 2
