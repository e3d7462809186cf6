"""A way into the cluster through kubectl, for as long as it is needed."""

from __future__ import annotations

import contextlib
import queue
import re
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import IO

from percmae.errors import Interrupted, PercmaeError, UserError

# The UI passes /apis/ on to the API, so links work as well while the way is open.
SERVICE, PORT = "service/ml-pipeline-ui", 80
_SECONDS = 30
_OPEN = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


def by_hand(namespace: str, local: int) -> str:
    """The command with which a person opens the same way at a known port."""
    return f"kubectl port-forward --namespace {namespace} {SERVICE} {local}:{PORT}"


@contextlib.contextmanager
def port_forward(namespace: str, service: str = SERVICE, port: int = PORT) -> Iterator[str]:
    """The URL on this machine of a Service in the cluster, while the block lasts.

    Raises UserError without kubectl, PercmaeError with kubectl's own words when it cannot open the
    way, or when a call in the block fails because it has just closed.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise UserError("--port-forward needs kubectl, which is not on PATH; or give --host URL")
    command = [kubectl, "port-forward", "--namespace", namespace, "--address", "127.0.0.1", service]
    way = _Way(command, port, f"kubectl port-forward of {service} in namespace {namespace}")
    try:
        yield f"http://127.0.0.1:{way.open()}"
    except Interrupted:
        raise
    except PercmaeError as error:
        reason = way.broken()
        if reason is None:
            raise
        raise PercmaeError(f"{error}: {reason}") from None
    finally:
        way.close()


class _Way:
    """kubectl, and again whenever it ends too early: a connection that breaks is enough for it."""

    def __init__(self, command: list[str], port: int, what: str) -> None:
        self._command, self._port, self._what = command, port, what
        self._said: deque[str] = deque(maxlen=5)
        self._closing = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._errors: threading.Thread | None = None
        self._keeper: threading.Thread | None = None
        self._ended = float("-inf")

    def open(self) -> int:
        """Returns the port on this machine; raises PercmaeError when there is none in time."""
        lines = self._start(local="")
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise PercmaeError(f"{self._what}: not open after {_SECONDS} s") from None
            if line is None:
                self._ended = time.monotonic()
                raise PercmaeError(f"{self._what}: it ended")
            match = _OPEN.search(line)
            if match is not None:
                break
        self._keeper = threading.Thread(target=self._keep, args=(match[1],), daemon=True)
        self._keeper.start()
        return int(match[1])

    def broken(self) -> str | None:
        """kubectl's last words, if it has ended just now; None while the way is open."""
        assert self._process is not None
        assert self._errors is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
            self._ended = time.monotonic()
            self._errors.join(1)
        if self._said and time.monotonic() - self._ended < 5:
            return self._said[-1].strip()
        return None

    def close(self) -> None:
        """End kubectl."""
        self._closing.set()
        if self._keeper is not None:
            self._keeper.join()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self, local: str) -> queue.Queue[str | None]:
        """Start kubectl with this port here ("" for any); its output, and None at the end."""
        self._process = subprocess.Popen(
            [*self._command, f"{local}:{self._port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours: kubectl ends after the last call
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        # Read to the end, so that kubectl never waits for a reader.
        lines: queue.Queue[str | None] = queue.Queue()
        _reader(self._process.stdout, lines)
        self._errors = _reader(self._process.stderr, self._said)
        return lines

    def _keep(self, local: str) -> None:
        while not self._closing.wait(0.5):
            if self._process is not None and self._process.poll() is not None:
                self._ended = time.monotonic()
                self._start(local)


def _reader(stream: IO[str], to: queue.Queue[str | None] | deque[str]) -> threading.Thread:
    def read() -> None:
        with stream:
            for line in stream:
                if isinstance(to, deque):
                    to.append(line)
                else:
                    to.put(line)
        if not isinstance(to, deque):
            to.put(None)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread
