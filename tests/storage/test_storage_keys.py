"""Keys of the store: found in AWS tools' order, in profiles too, tidied, and shown to nobody."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from percmae.errors import StoreAccessError, UserError
from percmae.storage import StoreSettings
from percmae.storage.keys import find_keys, sts_endpoint

if TYPE_CHECKING:
    from s3_server import S3

STS = "https://sts.amazonaws.com"
PAIR = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK"}


def profiles(home: Path, credentials: str = "", config: str = "") -> None:
    (home / ".aws/credentials").write_text(credentials)
    (home / ".aws/config").write_text(config)


def lines(access: str, secret: str) -> str:
    return f"aws_access_key_id = {access}\naws_secret_access_key = {secret}\n"


# Profiles ----------------------------------------------------------------------------------------


def test_a_profile(
    keyless: S3, works: Callable[[], bool], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = lines(keyless.settings.access_key, keyless.settings.secret_key)
    profiles(home, f"[default]\n{lines('WRONG', 'keys')}[mine]\n{keys}")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert works()
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(
        StoreAccessError, match=r"'WRONG': check aws_access_key_id and .* in profile"
    ):
        works()


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
    s3: S3,
    works: Callable[[], bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    around: str,
) -> None:
    from percmae.storage import keys

    keys._note_stripped.cache_clear()
    for name in (*PAIR, "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.setenv(name, around.format(s3.environ[name]))
    assert works()
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
    with pytest.raises(UserError, match=r"not YAML: .* \(line \d, column \d+\)") as error:
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
    keyless: S3, works: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No machine's metadata service is looked for where nothing says that there is one."""

    def connect(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(UserError, match="needs an access key and a secret key: set AWS_ACCESS_KEY"):
        works()


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
