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
from collections.abc import Callable, Iterator
from typing import IO

from percmae.errors import PercmaeError, UserError

# The UI passes /apis/ on to the API, so links work as well while the way is open.
SERVICE, PORT = "service/ml-pipeline-ui", 80
_SECONDS = 30
_OPEN = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


@contextlib.contextmanager
def port_forward(namespace: str, service: str = SERVICE, port: int = PORT) -> Iterator[str]:
    """The URL on this machine of a Service in the cluster, while the block lasts.

    Raises UserError without kubectl, PercmaeError with kubectl's own words when it gives up.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise UserError("--port-forward needs kubectl, which is not on PATH; or give --host URL")
    command = [kubectl, "port-forward", "--namespace", namespace, "--address", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, service, f":{port}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is ours: kubectl ends after the last call
    )
    try:
        yield f"http://127.0.0.1:{_opened(process, namespace, service)}"
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _opened(process: subprocess.Popen[str], namespace: str, service: str) -> int:
    """The port that kubectl has opened; reads on, so that kubectl never waits for a reader."""
    lines: queue.Queue[str | None] = queue.Queue()
    said: deque[str] = deque(maxlen=5)
    assert process.stdout is not None
    assert process.stderr is not None
    _reader(process.stdout, lines.put, lambda: lines.put(None))
    errors = _reader(process.stderr, said.append, lambda: None)
    deadline = time.monotonic() + _SECONDS
    what = f"kubectl port-forward of {service} in namespace {namespace}"
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise PercmaeError(f"{what}: not open after {_SECONDS} s") from None
        if line is None:
            errors.join(5)
            raise PercmaeError(f"{what}: {said[-1].strip() if said else 'it ended'}")
        match = _OPEN.search(line)
        if match is not None:
            return int(match[1])


def _reader(
    stream: IO[str], take: Callable[[str], object], end: Callable[[], object]
) -> threading.Thread:
    def read() -> None:
        with stream:
            for line in stream:
                take(line)
        end()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread
