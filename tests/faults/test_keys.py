"""The store's keys, and nothing that gives them away, are in what a run says, writes or is called
with: each verb in a process of its own, on the session's S3 server with its random keys."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from engine.forked import Job, percmae
from engine.test_processes import PERCMAE, command
from s3_server import S3

from percmae.data.shards import Dataset
from percmae.storage import StorePath
from percmae.unforeseen import DEBUG

pytestmark = pytest.mark.xdist_group("keys")  # one pipeline for all
STEPS = ("optim.max_steps=2", "tracking.knn_samples=4", "tracking.rankme_samples=8")


class Heard:
    """What a small pipeline has said, by command, and what its processes were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: dict[str, str] = {}
        self.called: set[bytes] = set()
        self.environment = {name: str(folder) for name in ("TMPDIR", "XDG_CACHE_HOME", "HOME")}

    def started(self, *parts: str) -> str:
        """In a process as a person starts it, looked at as anybody on the machine can."""
        process = subprocess.Popen(
            parts,
            env={**os.environ, **self.environment, "OMP_NUM_THREADS": "1", DEBUG: "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        ended = threading.Event()
        looking = threading.Thread(target=self._look, args=(process.pid, ended))
        looking.start()
        out, errors = process.communicate()
        ended.set()
        looking.join()
        self.said[" ".join(parts)] = out + errors
        assert process.returncode == 0, errors
        return out.strip()

    def _look(self, session: int, ended: threading.Event) -> None:
        while not ended.wait(0.05):
            for pid in Job.running(session):
                with suppress(OSError):
                    self.called.add(Path(f"/proc/{pid}/cmdline").read_bytes())

    def percmae(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """In a process of our own; the last line of what it gives."""
        told = [{**self.environment, **environment}]
        place = self.folder / f"said-{len(self.said)}"
        (done,) = percmae(list(arguments), place, told=told)
        self.said[" ".join(arguments)] = done.stdout + done.stderr
        assert done.returncode == code, done
        return done.stdout.strip().rpartition("\n")[2]


@pytest.fixture(scope="module")
def heard(
    s3: S3, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Heard, str]:
    """A whole small pipeline, and where it has left files in the store."""
    here, there = tmp_path_factory.mktemp("keys"), s3.uri("keys")
    heard = Heard(here)
    training = command(tiny_dataset, here, *STEPS, "data.workers=1")
    training = [there if part == str(here) else part for part in training]
    run = heard.started(*PERCMAE, *training).splitlines()[-1]
    small = ("optim.max_steps=2", "optim.epochs=1", "optim.warmup_epochs=0", "data.batch_size=16")
    probe = ("probe", "--run", run, "--data", tiny_dataset.uri, "--to", there, "data.workers=0")
    for uri in (run, heard.percmae(*probe, *small)):
        heard.percmae("evaluate", "--run", uri, "--data", tiny_dataset.uri)
    heard.percmae("report", "--runs", run, "--to", f"{there}/report")
    heard.percmae("config", "show")
    heard.percmae("doctor")
    # What the store refuses.
    wrong = {"AWS_SECRET_ACCESS_KEY": s3.store.secret_key[::-1]}
    heard.percmae(*training, "--tag", "wrong", code=2, **wrong)
    heard.started(
        sys.executable, "-m", "percmae.jobs.manifests", "--to", str(here / "jobs"), f"image={IMAGE}"
    )
    return heard, there


IMAGE = f"registry.example/percmae@sha256:{'0' * 64}"


def _secrets(s3: S3) -> list[bytes]:
    secret = s3.store.secret_key
    return [key.encode() for key in (secret, secret[::-1], s3.store.access_key)]


def test_what_is_said(heard: tuple[Heard, str], s3: S3) -> None:
    for spoken, said in heard[0].said.items():
        assert said, spoken
        assert not [key for key in _secrets(s3) if key in said.encode()], spoken


def test_what_processes_are_called_with(heard: tuple[Heard, str], s3: S3) -> None:
    called = b"\n".join(heard[0].called)
    assert b"pretrain" in called
    assert not [key for key in _secrets(s3) if key in called]


def test_what_is_written(heard: tuple[Heard, str], s3: S3) -> None:
    here, there = heard[0].folder, heard[1]
    written = {str(file): file.read_bytes() for file in here.rglob("*") if file.is_file()}
    stored = {entry.path.uri: entry.path.read_bytes() for entry in StorePath(there).iter()}
    for wanted in ("latest.json", "metrics.jsonl", "run.json", "config.yaml", "report.html"):
        assert any(name.endswith(wanted) for name in stored), wanted
    assert any("jobs" in name and name.endswith(".yaml") for name in written)
    for name, content in (written | stored).items():
        assert not [key for key in _secrets(s3) if key in content], name
