"""Small web servers: with or without TLS, and a forward proxy as companies have them."""

from __future__ import annotations

import base64
import datetime
import json
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import trustme


class Handler(BaseHTTPRequestHandler):
    """Says nothing on stderr; ``answer`` sends a whole answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or head and body come 40 ms apart

    def log_message(self, *_: Any) -> None:
        return

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError, ssl.SSLError):
            self.close_connection = True

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(handler: type[Handler], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server on 127.0.0.1, for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def webhook(status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """The address of a webhook, and what it is told; status: what it answers."""
    told: list[Any] = []

    class Hook(Handler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(status, b"ok")

    with serving(Hook) as port:
        yield f"http://127.0.0.1:{port}/secret", told


def tls_for(authority: trustme.CA, name: str, days: tuple[int, int] = (-1, 1)) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate for ``name`` that is valid on these days."""
    now = datetime.datetime.now(datetime.UTC)
    begin, end = (now + datetime.timedelta(days=day) for day in days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, not_before=begin, not_after=end).configure_cert(context)
    return context


class ForwardProxy:
    """Forwards requests and tunnels (CONNECT) to the hosts it knows, which no DNS has.

    hosts: name → port on 127.0.0.1. user: ``name:password`` that it wants. requests: the first
    lines that passed; refused: the status that it answers everything with.
    """

    def __init__(self, hosts: dict[str, int], user: str | None = None) -> None:
        self.hosts, self.user = hosts, user
        self.requests: list[str] = []
        self.refused: int | None = None

    @contextmanager
    def running(self) -> Iterator[str]:
        """``host:port`` of the proxy."""
        proxy = self

        class Forward(_Forward):
            of = proxy

        with serving(Forward) as port:
            yield f"127.0.0.1:{port}"


class _Forward(Handler):
    of: ForwardProxy

    def _let(self) -> bool:
        """Whether the request may pass; otherwise it has been answered."""
        given = self.headers.get("Proxy-Authorization", "")
        wanted = f"Basic {base64.b64encode((self.of.user or '').encode()).decode()}"
        if self.of.refused:
            self.answer(self.of.refused, b"<html>company policy</html>", Content_Type="text/html")
        elif self.of.user and given != wanted:
            self.answer(407, b"who are you?", Proxy_Authenticate="Basic")
        else:
            self.of.requests.append(f"{self.command} {self.path}")
            return True
        return False

    def do_CONNECT(self) -> None:
        if not self._let():
            return
        with socket.create_connection(
            ("127.0.0.1", self.of.hosts[self.path.rpartition(":")[0]])
        ) as there:
            self.send_response_only(200)
            self.end_headers()
            self.wfile.flush()
            ends = {self.connection: there, there: self.connection}
            while True:
                for source in select.select(list(ends), [], [])[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        self.close_connection = True
                        return
                    ends[source].sendall(data)

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._let():
            return
        url = urlsplit(self.path)
        there = HTTPConnection("127.0.0.1", self.of.hosts[url.hostname or ""], timeout=30)
        path = f"{url.path}?{url.query}" if url.query else url.path
        there.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if not name.lower().startswith("proxy-"):
                there.putheader(name, value)
        there.endheaders(body)
        response = there.getresponse()
        data = response.read()
        there.close()
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", response.getheader("Content-Length") or str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward
