"""An HTTP proxy before a real S3 server that misbehaves on demand and counts what passes."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>"
NO_UPLOAD = b"<Error><Code>NoSuchUpload</Code><Message>Never heard of it</Message></Error>"
FULL = b"<Error><Code>XMinioStorageFull</Code><Message>No room</Message></Error>"
REVOKED = b"<Error><Code>InvalidAccessKeyId</Code><Message>Who is that?</Message></Error>"
DENIED = b"<Error><Code>AccessDenied</Code><Message>No</Message></Error>"
INTERNAL = b"<Error><Code>InternalError</Code><Message>Try again</Message></Error>"


class FaultyProxy:
    """Forwards everything to ``target``; ``fault`` says what goes wrong, and when.

    The signature of an S3 request covers the Host header, which is passed on unchanged, so
    clients are told this proxy's ``endpoint`` and the server behind accepts what they sign.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).netloc
        self.requests: list[str] = []
        self.dates: list[str] = []
        self.body_bytes = 0
        self.release = threading.Event()
        self._faults: list[tuple[str, str]] = []
        self._lasting: list[tuple[str, str]] = []
        self._share, self._random = 0.0, random.Random()
        self._awaited: tuple[str, Callable[[], object]] | None = None
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            def setup(self) -> None:
                self.proxy = proxy
                super().setup()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def fault(self, action: str, times: int = 1, on: str = "") -> None:
        """Do ``action`` at the next ``times`` requests whose first line contains ``on``.

        Actions: "refuse" (close without an answer), "503", "500", "full", "revoked" (the access
        key is unknown), "denied", "cut" (half of the body), "short" (the same, as if that were
        all), "elsewhere" (a range that begins elsewhere), "damage" (other bytes), "slow"
        (the body in pieces), "hang" (no answer at all), "lose" (do it, but lose the answer),
        "error200" (an error in the body of a 200, as S3 may answer to the end of an upload), "no
        upload" (it is unknown), "page" and "text" (what a web server answers), "short body" (half
        of what is sent arrives).
        """
        self._faults += [(on, action)] * times

    @contextmanager
    def lasting(self, action: str, on: str = "") -> Iterator[None]:
        """Do ``action`` at each request whose first line contains ``on``, as long as it is open."""
        fault = (on, action)
        self._lasting.append(fault)
        try:
            yield
        finally:
            self._lasting.remove(fault)

    def last(self, seconds: float, action: str, on: str = "") -> None:
        """As :meth:`lasting`, for so long from now on."""
        fault = (on, action)
        self._lasting.append(fault)
        timer = threading.Timer(seconds, self._lasting.remove, [fault])
        timer.daemon = True
        timer.start()

    def when(self, on: str, then: Callable[[], object]) -> None:
        """Call ``then`` at the first request whose first line contains ``on``, and forward it."""
        self._awaited = (on, then)

    def fail_some(self, share: float, seed: int) -> None:
        """Let so many of all requests fail, in one way or another."""
        self._share, self._random = share, random.Random(seed)

    def sent(self, at_least: int, seconds: float = 5.0) -> int:
        """Bytes of bodies passed on so far, once they are that many.

        A reader may have the last byte before the thread that sent it has counted it.
        """
        deadline = time.monotonic() + seconds
        while self.body_bytes < at_least and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.body_bytes

    def next_fault(self, line: str) -> str | None:
        with self._lock:
            self.requests.append(line)
            if self._awaited is not None and self._awaited[0] in line:
                (_, then), self._awaited = self._awaited, None
                then()
                return None
            for on, action in self._lasting:
                if on in line:
                    return action
            if self._random.random() < self._share:
                return self._random.choice(["refuse", "503", "500", "cut", "short", "lose"])
            for number, (on, action) in enumerate(self._faults):
                if on in line:
                    del self._faults[number]
                    return action
        return None

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or head and body come 40 ms apart
    proxy: FaultyProxy

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        return

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        action = self.proxy.next_fault(f"{self.command} {self.path}")
        self.proxy.dates.append(self.headers.get("x-amz-date") or "")
        if action == "hang":
            self.proxy.release.wait(30)
        if action in ("hang", "refuse"):
            self.close_connection = True
            return
        answers = {
            "503": (503, SLOW_DOWN, "application/xml"),
            "500": (500, INTERNAL, "application/xml"),
            "full": (507, FULL, "application/xml"),
            "revoked": (403, REVOKED, "application/xml"),
            "denied": (403, DENIED, "application/xml"),
            "no upload": (404, NO_UPLOAD, "application/xml"),
            "error200": (200, INTERNAL, "application/xml"),
            "page": (200, b"<html>console</html>", "text/html"),
            "text": (200, b"It works & this is no XML", "text/plain"),
        }
        if action in answers:
            status, data, kind = answers[action]
            if self.command == "HEAD":  # which has no body
                data = b""
            self._answer(status, {"Content-Type": kind}, data, len(data))
            return
        if action == "short body":
            body = body[: len(body) // 2]
            self.headers.replace_header("Content-Length", str(len(body)))
        self._forward(body, action)

    def _forward(self, body: bytes, action: str | None) -> None:
        upstream = http.client.HTTPConnection(self.proxy.target, timeout=30)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            data = response.read()
        finally:
            upstream.close()
        if action == "lose":
            self.close_connection = True
            return
        length = int(response.getheader("Content-Length") or len(data))
        if action == "cut":
            data = data[: len(data) // 2]
            self.close_connection = True
        if action == "short" and self.command != "HEAD":
            data = data[: len(data) // 2]
            length = len(data)
        if action == "damage":
            data = data.translate(bytes(reversed(range(256))))
        skip = {"connection", "transfer-encoding", "content-length"}
        headers = {k: v for k, v in response.getheaders() if k.lower() not in skip}
        if action == "elsewhere" and "Content-Range" in headers:
            headers["Content-Range"] = headers["Content-Range"].replace("bytes ", "bytes 1")
        self._answer(response.status, headers, data, length, slow=action == "slow")

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, length: int, slow: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        piece = max(1, len(data) // 8) if slow else len(data) or 1
        for at in range(0, len(data), piece):
            if slow:
                time.sleep(0.02)
            self.wfile.write(data[at : at + piece])
        self.wfile.flush()
        self.proxy.body_bytes += len(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any
