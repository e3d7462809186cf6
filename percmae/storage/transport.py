"""HTTP for minio-py: every request is retried here, in one place, within one bounded time.

A request is repeated after a connection error or an answer that means "not now" (429, 500, 502, 503
such as SlowDown, 504), waiting longer each time with some randomness, until the settings'
``retry_seconds`` are over, or what an outage allows (``outage``). Everything else is an answer and
goes back at once. S3 requests are idempotent, so repeating one is safe; the two that are not quite
(starting and completing a multipart upload) are handled in ``stream``. Who signs repeats with
:func:`persist` what signs, for a signature is good for 15 minutes.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeVar

import certifi
import urllib3
from urllib3.exceptions import (
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    SSLError,
    TimeoutError,
)

from percmae.errors import StoreAccessError, StoreAway
from percmae.storage import outage
from percmae.storage.proxy import Proxy, proxy_for
from percmae.storage.settings import StoreSettings

T = TypeVar("T")

RETRY_STATUS = frozenset({429, 500, 502, 503, 504})
# What a broken or refused connection raises, while connecting, sending or reading a body.
CONNECTION_ERRORS = (ProtocolError, TimeoutError, NewConnectionError, SSLError, ProxyError)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# A socket that is silent for this long is taken for dead.
_SILENCE = 30.0
_SEND_PIECE = 1 << 20
# Not the global generator: retries must not change what a seeded training draws.
_random = random.SystemRandom()


@dataclass(frozen=True)
class Server:
    """What requests go to, and how messages call it.

    what: "the store", or another word; proxy: what the way there leads through; seconds: how long
    to keep trying one request; ca_file: as of ``StoreSettings``.
    """

    what: str
    url: str
    proxy: Proxy | None
    seconds: float
    ca_file: str | None = None

    @classmethod
    def store(cls, settings: StoreSettings) -> Server:
        """The store of these settings, by the proxy that the environment names now."""
        url = settings.endpoint
        return cls("the store", url, proxy_for(url), settings.retry_seconds, settings.ca_file)

    @property
    def address(self) -> str:
        """The URL, and the proxy on the way."""
        return f"{self.url} through {self.proxy}" if self.proxy else self.url

    def __str__(self) -> str:
        return f"{self.what} at {self.address}"

    @property
    def patience(self) -> float:
        """Seconds for which one request is repeated, as things are now."""
        return outage.allowed(self.url, self.seconds)


class NotNow(Exception):
    """There was no usable answer, and there may be one later.

    problem: what came in its place; remedy: what helps; None: see whether the server runs.
    """

    def __init__(self, problem: object, remedy: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


class Patience:
    """The time left for one piece of work, and the pauses between its tries."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.renew()

    def renew(self) -> None:
        """Start again, after progress was made."""
        self._tries = 0
        self._began = time.monotonic()

    def pause(self, problem: object, remedy: str | None = None) -> None:
        """Wait before the next try; raises ``StoreAway`` with ``problem`` when time is up."""
        self._tries += 1
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._tries - 1))
        pause = _random.uniform(longest / 2, longest)
        seconds = self._server.patience
        if time.monotonic() + pause > self._began + seconds:
            tries = f"{self._tries} tries" if self._tries > 1 else "1 try"
            right = "are endpoint and proxy" if self._server.proxy else "is the endpoint"
            raise StoreAway(
                f"no usable answer from {self._server} after {tries} in {seconds:g} s"
                f" ({_describe(problem)}): {remedy or f'is it running, and {right} right?'}"
            )
        outage.repeats()
        outage.fails(self._server, _describe(problem), self._began, self._began + seconds)
        time.sleep(pause)

    def end(self) -> None:
        """There is an answer."""
        if self._tries:
            outage.recovers(self._server, self._began)


def persist(server: Server, ask: Callable[[], T]) -> T:
    """What ``ask`` gives, which is called again while it raises ``NotNow``.

    Raises ``StoreAway`` when time is up.
    """
    patience = Patience(server)
    while True:
        try:
            answer = ask()
        except NotNow as error:
            patience.pause(error.problem, error.remedy)
        else:
            patience.end()
            return answer


class OneTry(urllib3.PoolManager):
    """A connection pool; what minio-py is given as its ``http_client``."""

    def __init__(self, server: Server) -> None:
        if server.ca_file:
            _check_authorities(server.ca_file)
        options: dict[str, Any] = {
            "maxsize": 16,
            "cert_reqs": "CERT_REQUIRED",
            "ca_certs": server.ca_file or certifi.where(),
        }
        super().__init__(**options)
        self.server = server
        self._through: urllib3.PoolManager | None = None
        if server.proxy:
            headers = urllib3.make_headers(proxy_basic_auth=server.proxy.user)
            self._through = urllib3.ProxyManager(server.proxy.url, proxy_headers=headers, **options)

    def clear(self) -> None:
        """Close all connections."""
        super().clear()
        if self._through is not None:
            self._through.clear()

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = False, **kw: Any
    ) -> urllib3.BaseHTTPResponse:
        """One request; raises ``NotNow`` where it is to be repeated."""
        send = self._through.urlopen if self._through else super().urlopen
        body = kw.pop("body", None)
        kw["retries"] = False
        # Leaves time to try again.
        timeout = max(0.5, min(_SILENCE, self.server.patience / 2))
        kw["timeout"] = urllib3.Timeout(connect=timeout, read=timeout)
        try:
            # minio-py reads redirects itself, as a hint at the right region.
            response = send(method, url, redirect=False, body=_pieces(body), **kw)
        except CONNECTION_ERRORS as error:
            raise_if_final(error, self.server)
            raise NotNow(error) from error
        if response.status == 407 and self.server.proxy:
            raise _refused_by_proxy(self.server.proxy)
        if response.status in RETRY_STATUS:
            problem = reason(response)
            response.close()
            raise NotNow(problem)
        return response


