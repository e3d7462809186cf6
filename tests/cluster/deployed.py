"""The manifests in a namespace of a real cluster, as `kubectl apply -k` would put them there.

Only names differ from the files: the namespace, so that a test leaves no trace elsewhere, and the
images. Settings, by environment:

    PERCMAE_TEST_PREFIX        what their namespaces' names begin with (default percmae-test)
    PERCMAE_TEST_TRAIN_IMAGE   our train image as nodes have it (default percmae-train:<version>)
    PERCMAE_TEST_STORE_IMAGE   MinIO as nodes have it, if they cannot pull the manifests' own
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from kube import ROOT, Kube, Object

from percmae import __version__
from percmae.plain import documents

K8S = ROOT / "k8s"
OURS = f"percmae-train:{__version__}"
PREFIX = os.environ.get("PERCMAE_TEST_PREFIX", "percmae-test")
IMAGE = os.environ.get("PERCMAE_TEST_TRAIN_IMAGE", OURS)
STORE_IMAGE = os.environ.get("PERCMAE_TEST_STORE_IMAGE")


class Deployed(Kube):
    """A namespace with our manifests in it."""

    def create_secret(self, secretkey: str = "") -> None:
        """As k8s/base/secret.example.yaml says: of what reads and writes."""
        self._create_keys("percmae-store", "percmae", secretkey)

    def create_root_secret(self) -> None:
        """As k8s/components/store/minio/secret.example.yaml says: of MinIO's root user."""
        self._create_keys("percmae-store-root", "root")

    def _create_keys(self, name: str, accesskey: str, secretkey: str = "") -> None:
        keys = {"accesskey": accesskey, "secretkey": secretkey or secrets.token_hex(20)}
        given = [f"--from-literal={name}={value}" for name, value in keys.items()]
        self("create", "secret", "generic", name, *given)

    def with_store(self, secretkey: str = "") -> None:
        """The store of overlays/minimal with its bucket, ready, and nothing that shows runs."""
        # The keys first: a pod that waits for them looks again after ten seconds.
        self.apply(*overlay("base/namespace", self.namespace))
        self.create_secret(secretkey)
        self.create_root_secret()
        objects = overlay("overlays/minimal", self.namespace)
        self.apply(*(each for each in objects if each["metadata"]["name"] != "tensorboard"))
        self.wait_for_store()

    def wait_for_store(self) -> None:
        self.wait(lambda: self.ready("statefulset", "minio"), 300, "the store is ready")
        self.wait(lambda: self.complete("percmae-bucket"), 300, "the bucket is made")

    def wait(self, what: Callable[[], bool], seconds: float, until: str) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                pods = self("get", "pods", "-o", "wide")
                events = self("get", "events", "--sort-by=.lastTimestamp")
                pytest.fail(f"{until}: not within {seconds:.0f} s\n{pods}\n{events[-3000:]}")
            time.sleep(0.5)

    def ready(self, kind: str, name: str) -> bool:
        """Whether all of the one pod is ready."""
        status = self.get(kind, name).get("status", {})
        return bool(status.get("readyReplicas", 0) == status.get("replicas", 0) == 1)

    def complete(self, job: str) -> bool:
        """Whether a plain job has done its work; a test ends where it has failed."""
        status = self.get("job", job).get("status", {})
        assert not status.get("failed"), self("logs", f"job/{job}", check=False)
        return bool(status.get("succeeded") == 1)


def overlay(path: str, namespace: str) -> list[Object]:
    """The objects of a kustomization, or of a file of jobs, in that namespace."""
    text = _text(K8S / path).replace(f"image: {OURS}", f"image: {IMAGE}")
    return [_there(made, namespace) for made in documents(text) if made]


@cache
def _text(path: Path) -> str:
    if not path.is_dir():
        return path.read_text()
    command = ["kubectl", "kustomize", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def _there(made: Object, namespace: str) -> Object:
    metadata = made["metadata"]
    if made["kind"] == "Namespace":
        metadata["name"] = namespace
    elif "namespace" in metadata:
        metadata["namespace"] = namespace
    for subject in made.get("subjects", []):
        subject["namespace"] = namespace
    if STORE_IMAGE and made["kind"] == "StatefulSet":
        (container,) = made["spec"]["template"]["spec"]["containers"]
        container["image"] = STORE_IMAGE
    return made


@contextmanager
def namespace_for(name: str) -> Iterator[Deployed]:
    """A namespace of its own, removed with all in it."""
    assert os.environ.get("KUBECONFIG"), "set KUBECONFIG to the cluster to test on"
    made = Deployed(f"{PREFIX}-{name}-{secrets.token_hex(3)}")
    try:
        yield made
    finally:
        made("delete", "namespace", made.namespace, "--wait=false", check=False)
