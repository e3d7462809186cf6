"""Where the store's address and keys come from."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from percmae.errors import StoreAccessError, UserError
from percmae.storage import StorePath, StoreSettings

ENVIRONMENT = {
    "AWS_ENDPOINT_URL": "http://store:9000",
    "AWS_ACCESS_KEY_ID": "env-key",
    "AWS_SECRET_ACCESS_KEY": "env-secret",
}


def config(folder: Path, text: str) -> dict[str, str]:
    """An environment that names a config file with ``text``."""
    path = folder / "store.yaml"
    path.write_text(text)
    return {"PERCMAE_STORE_CONFIG": str(path)}


def test_from_the_environment() -> None:
    settings = StoreSettings.load(ENVIRONMENT)
    assert settings == StoreSettings("http://store:9000", "env-key", "env-secret", secure=False)
    assert settings.retry_seconds == 60
    more = {
        "AWS_ENDPOINT_URL_S3": "https://only-s3:1",
        "AWS_SESSION_TOKEN": "token",
        "AWS_REGION": "eu-1",
        "AWS_CA_BUNDLE": "/ca.pem",
        "PERCMAE_STORE_RETRY_SECONDS": "2.5",
    }
    assert StoreSettings.load(ENVIRONMENT | more) == StoreSettings(
        "https://only-s3:1", "env-key", "env-secret", "token", "eu-1", True, "/ca.pem", 2.5
    )


def test_from_a_file(tmp_path: Path) -> None:
    text = "endpoint: s3.example.com\naccess_key: a\nsecret_key: b\nregion: r\nretry_seconds: 5\n"
    environment = config(tmp_path, text)
    expected = StoreSettings("https://s3.example.com", "a", "b", region="r", retry_seconds=5)
    assert StoreSettings.load(environment) == expected
    # Keys of the file never mix with keys of the environment.
    keys = {name: value for name, value in ENVIRONMENT.items() if "KEY" in name}
    assert StoreSettings.load(environment | keys | {"AWS_SESSION_TOKEN": "t"}) == expected
    # With an endpoint in the environment the file is not looked at.
    assert StoreSettings.load(environment | ENVIRONMENT) == StoreSettings.load(ENVIRONMENT)


def test_a_file_without_keys_takes_them_from_the_environment(tmp_path: Path) -> None:
    keys = {name: value for name, value in ENVIRONMENT.items() if "KEY" in name}
    settings = StoreSettings.load(config(tmp_path, "endpoint: http://h:1") | keys)
    assert (settings.endpoint, settings.access_key) == ("http://h:1", "env-key")


def test_the_usual_place_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreAccessError, match="no object store is configured: set AWS_ENDPOINT"):
        StoreSettings.load({})
    (tmp_path / ".config/percmae").mkdir(parents=True)
    (tmp_path / ".config/percmae/store.yaml").write_text(
        "{endpoint: 'http://h:1', access_key: a, secret_key: b}"
    )
    assert StoreSettings.load({}).endpoint == "http://h:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("endpoint: http://h\naccess_keys: a", "unknown key 'access_keys'; known are endpoint"),
        ("endpoint: http://h\nsecure: maybe", "secure has the wrong type"),
        ("endpoint: http://h\naccess_key: 123", "access_key has the wrong type"),
        ("endpoint: http://h\nretry_seconds: true", "retry_seconds has the wrong type"),
        ("access_key: a", "at least the key 'endpoint'"),
        ("- a", "must be a YAML mapping"),
        ("a: [", "store settings file .* is not YAML"),
        ("endpoint: http://h", "needs an access key"),
        ("endpoint: http://h\naccess_key: a", "needs an access key and a secret key"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        StoreSettings.load(config(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"PERCMAE_STORE_CONFIG names .*absent\.yaml"):
        StoreSettings.load({"PERCMAE_STORE_CONFIG": str(tmp_path / "absent.yaml")})


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_both_keys_are_needed(missing: str) -> None:
    with pytest.raises(UserError, match=missing):
        StoreSettings.load({k: v for k, v in ENVIRONMENT.items() if k != missing})


@pytest.mark.parametrize(
    ("given", "secure", "expected"),
    [
        ("http://h:9000", None, "http://h:9000"),
        ("https://h/", None, "https://h"),
        ("https://h", True, "https://h"),
        ("s3.example.com", None, "https://s3.example.com"),
        ("minio.kubeflow:9000", False, "http://minio.kubeflow:9000"),
        ("127.0.0.1:9000", None, "http://127.0.0.1:9000"),
        ("localhost:9000", None, "http://localhost:9000"),
        ("localhost:9000", True, "https://localhost:9000"),
        ("[::1]:9000", None, "http://[::1]:9000"),
    ],
)
def test_endpoints(given: str, secure: bool | None, expected: str) -> None:
    settings = StoreSettings(given, "a", "b", secure=secure)
    assert settings.endpoint == expected
    assert settings.secure == expected.startswith("https")
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    "endpoint",
    ["", "http://", "ftp://h", "http://h/bucket", "http://user:pw@h", "http://h:port", "h:99999",
     "http://h?x=1"],
)  # fmt: skip
def test_bad_endpoints(endpoint: str) -> None:
    with pytest.raises(UserError, match="endpoint"):
        StoreSettings(endpoint, "a", "b")


def test_a_scheme_that_contradicts_secure() -> None:
    with pytest.raises(UserError, match="contradicts secure=True"):
        StoreSettings("http://h", "a", "b", secure=True)


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_bad_retry_seconds(value: str) -> None:
    with pytest.raises(UserError, match=r"(?i)retry_seconds must be a number"):
        StoreSettings.load(ENVIRONMENT | {"PERCMAE_STORE_RETRY_SECONDS": value})


def test_a_path_finds_the_settings_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense://")
    path = StorePath("s3://bucket/key")
    assert path.name == "key"
    with pytest.raises(UserError, match="nonsense"):
        path.exists()
