"""Roles: temporary keys from the token service and both metadata services, used on a real store."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from web_server import Handler, serving

from percmae.errors import StoreAccessError, StoreError, UserError
from percmae.storage import roles

if TYPE_CHECKING:
    from s3_server import S3

TOKEN = "eyJhbGciOi.web-identity.sEcReT"
XML = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{access}</AccessKeyId>
<SecretAccessKey>{secret}</SecretAccessKey><SessionToken></SessionToken>
<Expiration>{until}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""
REFUSED = "<ErrorResponse><Error><Code>ExpiredTokenException</Code></Error></ErrorResponse>"


class Service:
    """Gives the store's keys as the token service and both metadata services do, and keeps what it
    was asked. ``until``: when the keys run out; ``fault``: what it answers instead."""

    def __init__(self, s3: S3) -> None:
        self.keys = s3.settings.access_key, s3.settings.secret_key
        self.until = "2999-01-01T00:00:00Z"
        self.asked: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        self.fault: tuple[int, str] | None = None

    def answer(self, method: str, path: str) -> tuple[int, str]:
        if self.fault:
            return self.fault
        access, secret = self.keys
        if method == "POST":
            return 200, XML.format(access=access, secret=secret, until=self.until)
        if path.endswith("/latest/api/token"):
            return 200, "imds-token"
        if path.endswith("/security-credentials/"):
            return 200, "machine-role"
        found = {"AccessKeyId": access, "SecretAccessKey": secret, "Token": ""}
        return 200, json.dumps({"Code": "Success", "Expiration": self.until, **found})

    @contextmanager
    def running(self) -> Iterator[str]:
        service = self

        class Answers(Handler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                service.asked.append((url.path, parse_qs(url.query), dict(self.headers.items())))
                status, text = service.answer(self.command, url.path)
                self.answer(status, text.encode())

            do_POST = do_PUT = do_GET

        with serving(Answers) as port:
            yield f"http://127.0.0.1:{port}"


@pytest.fixture
def service(keyless: S3) -> Service:
    return Service(keyless)


def web_identity(monkeypatch: pytest.MonkeyPatch, home: Path, url: str) -> Path:
    file = home / "token"
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/trainer")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
    return file


def test_a_web_identity(
    works: Callable[[], bool], home: Path, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    with service.running() as url:
        file = web_identity(monkeypatch, home, url)
        assert works()
        ((_, query, _),) = service.asked
        assert query["WebIdentityToken"] == [TOKEN], "without the line break at its end"
        assert query["RoleArn"] == ["arn:aws:iam::1:role/trainer"]
        assert query["RoleSessionName"] == ["percmae"]
        # Keys that are about to run out are fetched again, with the token of then.
        service.asked.clear()
        service.until = "2001-01-01T00:00:00Z"
        monkeypatch.setenv("AWS_ROLE_SESSION_NAME", "other")
        assert works()
        file.write_text("newer")
        assert works()
        tokens = [query["WebIdentityToken"] for _, query, _ in service.asked]
        assert tokens[0] == [TOKEN]
        assert tokens[-1] == ["newer"]


def test_a_container(
    works: Callable[[], bool], home: Path, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    """As EKS's pod identity sets it."""
    (home / "token").write_text("pod-token\n")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(home / "token"))
    with service.running() as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/v1/credentials")
        assert works()
    ((path, _, headers),) = service.asked
    assert (path, headers["Authorization"]) == ("/v1/credentials", "pod-token")


def test_a_machine(
    works: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with service.running() as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        assert works()
    assert [path for path, _, _ in service.asked] == [
        "/latest/api/token",
        "/latest/meta-data/iam/security-credentials/",
        "/latest/meta-data/iam/security-credentials/machine-role",
    ]
    assert service.asked[-1][2]["X-aws-ec2-metadata-token"] == "imds-token"


def container(monkeypatch: pytest.MonkeyPatch, home: Path, url: str) -> None:
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/x")


def machine(monkeypatch: pytest.MonkeyPatch, home: Path, url: str) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)


SET_UP: dict[str, Callable[[pytest.MonkeyPatch, Path, str], object]] = {
    "web identity": web_identity,
    "container": container,
    "instance": machine,
}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            (403, REFUSED),
            r"gives no keys for the .*role.* \(HTTP 403 ExpiredTokenException\): check",
        ),
        ((404, ""), r"gives no keys for the .*role.* \(HTTP 404\): check AWS_"),
        ((200, "<html>sign in</html>"), r"\(its answer is not understood\): check AWS_"),
        ((200, "{}"), r"\(its answer is not understood\)"),
        ((200, "[]"), r"\(its answer is not understood\)"),
        ((503, ""), "no usable answer from the .* service at"),
    ],
)
@pytest.mark.parametrize("kind", SET_UP)
def test_a_role_that_gives_no_keys(
    works: Callable[[], bool],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    service: Service,
    kind: str,
    fault: tuple[int, str],
    message: str,
) -> None:
    monkeypatch.setattr(roles, "_NEAR_SECONDS", 0.3)
    service.fault = fault
    with service.running() as url:
        SET_UP[kind](monkeypatch, home, url)
        with pytest.raises(StoreError, match=message) as error:
            works()
    assert TOKEN not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", SET_UP)
def test_keys_that_cannot_be_sent_are_not_shown(
    works: Callable[[], bool],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    service: Service,
    kind: str,
) -> None:
    service.keys = "AK", "s3cret\nkey"
    if kind != "web identity":  # JSON says what XML would not keep
        service.keys = "AK\nAK", "s3cret"
    with service.running() as url:
        SET_UP[kind](monkeypatch, home, url)
        with pytest.raises(StoreAccessError, match="gives no keys") as error:
            works()
    assert "s3cret" not in str(error.value)


def test_a_machine_that_has_no_such_service_is_given_up_soon(
    keyless: S3, works: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some networks swallow what is sent to that address."""
    monkeypatch.setattr(roles, "_NEAR_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                works()
            except StoreError as error:
                failed.append(error)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(30)  # with a store's patience it would take minutes
    assert "no usable answer from the instance's metadata service" in str(failed[0])


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"AWS_ENDPOINT_URL_STS": "sts"}, "'sts' is not a URL such as"),
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/absent"},
            r"token in /absent \(AWS_WEB_.*: No such file",
        ),
        (
            {
                "AWS_WEB_IDENTITY_TOKEN_FILE": "",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://192.0.2.1/x",
            },
            "only a service of this machine is asked",
        ),
    ],
)
def test_bad_roles(
    keyless: S3,
    works: Callable[[], bool],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    message: str,
) -> None:
    web_identity(monkeypatch, home, "http://127.0.0.1:1")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        works()
