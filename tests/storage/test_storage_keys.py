"""Keys from profiles, web identities, containers and machines: found in AWS tools' order, used on a
real store, and shown to nobody."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from web_server import Handler, serving

from percmae.errors import StoreAccessError, StoreError, UserError
from percmae.storage import StorePath, StoreSettings, roles
from percmae.storage.keys import find_keys, sts_endpoint

if TYPE_CHECKING:
    from s3_server import S3

TOKEN = "eyJhbGciOi.web-identity.sEcReT"
STS = "https://sts.amazonaws.com"
PAIR = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose .aws is empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    return tmp_path


@pytest.fixture
def store(s3: S3, home: Path, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The session's store, for which the environment has no keys."""
    for name in PAIR:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PERCMAE_STORE_RETRY_SECONDS", "1")
    return s3


def works(s3: S3) -> bool:
    file = StorePath(s3.uri("keys")) / "file"
    file.write_text("x")
    return file.read_text() == "x"


def profiles(home: Path, credentials: str = "", config: str = "") -> None:
    (home / ".aws/credentials").write_text(credentials)
    (home / ".aws/config").write_text(config)


def lines(access: str, secret: str) -> str:
    return f"aws_access_key_id = {access}\naws_secret_access_key = {secret}\n"


# Profiles ----------------------------------------------------------------------------------------


def test_a_profile(store: S3, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = lines(store.settings.access_key, store.settings.secret_key)
    profiles(home, f"[default]\n{lines('WRONG', 'keys')}[mine]\n{keys}")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert works(store)
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(
        StoreAccessError, match=r"'WRONG': check aws_access_key_id and .* in profile"
    ):
        works(store)


@pytest.mark.parametrize(
    ("credentials", "config", "name", "expected"),
    [
        ("[default]\n{}", "", None, ("A", "b%/c")),
        ("[default]\n{}", "", "default", ("A", "b%/c")),
        ("[p]\n{}", "", "p", ("A", "b%/c")),
        ("", "[profile p]\n{}", "p", ("A", "b%/c")),
        ("", "[default]\n{}", None, ("A", "b%/c")),
        (
            "[p]\n{}",
            "[profile p]\naws_access_key_id=X\naws_secret_access_key=Y\n",
            "p",
            ("A", "b%/c"),
        ),
        ("[p]\n{}", "[profile p]\naws_session_token=of other keys\n", "p", ("A", "b%/c")),
        ("\ufeff[p]\n{}; a comment\n", "", "p", ("A", "b%/c")),
    ],
)
def test_where_a_profile_is(
    home: Path, credentials: str, config: str, name: str | None, expected: tuple[str, str]
) -> None:
    given = lines("A", "b%/c")
    profiles(home, credentials.format(given), config.format(given))
    keys, _ = find_keys({"AWS_PROFILE": name} if name else {}, STS)
    assert keys is not None
    assert (keys.access_key, keys.secret_key, keys.session_token) == (*expected, None)


def test_files_elsewhere(tmp_path: Path, home: Path) -> None:
    (tmp_path / "mine").write_text(f"[default]\n{lines('A', 'B')}aws_session_token = t\n")
    keys, _ = find_keys({"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "mine")}, STS)
    assert keys is not None
    assert (keys.access_key, keys.session_token) == ("A", "t")


def test_what_else_a_profile_says(home: Path) -> None:
    more = "region = eu-x\nca_bundle = /ca.pem\nendpoint_url = http://store:9000\n"
    profiles(home, f"[p]\n{lines('A', 'B')}", f"[profile p]\n{more}")
    settings = StoreSettings.load({"AWS_PROFILE": "p"})
    assert settings == StoreSettings("http://store:9000", "A", "B", None, "eu-x", None, "/ca.pem")
    given = {"AWS_ENDPOINT_URL": "http://other", "AWS_REGION": "us", "AWS_CA_BUNDLE": "/b"}
    settings = StoreSettings.load({"AWS_PROFILE": "p", **given})
    assert (settings.endpoint, settings.region, settings.ca_file) == ("http://other", "us", "/b")
    # A profile that the keys are not from says nothing.
    assert StoreSettings.load({**PAIR, "AWS_ENDPOINT_URL": "http://other"}).region is None


@pytest.mark.parametrize(
    ("env", "credentials", "config", "message"),
    [
        ({"AWS_PROFILE": "x"}, "[y]\n", "", r"AWS_PROFILE=x: there is no such profile in .*cred"),
        ({}, "[default]\naws_access_key_id=A\n", "", "aws_access_key_id in profile 'default' of"),
        ({}, "[default]\naws_secret_access_key=s3cret\n", "", "but aws_access_key_id is not"),
        (
            {},
            "aws_secret_access_key=s3cret",
            "",
            r"\.aws/credentials is not a file of AWS profiles",
        ),
        ({}, "[default]\ns3cret\n", "", r"\.aws/credentials is not a file of AWS profiles"),
        ({}, "", "[default]\nsso_session = corp\n", "by sso_session, which percmae cannot do"),
        ({}, "", "[default]\ncredential_process = x\n", "aws configure export-credentials"),
        ({}, "", "[default]\nrole_arn = x\nsource_profile = y\n", "by source_profile, which"),
        ({"AWS_ACCESS_KEY_ID": "A"}, "", "", "AWS_SECRET_ACCESS_KEY is not"),
        ({"AWS_SECRET_ACCESS_KEY": "s3cret"}, "", "", "AWS_ACCESS_KEY_ID is not"),
    ],
)
def test_bad_profiles_are_one_line(
    home: Path, env: dict[str, str], credentials: str, config: str, message: str
) -> None:
    profiles(home, credentials, config)
    with pytest.raises(UserError, match=message) as error:
        StoreSettings.load({"AWS_ENDPOINT_URL": "http://h", **env})
    assert "\n" not in str(error.value)
    assert "s3cret" not in str(error.value)


# White space and worse ---------------------------------------------------------------------------

BAD = {
    "AWS_ACCESS_KEY_ID": "access_key",
    "AWS_SECRET_ACCESS_KEY": "secret_key",
    "AWS_SESSION_TOKEN": "session_token",
}


@pytest.mark.parametrize("around", ["{}\n", " {}", "\t{}\r\n"])
def test_white_space_around_keys_is_left_out_with_a_note(
    s3: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], around: str
) -> None:
    from percmae.storage import keys

    keys._note_stripped.cache_clear()
    for name in (*PAIR, "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.setenv(name, around.format(s3.environ[name]))
    assert works(s3)
    said = capsys.readouterr().err
    for name in PAIR:
        assert said.count(f"{name}: white space around it was left out") == 1


@pytest.mark.parametrize("where", ["environment", "file"])
@pytest.mark.parametrize(
    "odd", ["s3cret\nline", "s3cret key", "s3crét", "s3cret\0", "s3cret\u200b"]
)
@pytest.mark.parametrize("name", BAD)
def test_what_no_key_can_have_is_never_sent_nor_shown(
    tmp_path: Path, name: str, odd: str, where: str
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", name: odd}
    env, label = {"AWS_ENDPOINT_URL": "http://h", **keys}, name
    if where == "file":
        file, label = tmp_path / "store.yaml", f"{BAD[name]} in {tmp_path}/store.yaml"
        values = {"endpoint": "http://h", **{BAD[key]: value for key, value in keys.items()}}
        file.write_text(json.dumps(values))
        env = {"PERCMAE_STORE_CONFIG": str(file)}
    with pytest.raises(UserError, match=f"{label}: .*, at place ") as error:
        StoreSettings.load(env)
    assert "s3cr" not in str(error.value)
    with pytest.raises(UserError):
        StoreSettings("http://h", **{"access_key": "a", "secret_key": "b", BAD[name]: odd})


@pytest.mark.parametrize("text", ["access_key: [s3cret", "a: b\n s3cret: c", "\tendpoint: s3cret"])
def test_a_broken_file_of_settings_is_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "store.yaml").write_text(text)
    with pytest.raises(UserError, match=r"not YAML \(line \d\)") as error:
        StoreSettings.load({"PERCMAE_STORE_CONFIG": str(tmp_path / "store.yaml")})
    assert "s3cret" not in str(error.value)


# The order ---------------------------------------------------------------------------------------


def test_the_order(home: Path) -> None:
    """As AWS tools have it: what comes first is used, and nothing after it is asked."""
    profiles(home, f"[default]\n{lines('OF', 'PROFILE')}")
    env = {
        "AWS_EC2_METADATA_DISABLED": "false",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/role",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/token",
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/x",
        **PAIR,
    }

    def found() -> tuple[str, str | None]:
        keys, _ = find_keys(env, STS)
        assert keys is not None
        return keys.access_key, keys.role and keys.role.url

    assert found() == ("AK", None)
    for name in PAIR:
        del env[name]
    assert found() == ("", STS)
    del env["AWS_WEB_IDENTITY_TOKEN_FILE"]
    assert found() == ("OF", None)
    profiles(home, "")
    assert found() == ("", "http://169.254.170.2/role")
    del env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]
    assert found() == ("", "http://169.254.169.254")
    env["AWS_EC2_METADATA_DISABLED"] = "true"
    env["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = "http://meta"
    assert find_keys(env, STS) == (None, None)
    del env["AWS_EC2_METADATA_DISABLED"]
    assert found() == ("", "http://meta")


def test_a_laptop_without_keys_is_told_at_once(
    store: S3, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No machine's metadata service is looked for where nothing says that there is one."""

    def connect(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(UserError, match="needs an access key and a secret key: set AWS_ACCESS_KEY"):
        works(store)


@pytest.mark.parametrize(
    ("env", "region", "expected"),
    [
        ({}, None, "https://sts.amazonaws.com"),
        ({}, "eu-west-1", "https://sts.eu-west-1.amazonaws.com"),
        ({}, "cn-north-1", "https://sts.cn-north-1.amazonaws.com.cn"),
        ({"AWS_ENDPOINT_URL": "http://minio:9000"}, "r", "http://minio:9000"),
        ({"AWS_ENDPOINT_URL_S3": "http://minio:9000"}, None, "https://sts.amazonaws.com"),
        (
            {"AWS_ENDPOINT_URL": "https://s3.eu-west-1.amazonaws.com"},
            "eu-west-1",
            "https://sts.eu-west-1.amazonaws.com",
        ),
        (
            {"AWS_ENDPOINT_URL_STS": "http://sts", "AWS_ENDPOINT_URL": "http://m"},
            None,
            "http://sts",
        ),
    ],
)
def test_who_takes_a_web_identity(env: dict[str, str], region: str | None, expected: str) -> None:
    assert sts_endpoint(env, region) == expected


# Roles -------------------------------------------------------------------------------------------

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
def service(store: S3) -> Service:
    return Service(store)


def web_identity(monkeypatch: pytest.MonkeyPatch, home: Path, url: str) -> Path:
    file = home / "token"
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/trainer")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
    return file


def test_a_web_identity(
    store: S3, home: Path, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    with service.running() as url:
        file = web_identity(monkeypatch, home, url)
        assert works(store)
        ((_, query, _),) = service.asked
        assert query["WebIdentityToken"] == [TOKEN], "without the line break at its end"
        assert query["RoleArn"] == ["arn:aws:iam::1:role/trainer"]
        assert query["RoleSessionName"] == ["percmae"]
        # Keys that are about to run out are fetched again, with the token of then.
        service.asked.clear()
        service.until = "2001-01-01T00:00:00Z"
        monkeypatch.setenv("AWS_ROLE_SESSION_NAME", "other")
        assert works(store)
        file.write_text("newer")
        assert works(store)
        tokens = [query["WebIdentityToken"] for _, query, _ in service.asked]
        assert tokens[0] == [TOKEN]
        assert tokens[-1] == ["newer"]


def test_a_container(
    store: S3, home: Path, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    """As EKS's pod identity sets it."""
    (home / "token").write_text("pod-token\n")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(home / "token"))
    with service.running() as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/v1/credentials")
        assert works(store)
    ((path, _, headers),) = service.asked
    assert (path, headers["Authorization"]) == ("/v1/credentials", "pod-token")


def test_a_machine(store: S3, monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with service.running() as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        assert works(store)
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
    store: S3,
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
            works(store)
    assert TOKEN not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", SET_UP)
def test_keys_that_cannot_be_sent_are_not_shown(
    store: S3, home: Path, monkeypatch: pytest.MonkeyPatch, service: Service, kind: str
) -> None:
    service.keys = "AK", "s3cret\nkey"
    if kind != "web identity":  # JSON says what XML would not keep
        service.keys = "AK\nAK", "s3cret"
    with service.running() as url:
        SET_UP[kind](monkeypatch, home, url)
        with pytest.raises(StoreAccessError, match="gives no keys") as error:
            works(store)
    assert "s3cret" not in str(error.value)


def test_a_machine_that_has_no_such_service_is_given_up_soon(
    store: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some networks swallow what is sent to that address."""
    monkeypatch.setattr(roles, "_NEAR_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                works(store)
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
    store: S3, home: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], message: str
) -> None:
    web_identity(monkeypatch, home, "http://127.0.0.1:1")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        works(store)
