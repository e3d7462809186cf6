"""HTTP for minio-py: every request is retried here, in one place, within one bounded time.

minio-py hands each signed request to a urllib3 pool. Ours repeats a request after a connection
error or an answer that means "not now" (429, 500, 502, 503 such as SlowDown, 504), waiting longer
each time with some randomness, until the settings' ``retry_seconds`` are over. Everything else is
an answer and goes back at once. S3 requests are idempotent, so repeating one is safe; the two
that are not quite (starting and completing a multipart upload) are handled in ``stream``.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

import certifi
import urllib3
from urllib3.exceptions import (
    HTTPError,
    NewConnectionError,
    ProtocolError,
    SSLError,
    TimeoutError,
)

from percmae.errors import StoreAccessError, StoreError
from percmae.storage.settings import StoreSettings

RETRY_STATUS = frozenset({429, 500, 502, 503, 504})
# What a broken or refused connection raises, while connecting, sending or reading a body.
CONNECTION_ERRORS = (ProtocolError, TimeoutError, NewConnectionError, SSLError)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# A socket that is silent for this long is taken for dead.
_SILENCE = 30.0
_SEND_PIECE = 1 << 20
# Not the global generator: retries must not change what a seeded training draws.
_random = random.SystemRandom()


class Patience:
    """The time left for one piece of work, and the pauses between its tries."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self.renew()

    def renew(self) -> None:
        """Start again, after progress was made."""
        self._tries = 0
        self._deadline = time.monotonic() + self._settings.retry_seconds

    def socket_timeout(self) -> float:
        """How long one send or receive may be silent, in seconds; leaves time to try again."""
        return max(0.5, min(_SILENCE, (self._deadline - time.monotonic()) / 2))

    def pause(self, problem: object) -> None:
        """Wait before the next try; raises ``StoreError`` with ``problem`` when time is up."""
        self._tries += 1
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._tries - 1))
        pause = _random.uniform(longest / 2, longest)
        if time.monotonic() + pause > self._deadline:
            settings = self._settings
            tries = f"{self._tries} tries" if self._tries > 1 else "1 try"
            raise StoreError(
                f"no usable answer from the store at {settings.endpoint} after {tries} in"
                f" {settings.retry_seconds:g} s ({_describe(problem)}): is it running, and is the"
                " endpoint right?"
            )
        time.sleep(pause)


class Transport(urllib3.PoolManager):
    """A connection pool that retries; what minio-py is given as its ``http_client``."""

    def __init__(self, settings: StoreSettings) -> None:
        if settings.ca_file and not os.path.isfile(settings.ca_file):
            raise StoreAccessError(
                f"the file of trusted authorities {settings.ca_file} (AWS_CA_BUNDLE or ca_file)"
                " does not exist"
            )
        super().__init__(
            maxsize=16,
            cert_reqs="CERT_REQUIRED",
            ca_certs=settings.ca_file or certifi.where(),
        )
        self._settings = settings

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = False, **kw: Any
    ) -> urllib3.BaseHTTPResponse:
        """One request, repeated as needed; raises ``StoreError`` when no answer came in time."""
        patience = Patience(self._settings)
        body = kw.pop("body", None)
        kw["retries"] = False
        while True:
            timeout = patience.socket_timeout()
            kw["timeout"] = urllib3.Timeout(connect=timeout, read=timeout)
            try:
                # minio-py reads redirects itself, as a hint at the right region.
                response = super().urlopen(method, url, redirect=False, body=_pieces(body), **kw)
            except CONNECTION_ERRORS as error:
                raise_if_final(error, self._settings)
                patience.pause(error)
                continue
            if response.status not in RETRY_STATUS:
                return response
            problem = _reason(response)
            response.close()
            patience.pause(problem)


def raise_if_final(error: HTTPError, settings: StoreSettings) -> None:
    """Raise ``StoreAccessError`` for a failure of TLS that no retry will cure."""
    if not isinstance(error, SSLError) or "EOF" in str(error):
        return
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        raise StoreAccessError(
            f"the certificate of {settings.endpoint} is not trusted: name its authority's PEM file"
            " in AWS_CA_BUNDLE"
        ) from error
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        plain = settings.endpoint.replace("https://", "http://", 1)
        raise StoreAccessError(
            f"the store at {settings.endpoint} does not speak TLS; if that is meant, set the"
            f" endpoint to {plain}"
        ) from error
    raise StoreAccessError(f"no TLS with {settings.endpoint}: {_describe(error)}") from error


def _pieces(body: bytes | None) -> bytes | Iterator[bytes] | None:
    """A large body in pieces, because a socket's timeout covers one whole send.

    Sent at once, 16 MiB over a slow line would be taken for a silent connection.
    """
    if not isinstance(body, bytes) or len(body) <= _SEND_PIECE:
        return body
    view = memoryview(body)
    return (bytes(view[at : at + _SEND_PIECE]) for at in range(0, len(body), _SEND_PIECE))


def _reason(response: urllib3.BaseHTTPResponse) -> str:
    """The S3 error code in an answer that will be retried, for the message if it stays so."""
    try:
        text = response.data.decode("utf-8", "replace")
    except CONNECTION_ERRORS:
        text = ""
    _, _, rest = text.partition("<Code>")
    code = rest.partition("</Code>")[0]
    return f"HTTP {response.status} {code}".strip()


def _describe(problem: object) -> str:
    """The innermost cause in a few words: "Connection refused", without object addresses."""
    if not isinstance(problem, Exception):
        return str(problem)
    while isinstance(
        inner := problem.__cause__ or problem.__context__, OSError | HTTPError | HTTPException
    ):
        problem = inner
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return str(problem)
