"""Where the object store is, and how it is reached: from the environment, else from files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from percmae.errors import StoreAccessError, UserError
from percmae.storage.keys import Keys, Profile, Role, find_keys, sts_endpoint, tidy
from percmae.storage.proxy import is_loopback

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
RETRY_VARIABLE = "PERCMAE_STORE_RETRY_SECONDS"
CONFIG_VARIABLE = "PERCMAE_STORE_CONFIG"
DEFAULT_CONFIG = "~/.config/percmae/store.yaml"
# Fields that a file has no word for.
_NOT_IN_FILES = ("role", "origin", "token_origin")

_LONGEST_NAME = 12  # letters; Amazon's access keys have 20


@dataclass(frozen=True)
class StoreSettings:
    """How to reach one S3-compatible store. Compares by value, pickles, never prints secrets.

    Raises ``UserError`` for an endpoint that is not one, for a missing half of the keys, and for
    keys that have characters which none has.
    """

    endpoint: str
    """``http://host:port`` or ``https://host``. Without a scheme: ``secure`` decides, and where
    that is not given either, plain HTTP to this very machine and HTTPS to any other."""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
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
    role: Role | None = None
    """What gives the keys, in place of the two above."""
    origin: str = field(default=Keys.origin, compare=False, repr=False)
    """What the keys come from, for messages."""
    token_origin: str = field(default=Keys.token_origin, compare=False, repr=False)

    def __post_init__(self) -> None:
        endpoint, secure = _normalise_endpoint(self.endpoint, self.secure)
        object.__setattr__(self, "endpoint", endpoint)
        object.__setattr__(self, "secure", secure)
        for name in ("access_key", "secret_key", "session_token", "region"):
            if getattr(self, name):
                object.__setattr__(self, name, tidy(getattr(self, name), name))
        if self.role is None and not (self.access_key and self.secret_key):
            raise UserError(
                f"the store at {endpoint} needs an access key and a secret key: set"
                " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (or access_key and"
                f" secret_key in the file named by {CONFIG_VARIABLE}); a machine on EC2 is asked"
                " for its role with AWS_EC2_METADATA_DISABLED=false"
            )
        if not (math.isfinite(self.retry_seconds) and self.retry_seconds >= 0):
            raise UserError(f"retry_seconds must be a number ≥ 0, not {self.retry_seconds}")

    @property
    def who(self) -> str:
        """Whose requests these are, for messages: "the access key 'X'", or a role.

        Of a key that is no name its beginning only: messages are kept and passed on.
        """
        key = self.access_key
        shown = key if len(key) <= _LONGEST_NAME else f"{key[:4]}…"
        return str(self.role) if self.role else f"the access key '{shown}'"

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> StoreSettings:
        """Settings from ``environ`` (default: the process's own) and the files that it names.

        The endpoint is ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``. Without these the file
        named by ``PERCMAE_STORE_CONFIG``, else ``~/.config/percmae/store.yaml``, holds fields of
        this class; without such a file it may be the ``endpoint_url`` of an AWS profile.

        Keys in that file belong together and are mixed with no others; where it has none,
        ``percmae.storage.keys`` finds them. A profile with keys also gives region and authorities,
        unless the environment does.

        Raises ``UserError`` naming the unknown key, wrong type or absent file, and
        ``StoreAccessError`` when no store is configured at all.
        """
        env = _Environment(os.environ if environ is None else environ)
        values = _from_environment(env)
        if "endpoint" not in values:
            values |= _from_file(env)
        if "access_key" not in values and "secret_key" not in values:
            keys, profile = find_keys(env, sts_endpoint(env, values.get("region")))
            values = (profile.settings if profile else {}) | values | vars(keys or Keys())
        if env.get(RETRY_VARIABLE):
            values["retry_seconds"] = _seconds(env[RETRY_VARIABLE], RETRY_VARIABLE)
        return cls(**values)


class _Environment(Mapping[str, str]):
    """Variables that are not blank, without white space around what is no key."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def __getitem__(self, name: str) -> str:
        text = self._variables[name]
        if not text.strip():
            raise KeyError(name)
        # Of keys the white space is told (keys.tidy).
        return text if name.endswith(("_KEY", "_KEY_ID", "_TOKEN")) else text.strip()

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    names = {
        "endpoint": ENDPOINT_VARIABLES,
        "region": REGION_VARIABLES,
        "ca_file": ("AWS_CA_BUNDLE", "SSL_CERT_FILE"),
    }
    found = {key: [env[name] for name in group if name in env] for key, group in names.items()}
    return {key: values[0] for key, values in found.items() if values}


def _from_file(env: Mapping[str, str]) -> dict[str, Any]:
    """Fields in the file of settings, or the endpoint in a profile where there is no such file."""
    from percmae.plain import read_yaml

    named = env.get(CONFIG_VARIABLE)
    path = Path(os.path.expanduser(named or DEFAULT_CONFIG))  # without a home it stays as it is
    try:
        data = read_yaml(path.read_bytes(), f"store settings file {path}")
    except (FileNotFoundError, NotADirectoryError):
        if named:
            raise UserError(f"{CONFIG_VARIABLE} names {path}, which does not exist") from None
        endpoint = Profile.of(env).values.get("endpoint_url")
        if endpoint:
            return {"endpoint": endpoint}
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
    values = {key: value for key, value in data.items() if value is not None}
    keys = ("access_key", "secret_key", "session_token")
    if "session_token" in values and not values.keys() & set(keys[:2]):
        raise UserError(f"{path}: session_token goes with access_key and secret_key")
    values |= {key: tidy(values[key], f"{key} in {path}") for key in keys if key in values}
    origin = {
        "origin": f"access_key and secret_key in {path}",
        "token_origin": f"session_token in {path}",
    }
    return origin | values


def _check_types(data: dict[Any, Any], path: Path) -> None:
    names = [f.name for f in fields(StoreSettings) if f.name not in _NOT_IN_FILES]
    kinds: dict[str, type | tuple[type, ...]] = dict.fromkeys(names, str)
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
    if any(character.isspace() or not character.isprintable() for character in text):
        raise UserError(f"the store endpoint {endpoint!r} has white space in it")
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
        secure = not is_loopback(host) if secure is None else secure
        return f"{'https' if secure else 'http'}://{parts.netloc}", secure
    if parts.scheme not in ("http", "https"):
        raise UserError(f"the store endpoint {endpoint!r} must begin with http:// or https://")
    from_scheme = parts.scheme == "https"
    if secure is not None and secure != from_scheme:
        raise UserError(f"the store endpoint {endpoint!r} contradicts secure={secure}")
    return f"{parts.scheme}://{parts.netloc}", from_scheme
