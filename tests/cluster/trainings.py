"""What tests of whole trainings share: a laptop before a cluster that has the store of k8s/base."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from deployed import Deployed, namespace_for
from kube import ROOT, wait

from percmae import __version__
from percmae.storage import StorePath, StoreSettings

TRAIN = os.environ.get("PERCMAE_TEST_TRAIN_IMAGE", f"percmae-train:{__version__}")
PIPELINE = os.environ.get("PERCMAE_TEST_PIPELINE_IMAGE", f"percmae-pipeline:{__version__}")
# Requests that fit a machine of two cores; torch alone takes half a gigabyte. One thread a process:
# several pods train at a time, and threads that wait for each other on taken cores cost minutes.
_THREADS = {"OMP_NUM_THREADS": "1"}
SMALL = ["cpu=100m", "memory=1500Mi", "shm=64Mi", "scratch=256Mi", "grace=20"]
SMALL += [f"env={json.dumps([{'name': n, 'value': v} for n, v in _THREADS.items()])}"]
SCHEDULE = [sys.executable, "-m", "pipelines", "schedule", "--cronjob"]
_SECRET_KEY = "the-secret-of-a-test"


class Laptop:
    """Where somebody launches from: the cluster's namespace, and the environment to reach it."""

    def __init__(self, cluster: Deployed, env: dict[str, str]) -> None:
        self.cluster, self.env = cluster, env
        self.store = StoreSettings.load(env)

    def percmae(self, *arguments: str, seconds: float = 1200) -> str:
        """Run the command line and return all that it said, which is shown when it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "percmae", *arguments],
            capture_output=True,
            text=True,
            timeout=seconds,
            env=self.env,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return done.stdout + done.stderr

    def read_run(self, key: str) -> dict[str, Any]:
        """A run's record in the bucket."""
        found: dict[str, Any] = StorePath(f"s3://percmae/{key}/run.json", self.store).read_json()
        return found


def jobs(settings: list[str]) -> list[str]:
    """Job settings as options of the command line."""
    return [word for setting in settings for word in ("--job", setting)]


@contextmanager
def laptop(name: str, home: Path) -> Iterator[Laptop]:
    """A namespace with a store, and a folder ``home`` before it."""
    with namespace_for(name) as cluster:
        cluster.with_store(_SECRET_KEY)
        with _forwarded(cluster) as port:
            config = cluster.kubeconfig("percmae-launcher", home)
            values = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "percmae",
                "AWS_SECRET_ACCESS_KEY": _SECRET_KEY,
                "KUBECONFIG": str(config),
                "PERCMAE_HOME": str(home),
            }
            yield Laptop(cluster, {**os.environ, **_THREADS, **values})


@contextmanager
def _forwarded(cluster: Deployed) -> Iterator[int]:
    """The store at a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = ["kubectl", "-n", cluster.namespace, "port-forward", "service/minio", f"{port}:9000"]
    forward = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait(lambda: _answers(port))
        yield port
    finally:
        forward.terminate()
        forward.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def printed(command: list[str]) -> dict[str, Any]:
    """The one object that a command prints."""
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    found: dict[str, Any] = yaml.safe_load(text)
    return found
