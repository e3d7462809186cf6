"""The manifests in a namespace of a real cluster, as `kubectl apply -k` would put them there.

Only names differ from the files: the namespace, so that a test leaves no trace elsewhere, and the
images. Settings, by environment:

    PERCMAE_TEST_PREFIX        what their namespaces' names begin with (default percmae-test)
    PERCMAE_TEST_TRAIN_IMAGE   our train image as nodes have it (default percmae-train:<version>)
    PERCMAE_TEST_STORE_IMAGE   an image with SeaweedFS's `weed`, which then serves behind the
                               Service minio; for clusters that cannot pull MinIO's
    PERCMAE_TEST_STORE         another S3 server instead, such as http://host:8333, with
                               AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; nothing is deployed
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import yaml
from kube import ROOT, Kube, Object, weed

from percmae import __version__

K8S = ROOT / "k8s"
OURS = f"percmae-train:{__version__}"
PREFIX = os.environ.get("PERCMAE_TEST_PREFIX", "percmae-test")
IMAGE = os.environ.get("PERCMAE_TEST_TRAIN_IMAGE", OURS)
STORE_IMAGE = os.environ.get("PERCMAE_TEST_STORE_IMAGE")
STORE = os.environ.get("PERCMAE_TEST_STORE")


class Deployed(Kube):
    """A namespace with our manifests in it."""

    def put(self, objects: list[Object], *options: str) -> list[str]:
        """Apply objects; what kubectl says of each."""
        return self.apply(*objects, options=options)

    def create_secret(self, secretkey: str | None = None) -> None:
        """As k8s/base/secret.example.yaml says; the keys of the other store where there is one."""
        keys = ["percmae", secretkey or secrets.token_hex(20)]
        if STORE:
            keys = [os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]]
        given = [f"--from-literal=accesskey={keys[0]}", f"--from-literal=secretkey={keys[1]}"]
        self("create", "secret", "generic", "percmae-store", *given)

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
    folder = K8S / path
    if folder.is_dir():
        command = ["kubectl", "kustomize", str(folder)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        text = folder.read_text()
    text = re.sub(r"^(\s*namespace:) percmae$", rf"\1 {namespace}", text, flags=re.MULTILINE)
    text = text.replace(f"image: {OURS}", f"image: {IMAGE}")
    objects = [made for made in yaml.safe_load_all(text) if made]
    for made in objects:
        if made["kind"] == "Namespace":
            made["metadata"]["name"] = namespace
    return [_with_our_store(made) for made in objects if not (STORE and _is_store(made))]


def _is_store(made: Object) -> bool:
    return made["metadata"]["name"] == "minio"


def _with_our_store(made: Object) -> Object:
    if STORE and made["kind"] == "ConfigMap":
        made["data"]["AWS_ENDPOINT_URL"] = STORE
    if STORE_IMAGE and made["kind"] == "StatefulSet":
        (container,) = made["spec"]["template"]["spec"]["containers"]
        container["image"] = STORE_IMAGE
        # The same keys, volume, ports and confinement; the console's port stays silent.
        keys = (
            'export AWS_ACCESS_KEY_ID="$MINIO_ROOT_USER"'
            ' AWS_SECRET_ACCESS_KEY="$MINIO_ROOT_PASSWORD"; exec '
        )
        container["command"] = ["sh", "-c", keys + shlex.join(weed("/data", 9000))]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            times = {k: v for k, v in container[probe].items() if k != "httpGet"}
            container[probe] = {"tcpSocket": {"port": "s3"}, **times}
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
