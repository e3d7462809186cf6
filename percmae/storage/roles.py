"""The keys that sign a request, as minio-py's providers: those of the settings, or of a role.

Temporary keys of a role are fetched when needed, and before they run out. Keys that the store
refuses after it took them are looked for anew where they came from (``renew``).

Whatever the services and the providers say, neither a token nor a key gets into a message: what
these raise may have the request's address in it, or its headers.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import urllib3
from minio.credentials import Credentials, IamAwsProvider, Provider, WebIdentityProvider
from urllib3.exceptions import HTTPError

from percmae.errors import PercmaeError, StoreAccessError, StoreError
from percmae.storage.keys import NO_CHARACTER_OF_KEYS, Role
from percmae.storage.proxy import proxy_for
from percmae.storage.settings import StoreSettings
from percmae.storage.transport import Server, Transport, reason

# A service beside the container or machine answers at once, or there is none.
_NEAR_SECONDS = 3.0
# What the providers raise for an answer of another form, or none.
_NOT_UNDERSTOOD = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
    ParseError,
    HTTPError,
)


class Given(Provider):
    """The keys of ``settings``."""

    def __init__(self, settings: StoreSettings) -> None:
        self.origin = settings.origin
        self._endpoint = settings.endpoint
        self._keys = _keys_of(settings)

    def retrieve(self) -> Credentials:
        return self._keys

    def renew(self) -> None:
        """Take what is now where the keys came from, which a file may give otherwise."""
        with suppress(PercmaeError):  # a file that is being written
            now = StoreSettings.load()
            if (now.endpoint, now.origin, now.role) == (self._endpoint, self.origin, None):
                self._keys = _keys_of(now)


def _keys_of(settings: StoreSettings) -> Credentials:
    return Credentials(settings.access_key, settings.secret_key, settings.session_token)


class Fetched(Provider):
    """The keys of ``role``. Raises ``StoreError`` where its service gives none."""

    def __init__(self, role: Role, settings: StoreSettings) -> None:
        self._role, self.origin = role, settings.origin
        self._http = _Client(_service(role, settings))
        self._provider = self._choose(role)

    def _choose(self, role: Role) -> Provider:
        if role.kind == "web identity":
            return WebIdentityProvider(
                jwt_provider_func=self._token,
                sts_endpoint=role.url,
                role_arn=role.arn,
                role_session_name=role.session,
                http_client=self._http,
            )
        # Which of the two it is, and with which token, it reads from the environment as well.
        url = role.url if role.kind == "instance" else None
        return IamAwsProvider(custom_endpoint=url, http_client=self._http)

    def retrieve(self) -> Credentials:
        """The keys of now; one request where there are none, or they run out within 10 s."""
        try:
            found = self._provider.retrieve()
        except StoreError:
            raise
        except _NOT_UNDERSTOOD:
            raise self._refusal() from None  # whose text may have the token in it
        given = (found.access_key, found.secret_key, found.session_token or "")
        if any(NO_CHARACTER_OF_KEYS.search(value) for value in given):
            raise self._refusal()
        return found

    def renew(self) -> None:
        """Forget the keys that were fetched."""
        self._provider = self._choose(self._role)

    def _token(self) -> dict[str, str]:
        file = Path(str(self._role.token_file)).expanduser()
        try:
            return {"access_token": file.read_text(encoding="ascii").strip()}
        except (OSError, UnicodeDecodeError) as error:
            fault = error.strerror if isinstance(error, OSError) else "no token is in it"
            raise StoreAccessError(
                f"cannot read the web identity's token in {file} ({self.origin}): {fault}"
            ) from None

    def _refusal(self) -> StoreAccessError:
        said = self._http.refusal or "its answer is not understood"
        if not self._http.asked:
            said = "only a service of this machine is asked without a token's file"
        return StoreAccessError(
            f"{self._http.server} gives no keys for {self._role} ({said}): check {self.origin}"
        )


def _service(role: Role, settings: StoreSettings) -> Server:
    if role.kind == "web identity":
        proxy, seconds = proxy_for(role.url), settings.retry_seconds
        return Server("the token service", role.url, proxy, seconds, settings.ca_file)
    # Its address is of use on this machine only: no proxy could reach it.
    return Server(f"the {role.kind}'s metadata service", role.url, None, _NEAR_SECONDS)


class _Client(Transport):
    """Keeps why a request was refused; the providers tell the status alone."""

    asked, refusal = False, ""

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = False, **kw: Any
    ) -> urllib3.BaseHTTPResponse:
        self.asked, self.refusal = True, ""
        # A token that was read from a file may end with a line break.
        kw["headers"] = {name: text.strip() for name, text in (kw.get("headers") or {}).items()}
        response = super().urlopen(method, url, redirect, **kw)
        if response.status >= 300:
            self.refusal = reason(response)
        return response
