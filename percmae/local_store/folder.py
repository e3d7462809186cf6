"""The folder of a local store: its files, what they hold, and its lock."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from percmae.errors import StoreError, UserError
from percmae.local_store.process import Ports, Process
from percmae.storage import StorePath

_SOCKETS = "/tmp"
_LIMITS = {
    "too many open files": "raise the limit (ulimit -n 4096)",
    "failed to create new OS thread": "raise the limit on processes (ulimit -u)",
}


@dataclass
class State:
    """What state.json holds."""

    server: Process
    ports: Ports
    bucket: str
    keep: bool = False
    """Started by ``up``: only ``down`` stops it."""
    users: list[Process] = field(default_factory=list)
    """The processes inside a ``running`` block."""


class Folder:
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

    def load(self) -> State | None:
        try:
            data = json.loads(self._state.read_text(encoding="utf-8"))
            return State(
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

    def save(self, state: State) -> None:
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

    def log_tail(self, lines: int = 5) -> str:
        return " | ".join(self._log().splitlines()[-lines:]) or "(no log)"

    def ended(self) -> StoreError | UserError:
        """Why the server has ended, as far as its log says it; a crash is followed by pages."""
        what, text = "the local store ended while starting", self._log()
        for said, fix in _LIMITS.items():
            if said in text:
                return UserError(f"{what}: {said}; {fix}")
        return StoreError(f"{what}: {self.log_tail()}")

    def _log(self) -> str:
        with suppress(OSError):
            return self.log.read_text(encoding="utf-8", errors="replace").strip()
        return ""
