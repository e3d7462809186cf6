"""Processes told apart by time of birth, and free ports."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from percmae.errors import StoreError, UserError

# SeaweedFS opens a second port for gRPC this far above each of its ports.
_GRPC_OFFSET = 10_000
# Both of a pair lie below the range from which the system gives ports to clients (32768 on Linux).
_PORT_RANGE = range(12_000, 22_700)
# Children of this process, kept so that they are reaped here when they have ended.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Process:
    """One process, never confused with a later one that got the same id."""

    pid: int
    birth: str

    @classmethod
    def current(cls) -> Process:
        return cls(os.getpid(), _birth(os.getpid()) or "")

    def is_alive(self) -> bool:
        child = _children.get(self.pid)
        if child is not None and child.poll() is not None:
            del _children[self.pid]
        return _birth(self.pid) == self.birth

    def kill(self, timeout: float) -> bool:
        """End it at once (SIGKILL) and wait; whether it is gone. One gone before counts."""
        deadline = time.monotonic() + timeout
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return True
            except PermissionError:
                return False
            time.sleep(0.01)
        return True


def spawn(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> Process:
    """Start ``command`` in ``folder``, in a session of its own, its output going to ``log``."""
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is not for it
            )
    except OSError as error:
        raise StoreError(f"cannot start {command[0]}: {error.strerror}") from error
    _children[child.pid] = child
    return Process(child.pid, _birth(child.pid) or "gone")


def _birth(pid: int) -> str | None:
    """When the process began, as an opaque text; None if there is none, or only its remains."""
    try:
        # "pid (name) state ppid …": the name may hold anything, so count from the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _birth_from_ps(pid)
    except ProcessLookupError:
        return None
    state, ticks = fields[0], fields[19]
    if state in ("Z", "X"):
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot}/{ticks}"


def _birth_from_ps(pid: int) -> str | None:
    """The same on systems without /proc (macOS)."""
    result = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, began = result.stdout.strip().partition(" ")
    return None if not began or state.startswith("Z") else began.strip()


@dataclass(frozen=True)
class Ports:
    """The ports of the four parts of one server; each also uses the one 10,000 above."""

    master: int
    volume: int
    filer: int
    s3: int

    @classmethod
    def choose(cls, s3: int | None = None) -> Ports:
        """Free ports; the one for S3 may be given. Raises ``UserError`` if that one is taken."""
        if s3 is not None and not 0 < s3 <= 65_535 - _GRPC_OFFSET:
            raise UserError(f"port {s3} must be between 1 and {65_535 - _GRPC_OFFSET}")
        if s3 is not None and not _is_free_pair(s3):
            raise UserError(
                f"port {s3} (or {s3 + _GRPC_OFFSET}, which the server needs too) is taken on"
                " 127.0.0.1: choose another, or leave it out"
            )
        # Not the global generator: starting a server must not change a seeded training.
        candidates = iter(random.SystemRandom().sample(_PORT_RANGE, 500))
        free = [port for port in candidates if port != s3 and _is_free_pair(port)][:4]
        if len(free) < 4:
            raise StoreError("no free ports on 127.0.0.1 for the local store")
        return cls(free[0], free[1], free[2], s3 or free[3])

    def flags(self) -> list[str]:
        """SeaweedFS's command-line flags for these ports."""
        return [f"-{part}.port={port}" for part, port in vars(self).items()]

    def sockets(self) -> list[Path]:
        """The Unix sockets the server opens in /tmp, which stay when it is killed."""
        grpc = [f"{part}-grpc-{port + _GRPC_OFFSET}" for part, port in vars(self).items()]
        names = [*grpc, f"filer-{self.filer}", f"s3-{self.s3}"]
        return [Path("/tmp", f"seaweedfs-{name}.sock") for name in names]


def _is_free_pair(port: int) -> bool:
    return _is_free(port) and _is_free(port + _GRPC_OFFSET)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Connections that ended a moment ago do not count as using the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
