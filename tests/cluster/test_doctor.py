"""``percmae doctor --cluster`` on a real cluster: in good order, and with one thing broken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from deployed import IMAGE, Deployed, namespace_for, overlay

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Deployed]:
    with namespace_for("doctor") as cluster:
        cluster.with_store(secretkey="good-keys-for-the-doctor")
        yield cluster


def doctor(cluster: Deployed, *arguments: str) -> tuple[int, list[str]]:
    """Its exit code and the lines of what is missing."""
    command = [sys.executable, "-m", "percmae", "doctor", "--cluster", "--timeout", "180"]
    command += ["--namespace", cluster.namespace, f"image={IMAGE}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    missing = [line[8:] for line in done.stdout.splitlines() if line.startswith("MISSING")]
    left = cluster("get", "pods,pytorchjobs", "-l", "app.kubernetes.io/component=doctor")
    deleted = [line for line in left.splitlines() if "Terminating" not in line]
    assert not [line for line in deleted if "doctor" in line], "what was tried is cleared away"
    return done.returncode, missing


def test_in_good_order(cluster: Deployed) -> None:
    assert doctor(cluster) == (0, [])


def test_an_image_that_is_not_there(cluster: Deployed) -> None:
    image = "registry.invalid/percmae-train:9"
    code, missing = doctor(cluster, f"image={image}")
    assert code == 1
    (line,) = missing
    assert line.startswith(f"image {image}: ImagePullBackOff")


def test_a_right_that_is_missing(cluster: Deployed) -> None:
    cluster("delete", "rolebinding", "percmae-launcher")
    code, missing = doctor(cluster)
    assert code == 1
    assert len(missing) == 5, "one line a resource"
    every = "may not create, get, list, watch, patch, delete"
    assert missing[0].startswith(f"percmae-launcher: pytorchjobs.kubeflow.org: {every}")
    command = missing[0].partition("  → ")[2]
    assert f"namespace: {cluster.namespace}" in command
    cluster.apply(*overlay("base/rights", cluster.namespace))
    assert doctor(cluster) == (0, [])


def test_keys_that_the_store_does_not_know(cluster: Deployed) -> None:
    cluster("patch", "secret", "percmae-store", "-p", '{"stringData":{"secretkey":"bad"}}')
    code, missing = doctor(cluster)
    assert code == 1
    (line,) = missing
    assert line.startswith("bucket s3://percmae: ")
    assert "secret key" in line


def test_no_secret(cluster: Deployed) -> None:
    cluster("delete", "secret", "percmae-store")
    code, missing = doctor(cluster)
    assert code == 1
    fix = f"kubectl -n {cluster.namespace} create secret generic percmae-store"
    assert missing[0].startswith(f"Secret percmae-store: none  → {fix}")
    assert missing[1].startswith("a pod: CreateContainerConfigError")


def test_a_store_that_is_not_there(cluster: Deployed) -> None:
    cluster.create_secret(secretkey="good-keys-for-the-doctor")
    patch = '{"data":{"AWS_ENDPOINT_URL":"http://nothing-here:9000"}}'
    cluster("patch", "configmap", "percmae-store", "-p", patch)
    code, missing = doctor(cluster)
    assert code == 1
    (line,) = missing
    assert line.startswith("bucket s3://percmae: ")
    assert "nothing-here" in line


def test_what_a_namespace_without_anything_lacks(cluster: Deployed) -> None:
    command = [sys.executable, "-m", "percmae", "doctor", "--cluster", "--namespace", "no-such"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MISSING namespace no-such: none  → kubectl create namespace no-such" in done.stdout