class Transport(OneTry):
    """A connection pool that repeats each request as it is."""

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = False, **kw: Any
    ) -> urllib3.BaseHTTPResponse:
        """One request, repeated as needed; raises ``StoreAway`` when no answer came in time."""
        ask = super().urlopen
        response = persist(self.server, lambda: ask(method, url, redirect, **kw))
        outage.answered(self.server.url, "", method)
        return response


def raise_if_final(error: HTTPError, server: Server) -> None:
    """Raise ``StoreAccessError`` for a failure of TLS or of a proxy that no retry will cure."""
    causes = list(_causes(error))
    text = " ".join(map(str, causes))
    if server.proxy and "Tunnel connection failed: 407" in text:
        raise _refused_by_proxy(server.proxy) from error
    if server.proxy and "Tunnel connection failed: 403" in text:
        raise StoreAccessError(
            f"{server.proxy} refuses to connect to {server.url} (403)"
        ) from error
    if not any(isinstance(cause, SSLError | ssl.SSLError) for cause in causes) or "EOF" in text:
        return
    refused = next((c for c in causes if isinstance(c, ssl.SSLCertVerificationError)), None)
    if refused is not None:
        raise StoreAccessError(_certificate(refused, server)) from error
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        plain = server.url.replace("https://", "http://", 1)
        raise StoreAccessError(
            f"{server} does not speak TLS; if that is meant, set the endpoint to {plain}"
        ) from error
    raise StoreAccessError(f"no TLS with {server.address}: {_describe(error)}") from error


# OpenSSL's numbers (X509_V_ERR_…) of what is wrong with a certificate.
_NOT_YET, _EXPIRED = 9, 10
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
_OTHER_HOST = (62, 64)


def _certificate(refused: ssl.SSLCertVerificationError, server: Server) -> str:
    """Why a certificate is refused, and what helps; a file of authorities often does not."""
    what, code = f"the certificate of {server.address}", refused.verify_code
    if code in _UNKNOWN_AUTHORITY:
        who = f"is of no authority in {server.ca_file}" if server.ca_file else "is not trusted"
        return f"{what} {who}: name its authority's PEM file in AWS_CA_BUNDLE"
    if code in _OTHER_HOST:
        return (
            f"{what} is another host's ({refused.verify_message.rstrip('.')}): give the name that"
            " is in it as the endpoint, or have one made for this name"
        )
    if code == _EXPIRED:
        return f"{what} has expired: it has to be renewed there (or this machine's clock is wrong)"
    if code == _NOT_YET:
        return f"{what} is not valid yet: set this machine's clock"
    return f"{what} is refused: {refused.verify_message}"


def _refused_by_proxy(proxy: Proxy) -> StoreAccessError:
    fault = "refuses user and password" if proxy.user else "wants a user and a password"
    return StoreAccessError(
        f"{proxy} {fault}: give http://user:password@host:port in {proxy.variable}"
    )


def _check_authorities(file: str) -> None:
    what = f"the file of trusted authorities {file} (AWS_CA_BUNDLE or ca_file)"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except FileNotFoundError:
        raise StoreAccessError(f"{what} does not exist") from None
    except ssl.SSLError:
        raise StoreAccessError(f"{what} has no certificate in PEM form") from None
    except OSError as error:
        raise StoreAccessError(f"{what} cannot be read: {error.strerror}") from None


def _pieces(body: bytes | None) -> bytes | Iterator[bytes] | None:
    """A large body in pieces, because a socket's timeout covers one whole send.

    Sent at once, 16 MiB over a slow line would be taken for a silent connection.
    """
    if not isinstance(body, bytes) or len(body) <= _SEND_PIECE:
        return body
    view = memoryview(body)
    return (bytes(view[at : at + _SEND_PIECE]) for at in range(0, len(body), _SEND_PIECE))


def reason(response: urllib3.BaseHTTPResponse) -> str:
    """The status and the error's code in an answer that is none, for a message."""
    try:
        text = response.data.decode("utf-8", "replace")
    except CONNECTION_ERRORS:
        text = ""
    _, _, rest = text.partition("<Code>")
    code = rest.partition("</Code>")[0]
    return f"HTTP {response.status} {code}".strip()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the innermost last; urllib3 also hands it on as an argument."""
    seen: BaseException | None = error
    while isinstance(seen, OSError | HTTPError | HTTPException):
        yield seen
        wrapped = next((each for each in seen.args if isinstance(each, Exception)), None)
        seen = wrapped or seen.__cause__ or seen.__context__


def _describe(problem: object) -> str:
    """The innermost cause in a few words: "Connection refused", without object addresses."""
    if not isinstance(problem, Exception):
        return str(problem)
    *_, inner = _causes(problem)
    return inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
