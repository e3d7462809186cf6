"""Through kubectl to KFP: a program that does as ``kubectl port-forward`` does stands for it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kfp_server import Server

from pipelines.__main__ import main
from pipelines.server.api import Kfp

pytestmark = pytest.mark.usefixtures("alone")

IMAGE = "registry.example/percmae-pipeline@sha256:" + "1" * 64
KUBECTL = """\
#!{python}
# What `kubectl port-forward` does: opens a port here, says so, and hands bytes on.
import os, socket, sys, threading
open("{folder}/pid", "w").write(str(os.getpid()))
open("{folder}/words", "w").write(" ".join(sys.argv[1:]))
local = sys.argv[-1].partition(":")[0]
server = socket.create_server(("127.0.0.1", int(local or 0)))
print(f"Forwarding from 127.0.0.1:{{server.getsockname()[1]}} -> 3000", flush=True)

def pump(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)

while True:
    near, _ = server.accept()
    print("Handling connection for 3000", flush=True)
    if os.path.exists("{folder}/break"):
        os.remove("{folder}/break")
        sys.exit("error: lost connection to pod")
    far = socket.create_connection(("127.0.0.1", {port}))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""


def kubectl(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "kubectl"
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_through_kubectl(
    kfp: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = int(kfp.url.rpartition(":")[2])
    text = KUBECTL.format(python=sys.executable, folder=tmp_path, port=port)
    kubectl(tmp_path, text, monkeypatch)
    words = ["submit", "--image", IMAGE, "--port-forward", "--kfp-namespace", "ml"]
    assert main(words) == 0
    assert len(kfp.runs) == 1
    said = (tmp_path / "words").read_text()
    assert said == ("port-forward --namespace ml --address 127.0.0.1 service/ml-pipeline-ui :80")
    assert gone(int((tmp_path / "pid").read_text()))
    # That way is closed now: the link is for one that a person opens, who is told how.
    out, err = capsys.readouterr()
    assert out.startswith("http://localhost:8080/#/runs/details/")
    assert "kubectl port-forward --namespace ml service/ml-pipeline-ui 8080:80\n" in err


def test_kubectl_that_loses_its_pod(
    kfp: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It has opened the port, and ends at the first connection."""
    text = KUBECTL.format(python=sys.executable, folder=tmp_path, port=1)
    kubectl(tmp_path, text, monkeypatch)
    (tmp_path / "break").touch()
    assert main(["submit", "--image", IMAGE, "--port-forward"]) == 1
    err = capsys.readouterr().err
    assert "cannot be reached" in (last := err.splitlines()[-1])
    assert last.endswith(": error: lost connection to pod")
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
def test_waiting_goes_on_when_kubectl_has_died(
    kfp: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(kfp.url.rpartition(":")[2])
    kubectl(
        tmp_path, KUBECTL.format(python=sys.executable, folder=tmp_path, port=port), monkeypatch
    )
    monkeypatch.setattr("pipelines.server.submit._POLL", 0.2)
    pids = []
    looked = Kfp.get_run

    def run(self: Kfp, run_id: str) -> object:
        pids.append((tmp_path / "pid").read_text())
        if len(pids) == 2:
            os.kill(int(pids[-1]), signal.SIGKILL)
        return looked(self, run_id)

    monkeypatch.setattr(Kfp, "get_run", run)
    kfp.script = [{"state": "RUNNING"}, {"state": "RUNNING"}, {"state": "SUCCEEDED"}]
    assert main(["submit", "--image", IMAGE, "--port-forward", "--wait"]) == 0
    assert len(set(pids)) == 2
    assert all(gone(int(pid)) for pid in pids)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_kubectl_ends_with_us(
    kfp: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    kfp.script = [{"state": "RUNNING"}]
    port = int(kfp.url.rpartition(":")[2])
    text = KUBECTL.format(python=sys.executable, folder=tmp_path, port=port)
    kubectl(tmp_path, text, monkeypatch)
    words = ["submit", "--image", IMAGE, "--port-forward", "--wait"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has it ignored, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not any(run["asked"] for run in kfp.runs.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert "percmae: stopped: " in err
    assert "goes on" in err
    assert gone(int((tmp_path / "pid").read_text()))


def test_kubectl_that_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = 'Error from server (NotFound): services "ml-pipeline-ui" not found'
    kubectl(tmp_path, f"#!/bin/sh\necho '{reason}' >&2\nexit 1\n", monkeypatch)
    assert main(["submit", "--image", IMAGE, "--port-forward"]) == 1
    err = capsys.readouterr().err
    assert err.endswith(f"in namespace kubeflow: it ended: {reason}\n")
    assert len(err.splitlines()) == 1


def test_no_kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", "--image", IMAGE, "--port-forward"]) == 2
    assert "needs kubectl" in capsys.readouterr().err
