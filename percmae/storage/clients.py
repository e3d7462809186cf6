"""minio-py's clients of this process; they repeat a request until there is a usable answer."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError, fromstring

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error

from percmae.errors import StoreAccessError
from percmae.storage import outage
from percmae.storage.explain import code_of, is_full, is_refused
from percmae.storage.roles import Fetched, Given
from percmae.storage.transport import NotNow, OneTry, Server, persist

if TYPE_CHECKING:
    from percmae.storage.settings import StoreSettings

# A client's sockets must never be used by two processes, so the key holds the process id.
_clients: dict[tuple[int, StoreSettings, str, Server], Minio] = {}
_clients_lock = threading.Lock()


def _new_lock_in_child() -> None:
    global _clients_lock
    _clients_lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock_in_child)


def client(settings: StoreSettings) -> Minio:
    """The one minio client of this process for these settings (and the proxy of now)."""
    server = Server.store(settings)
    # Their origin too, which is no part of how settings compare: keys are renewed from there.
    key = (os.getpid(), settings, settings.origin, server)
    with _clients_lock:
        if key not in _clients:
            try:
                _clients[key] = _new_client(settings, server)
            except (ValueError, OSError) as error:
                raise StoreAccessError(f"{server}: {error}") from error
        return _clients[key]


def _new_client(settings: StoreSettings, server: Server) -> Minio:
    keys = Fetched(settings.role, settings) if settings.role else Given(settings)
    return _Client(
        urlsplit(settings.endpoint).netloc,
        credentials=keys,
        secure=bool(settings.secure),
        region=settings.region,
        http_client=OneTry(server),
    )


class _Client(Minio):
    """minio-py's client, whose requests are repeated, each time signed anew."""

    def _url_open(
        self, method: str, region: str, bucket_name: str | None = None, *args: Any, **kw: Any
    ) -> urllib3.BaseHTTPResponse:
        server = cast(OneTry, self._http).server
        place = (server.url, bucket_name or "", method)
        send = super()._url_open

        def ask() -> urllib3.BaseHTTPResponse:
            try:
                response = send(method, region, bucket_name, *args, **kw)
                if kw.get("preload_content", True) and _is_xml(response):
                    fromstring(response.data)
            except ParseError as error:
                raise NotNow("XML that is cut short or damaged") from error
            except (S3Error, InvalidResponseError) as error:
                self._raise_if_borne(error, place)
                raise
            outage.answered(*place)
            return response

        return persist(server, ask)

    def _raise_if_borne(self, error: MinioException, place: tuple[str, str, str]) -> None:
        """Raise ``NotNow`` for a full store and for keys that were good, while an outage is borne.

        That some request is not allowed at all is no outage: one like it must have been answered.
        """
        if isinstance(error, S3Error) and not (is_full(error) or is_refused(error)):
            outage.answered(*place)
        if not outage.is_borne():
            return
        if is_full(error):
            raise NotNow(code_of(error), "make room there") from error
        if is_refused(error) and outage.took_before(*place):
            keys = cast(Given | Fetched, self._provider)
            keys.renew()
            remedy = f"the keys were good before: renew {keys.origin}"
            raise NotNow(code_of(error), remedy) from error


def _is_xml(response: urllib3.BaseHTTPResponse) -> bool:
    return bool(response.data) and "xml" in response.headers.get("content-type", "")
