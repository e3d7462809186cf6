"""Which keys sign requests to the store: looked for where AWS tools look, in the same order.

1. ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` (and ``AWS_SESSION_TOKEN``)
2. a web identity: ``AWS_WEB_IDENTITY_TOKEN_FILE`` and ``AWS_ROLE_ARN``, as EKS sets them in a pod
3. a profile: ``AWS_PROFILE``, else ``default``, of ``~/.aws/credentials`` and ``~/.aws/config``
4. a container's role: ``AWS_CONTAINER_CREDENTIALS_FULL_URI`` or ``…_RELATIVE_URI``
5. the role of a machine on EC2, from its metadata service. AWS tools ask for it wherever nothing
   else is found, and wait. Here it is asked only where the environment says that there is one: by
   ``AWS_EC2_METADATA_SERVICE_ENDPOINT``, or ``AWS_EC2_METADATA_DISABLED=false``.

Nothing here opens a connection: a role's keys are fetched by ``roles``, when they are needed.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from percmae.errors import UserError
from percmae.progress import note

NO_CHARACTER_OF_KEYS = re.compile("[^!-~]")
INSTANCE = "http://169.254.169.254"
CONTAINER = "http://169.254.170.2"
# How a profile may come by keys that percmae has no means for.
_OTHER_WAYS = (
    *("sso_session", "sso_start_url", "sso_account_id", "login_session", "credential_process"),
    *("source_profile", "credential_source", "role_arn"),
)


@dataclass(frozen=True)
class Role:
    """Temporary keys that a service gives, again and again."""

    kind: Literal["web identity", "container", "instance"]
    url: str
    """Of the service."""
    arn: str | None = None
    session: str = "percmae"
    token_file: str | None = None

    def __str__(self) -> str:
        return f"the role {self.arn}" if self.arn else f"the {self.kind} role"


@dataclass(frozen=True)
class Keys:
    """What signs requests: two keys, or a role that gives them."""

    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str | None = field(default=None, repr=False)
    role: Role | None = None
    origin: str = "access_key and secret_key"
    """Where they come from, for messages: what to look at when the store refuses them."""
    token_origin: str = "session_token"


@dataclass(frozen=True)
class Profile:
    """One profile of AWS tools' two files; ``place`` says in messages which."""

    place: str
    values: dict[str, str] = field(repr=False)

    @property
    def settings(self) -> dict[str, str]:
        """What else of a store's settings it says."""
        names = {"region": "region", "ca_file": "ca_bundle"}
        return {key: self.values[name] for key, name in names.items() if self.values.get(name)}

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Profile:
        """The profile that ``env`` chooses; without values where there is none called default.

        Raises UserError for one that is named and absent, and for a file that cannot be read.
        """
        named = env.get("AWS_PROFILE") or env.get("AWS_DEFAULT_PROFILE")
        name = named or "default"
        config = _file(env.get("AWS_CONFIG_FILE") or "~/.aws/config")
        shared = _file(env.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
        sections = [(config, f"profile {name}"), (shared, name)]
        if name == "default":
            sections.insert(0, (config, name))
        found = [_section(file, section) for file, section in sections]
        if named and all(values is None for values in found):
            where = f"{shared} or {config}"
            raise UserError(f"AWS_PROFILE={named}: there is no such profile in {where}")
        values: dict[str, str] = {}
        for each in found:
            if each and any(key in each for key in _IN_PROFILE):  # which belong together
                values = {key: value for key, value in values.items() if key not in _IN_PROFILE}
            values |= each or {}
        return cls(f"profile '{name}' of {shared} and {config}", values)


def find_keys(env: Mapping[str, str], sts: str) -> tuple[Keys | None, Profile | None]:
    """The first keys in the order above, and the profile where they are one's.

    ``sts``: URL of the service that takes web identities. Raises UserError for half a pair of
    keys, and for a profile that gets its keys in a way that percmae has no means for.
    """
    if env.get("AWS_ACCESS_KEY_ID") or env.get("AWS_SECRET_ACCESS_KEY"):
        return _pair(env, _IN_ENVIRONMENT, ""), None
    token_file = env.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    if token_file:
        return _web_identity(
            sts,
            token_file,
            env.get("AWS_ROLE_ARN"),
            env.get("AWS_ROLE_SESSION_NAME"),
            "AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN",
        ), None
    profile = Profile.of(env)
    keys = _of_profile(profile, sts)
    return (keys, profile) if keys else (_of_surroundings(env), None)


# Keys' names in the environment and in a profile.
_IN_ENVIRONMENT = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_IN_PROFILE = tuple(name.lower() for name in _IN_ENVIRONMENT)


def _pair(values: Mapping[str, str], names: tuple[str, ...], place: str) -> Keys:
    """Two keys, and a token where there is one, by their names; ``place`` stands behind these."""
    access, secret, token = names
    for name, other in ((access, secret), (secret, access)):
        if not values.get(name):
            raise UserError(f"{other}{place} is set, but {name} is not: they go together")
    tidied = {name: tidy(values[name], f"{name}{place}") for name in names if values.get(name)}
    origin = f"{access} and {secret}{place}"
    return Keys(tidied[access], tidied[secret], tidied.get(token), None, origin, f"{token}{place}")


def _of_profile(profile: Profile, sts: str) -> Keys | None:
    values, place = profile.values, f" in {profile.place}"
    if "web_identity_token_file" in values:
        return _web_identity(
            sts,
            values["web_identity_token_file"],
            values.get("role_arn"),
            values.get("role_session_name"),
            f"web_identity_token_file and role_arn{place}",
        )
    if any(name in values for name in _IN_PROFILE[:2]):
        return _pair(values, _IN_PROFILE, place)
    other = next((name for name in _OTHER_WAYS if name in values), None)
    if other:
        raise UserError(
            f"{profile.place} gets its keys by {other}, which percmae cannot do; this sets them:"
            ' eval "$(aws configure export-credentials --format env)"'
        )
    return None


def _web_identity(
    sts: str, token_file: str, arn: str | None, session: str | None, origin: str
) -> Keys:
    role = Role("web identity", sts, arn, session or "percmae", token_file)
    return Keys(role=role, origin=origin, token_origin=origin)


def _of_surroundings(env: Mapping[str, str]) -> Keys | None:
    """Of a container, or of the machine where the environment says that it has some."""
    relative = env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    full = env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    if relative or full:
        origin = f"AWS_CONTAINER_CREDENTIALS_{'RELATIVE' if relative else 'FULL'}_URI"
        url = f"{CONTAINER}/{relative.lstrip('/')}" if relative else _http(str(full), origin)
        return Keys(role=Role("container", url), origin=origin, token_origin=origin)
    disabled = env.get("AWS_EC2_METADATA_DISABLED", "").lower()
    endpoint = env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    if disabled == "true" or not (endpoint or disabled == "false"):
        return None
    name = "AWS_EC2_METADATA_SERVICE_ENDPOINT" if endpoint else "AWS_EC2_METADATA_DISABLED=false"
    url = _http(endpoint or INSTANCE, name).rstrip("/")
    return Keys(role=Role("instance", url), origin=name, token_origin=name)


def sts_endpoint(env: Mapping[str, str], region: str | None) -> str:
    """The service that gives keys for a web identity: one that is named, else AWS's own.

    ``AWS_ENDPOINT_URL`` is of all services, and stores other than AWS's are their own (MinIO).
    """
    named = env.get("AWS_ENDPOINT_URL_STS") or env.get("AWS_ENDPOINT_URL")
    aws = (".amazonaws.com", ".amazonaws.com.cn")
    if named:
        host = urlsplit(_http(named, "the token service's address")).hostname
        if host and not host.endswith(aws):
            return named
    place = f".{region}" if region else ""
    return f"https://sts{place}.amazonaws.com" + (".cn" if place.startswith(".cn-") else "")


def tidy(value: str, label: str) -> str:
    """``value`` without white space around it.

    Raises UserError for a character that no key, token or region has. Such a value must never get
    as far as a request, whose error would show all that is in the header.
    """
    stripped = value.strip()
    if stripped != value:
        _note_stripped(label)
    wrong = NO_CHARACTER_OF_KEYS.search(stripped)
    if wrong:
        what = "white space or a line break" if wrong[0].isspace() else "a character none can have"
        raise UserError(f"{label}: {what}, at place {wrong.end()} of {len(stripped)}")
    return stripped


@cache  # settings are loaded again and again
def _note_stripped(label: str) -> None:
    note(f"{label}: white space around it was left out")


def _http(url: str, label: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    except ValueError:
        pass
    raise UserError(f"{label}: {url!r} is not a URL such as http://host:port")


def _file(name: str) -> Path:
    return Path(os.path.expanduser(name))


def _section(file: Path, section: str) -> dict[str, str] | None:
    # minio-py's AWSConfigProvider reads one of the two files, and fails where a secret has "%".
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(file.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except (configparser.Error, UnicodeDecodeError):  # whose text has lines of the file in it
        raise UserError(f"{file} is not a file of AWS profiles ([name], key = value)") from None
    return dict(parser[section]) if section in parser else None
