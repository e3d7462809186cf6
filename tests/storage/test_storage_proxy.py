"""HTTP_PROXY, HTTPS_PROXY and NO_PROXY: a store behind a real proxy, and what is told of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import trustme
from web_server import ForwardProxy, Handler, serving, tls_for

from percmae.errors import StoreAccessError, StoreError, UserError
from percmae.storage import StorePath, StoreSettings
from percmae.storage.proxy import proxy_for

if TYPE_CHECKING:
    from s3_server import S3

pytestmark = pytest.mark.usefixtures("no_proxy", "part_bytes")
# A name that only the proxy knows: whatever reaches it has gone through the proxy.
HOST = "store.behind.test"


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def behind(s3: S3) -> StoreSettings:
    """The session's server, as seen from the other side of a proxy."""
    port = urlsplit(s3.endpoint).port
    return replace(s3.settings, endpoint=f"http://{HOST}:{port}", retry_seconds=1)


def known(s3: S3) -> dict[str, int]:
    return {HOST: urlsplit(s3.endpoint).port or 0}


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize("written", ["http://{}", "{}", "http://{}/"])
def test_everything_goes_through_the_proxy(
    s3: S3, monkeypatch: pytest.MonkeyPatch, part_bytes: int, variable: str, written: str
) -> None:
    proxy, content = ForwardProxy(known(s3)), os.urandom(part_bytes + 10)
    with proxy.running() as address:
        monkeypatch.setenv(variable, written.format(address))
        folder = StorePath(s3.uri("proxy"), behind(s3))
        (folder / "large").write_bytes(content)
        assert (folder / "large").read_bytes() == content
        with (folder / "large").open() as stream:
            assert stream.read(100) == content[:100]
        assert [entry.name for entry in folder.iter()] == ["large"]
        (folder / "large").delete()
        assert not (folder / "large").exists()
    assert {line.split()[0] for line in proxy.requests} == {"GET", "PUT", "POST", "HEAD", "DELETE"}


def test_user_and_password(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = ForwardProxy(known(s3), user="me@corp:p@ss:word/")
    file = StorePath(s3.uri("proxy"), behind(s3)) / "file"
    with proxy.running() as address:
        monkeypatch.setenv("HTTP_PROXY", f"http://me%40corp:p%40ss%3Aword%2F@{address}")
        file.write_text("x")
        assert file.read_text() == "x"
        monkeypatch.setenv("HTTP_PROXY", f"http://me%40corp:wr0ng@{address}")
        with pytest.raises(StoreAccessError, match="refuses user and password") as error:
            file.read_text()
        assert f"the proxy http://{address} (HTTP_PROXY)" in str(error.value)
        assert "wr0ng" not in str(error.value)
        assert "corp" not in str(error.value)
        monkeypatch.setenv("HTTP_PROXY", f"http://{address}")
        with pytest.raises(StoreAccessError, match="wants a user and a password: give http://user"):
            file.read_text()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_away_or_refuses_is_named(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    settings = StoreSettings(f"{scheme}://{HOST}", "key", "secret", retry_seconds=0.3)
    file, proxy = StorePath("s3://bucket/key", settings), ForwardProxy({})
    with proxy.running() as address:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://me:s3cret@{address}")
        for status in (403, 502):
            proxy.refused = status
            with pytest.raises(StoreError, match=str(status)) as error:
                file.read_text()
            assert f"the proxy http://{address} ({scheme}_proxy)" in str(error.value)
            assert "s3cret" not in str(error.value)
    monkeypatch.setenv(f"{scheme}_proxy", "http://me:s3cret@127.0.0.1:1")
    with pytest.raises(
        StoreError, match=r"refused.*: is it running, and are endpoint and"
    ) as error:
        file.read_text()
    assert f"{scheme}://{HOST} through the proxy http://127.0.0.1:1" in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.fixture
def secure() -> Iterator[tuple[int, trustme.CA]]:
    """A server with TLS for HOST: its port, and the authority of its certificate."""

    class Object(Handler):
        def do_GET(self) -> None:
            self.answer(200, b"hello", ETag='"1"')

    authority = trustme.CA()
    with serving(Object, tls_for(authority, HOST)) as port:
        yield port, authority


def test_https_is_tunnelled_and_its_certificate_is_the_stores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secure: tuple[int, trustme.CA]
) -> None:
    port, authority = secure
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    proxy = ForwardProxy({HOST: port}, user="me:password")
    settings = StoreSettings(f"https://{HOST}:{port}", "key", "secret", region="us-east-1")
    file = StorePath("s3://bucket/key", replace(settings, ca_file=str(tmp_path / "ca.pem")))
    with proxy.running() as address:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:password@{address}")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        assert file.read_text() == "hello"
        assert proxy.requests == [f"CONNECT {HOST}:{port}"]
        with pytest.raises(StoreAccessError, match=r"certificate of .* is not trusted") as error:
            StorePath(file, settings).read_text()
        assert f"through the proxy http://{address} (HTTPS_PROXY)" in str(error.value)
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:wr0ng@{address}")
        with pytest.raises(StoreAccessError, match="refuses user and password") as error:
            file.read_text()
        assert "wr0ng" not in str(error.value)


def test_this_machine_is_reached_directly(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    path = StorePath(s3.uri("proxy"), s3.settings) / "file"
    path.write_text("x")
    assert path.read_text() == "x"


@pytest.mark.parametrize(
    ("server", "no_proxy", "direct"),
    [
        ("http://store.corp.example", "", False),
        ("http://store.corp.example", "*", True),
        ("http://store.corp.example", "other, corp.example", True),
        ("http://store.corp.example", ".corp.example", True),
        ("http://store.corp.example", "store", False),
        ("http://store.corp.example", "re.corp.example", False),
        ("http://store.corp.example:9000", "store.corp.example", True),
        ("http://store.corp.example:9000", "store.corp.example:9000", True),
        ("http://store.corp.example:9000", "store.corp.example:80", False),
        ("http://10.1.2.3:9000", "10.1.2.3", True),
        ("http://10.1.2.3:9000", "10.0.0.0/8", True),
        ("http://10.1.2.3:9000", "192.168.0.0/16,.svc", False),
        ("http://[fd00::5]:9000", "fd00::/8", True),
        ("http://minio.kubeflow.svc:9000", "10.0.0.0/8, .svc", True),
        ("http://127.0.0.1:9000", "", True),
        ("http://localhost:9000", "", True),
        ("https://store.corp.example", "", True),  # HTTPS_PROXY is not set
    ],
)
def test_what_is_reached_directly(
    monkeypatch: pytest.MonkeyPatch, server: str, no_proxy: str, direct: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    for name in ("NO_PROXY", "no_proxy"):
        with monkeypatch.context() as patch:
            patch.setenv(name, no_proxy)
            found = proxy_for(server)
            assert (found is None) is direct
            assert direct or str(found) == "the proxy http://proxy:3128 (HTTP_PROXY)"


def test_small_letters_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://one:1")
    monkeypatch.setenv("https_proxy", "https://two:2")
    assert str(proxy_for("https://store")) == "the proxy https://two:2 (https_proxy)"


@pytest.mark.parametrize(
    "value", ["socks5://p:1", "http://", "http://p:port", "http://me:s3cret@", "http://ü:s3cret@p"]
)
def test_bad_proxies(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    settings = StoreSettings("https://store", "key", "secret")
    with pytest.raises(UserError, match="HTTPS_PROXY") as error:
        StorePath("s3://bucket/key", settings).read_text()
    assert "s3cret" not in str(error.value)
