"""Where the object store is and with which keys: from the environment, else from a YAML file."""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from percmae.errors import StoreAccessError, UserError

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
RETRY_VARIABLE = "PERCMAE_STORE_RETRY_SECONDS"
CONFIG_VARIABLE = "PERCMAE_STORE_CONFIG"
DEFAULT_CONFIG = "~/.config/percmae/store.yaml"


@dataclass(frozen=True)
class StoreSettings:
    """How to reach one S3-compatible store. Compares by value, pickles, never prints secrets.

    Raises ``UserError`` for an endpoint that is not one, or a missing half of the credentials.
    """

    endpoint: str
    """``http://host:port`` or ``https://host``. Without a scheme: ``secure`` decides, and where
    that is not given either, plain HTTP to this very machine and HTTPS to any other."""
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    """Of temporary credentials only."""
    region: str | None = None
    """None: ask the store for each bucket's region."""
    secure: bool | None = None
    """HTTPS or not; filled in from the endpoint's scheme, and must agree with it."""
    ca_file: str | None = None
    """PEM file with the authorities to trust instead of the usual ones."""
    retry_seconds: float = 60.0
    """Total time to keep trying one request while the store is down or overloaded."""

    def __post_init__(self) -> None:
        endpoint, secure = _normalise_endpoint(self.endpoint, self.secure)
        object.__setattr__(self, "endpoint", endpoint)
        object.__setattr__(self, "secure", secure)
        if not self.access_key or not self.secret_key:
            raise UserError(
                f"the store at {endpoint} needs an access key and a secret key: set"
                " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or access_key and secret_key in"
                f" the file named by {CONFIG_VARIABLE})"
            )
        if not (math.isfinite(self.retry_seconds) and self.retry_seconds >= 0):
            raise UserError(f"retry_seconds must be a number ≥ 0, not {self.retry_seconds}")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> StoreSettings:
        """Settings from ``environ`` (default: the process's own), else from the YAML file.

        With ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` set, everything comes from the
        environment, so that one store's keys are never sent to another. Otherwise the file named
        by ``PERCMAE_STORE_CONFIG``, else ``~/.config/percmae/store.yaml``, holds the fields of
        this class; keys it leaves out are taken from ``AWS_ACCESS_KEY_ID`` and so on.

        Raises ``UserError`` naming the unknown key, wrong type or absent file, and
        ``StoreAccessError`` when no store is configured at all.
        """
        env = os.environ if environ is None else environ
        values = _from_environment(env)
        if "endpoint" not in values:
            values = _from_file(env, values)
        if env.get(RETRY_VARIABLE):
            values["retry_seconds"] = _seconds(env[RETRY_VARIABLE], RETRY_VARIABLE)
        values.setdefault("access_key", "")
        values.setdefault("secret_key", "")
        return cls(**values)


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    names = {
        "endpoint": ENDPOINT_VARIABLES,
        "access_key": ("AWS_ACCESS_KEY_ID",),
        "secret_key": ("AWS_SECRET_ACCESS_KEY",),
        "session_token": ("AWS_SESSION_TOKEN",),
        "region": REGION_VARIABLES,
        "ca_file": ("AWS_CA_BUNDLE", "SSL_CERT_FILE"),
    }
    found = {key: [env[name] for name in group if env.get(name)] for key, group in names.items()}
    return {key: values[0] for key, values in found.items() if values}


def _from_file(env: Mapping[str, str], environment: dict[str, Any]) -> dict[str, Any]:
    from percmae.plain import read_yaml

    named = env.get(CONFIG_VARIABLE)
    path = Path(os.path.expanduser(named or DEFAULT_CONFIG))  # without a home it stays as it is
    try:
        data = read_yaml(path.read_bytes(), f"store settings file {path}")
    except (FileNotFoundError, NotADirectoryError):
        if named:
            raise UserError(f"{CONFIG_VARIABLE} names {path}, which does not exist") from None
        raise StoreAccessError(
            "no object store is configured: set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and"
            f" AWS_SECRET_ACCESS_KEY, or write them to {DEFAULT_CONFIG} (endpoint, access_key,"
            " secret_key); `percmae store up` starts a local store"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read the store settings in {path}: {error.strerror}") from error
    if not isinstance(data, dict) or "endpoint" not in data:
        raise UserError(f"{path} must be a YAML mapping with at least the key 'endpoint'")
    _check_types(data, path)
    if "access_key" in data or "secret_key" in data:
        environment = {k: v for k, v in environment.items() if not k.endswith(("_key", "_token"))}
    return environment | {key: value for key, value in data.items() if value is not None}


def _check_types(data: dict[Any, Any], path: Path) -> None:
    kinds: dict[str, type | tuple[type, ...]] = {f.name: str for f in fields(StoreSettings)}
    kinds |= {"secure": bool, "retry_seconds": (int, float)}
    for key, value in data.items():
        if key not in kinds:
            raise UserError(f"{path}: unknown key '{key}'; known are {', '.join(kinds)}")
        wrong_bool = isinstance(value, bool) and key != "secure"
        if value is not None and (wrong_bool or not isinstance(value, kinds[key])):
            raise UserError(f"{path}: {key} has the wrong type ({type(value).__name__})")


def _seconds(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where} must be a number of seconds, not {text!r}") from None


def _normalise_endpoint(endpoint: str, secure: bool | None) -> tuple[str, bool]:
    """The endpoint as scheme://host[:port], and whether it is HTTPS."""
    text = endpoint.strip()
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"the store endpoint {endpoint!r} is not a URL: {error}") from None
    if (
        not host
        or parts.path.strip("/")
        or parts.query
        or parts.fragment
        or parts.username is not None
    ):
        raise UserError(
            f"the store endpoint {endpoint!r} must be a host with an optional port, such as"
            " https://s3.example.com or http://127.0.0.1:9000"
        )
    if not parts.scheme:
        secure = not _is_loopback(host) if secure is None else secure
        return f"{'https' if secure else 'http'}://{parts.netloc}", secure
    if parts.scheme not in ("http", "https"):
        raise UserError(f"the store endpoint {endpoint!r} must begin with http:// or https://")
    from_scheme = parts.scheme == "https"
    if secure is not None and secure != from_scheme:
        raise UserError(f"the store endpoint {endpoint!r} contradicts secure={secure}")
    return f"{parts.scheme}://{parts.netloc}", from_scheme


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
