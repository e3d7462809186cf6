"""A namespace of a real cluster with the service accounts of k8s/base.

Runs against the cluster that KUBECONFIG names, in namespaces of its own, when it is asked to
(``make test-cluster`` sets PERCMAE_TEST_CLUSTER): nobody's cluster is touched by ``make test``.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kube import ROOT, Kube

ASKED = "PERCMAE_TEST_CLUSTER"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if not os.environ.get(ASKED):
                item.add_marker(pytest.mark.skip(reason=f"{ASKED} is not set: make test-cluster"))


@pytest.fixture(scope="session")
def kube() -> Iterator[Kube]:
    """A new namespace, removed at the end."""
    assert os.environ.get("KUBECONFIG"), "set KUBECONFIG to the cluster to test on"
    name = f"percmae-test-{secrets.token_hex(3)}"
    made = Kube(name)
    subprocess.run(["kubectl", "create", "namespace", name], check=True, capture_output=True)
    try:
        for file in ("accounts.yaml", "role.yaml"):
            text = (ROOT / "k8s" / "base" / "rights" / file).read_text()
            made.apply(
                *yaml.safe_load_all(text.replace("namespace: percmae", f"namespace: {name}"))
            )
        made(
            *[
                "create",
                "configmap",
                "percmae-store",
                "--from-literal=AWS_ENDPOINT_URL=http://store:9000",
            ]
        )
        keys = "--from-literal=accesskey=test --from-literal=secretkey=test-secret"
        made(*f"create secret generic percmae-store {keys}".split())
        yield made
    finally:
        subprocess.run(["kubectl", "delete", "namespace", name, "--wait=false"], check=False)


@pytest.fixture(scope="session")
def launcher_config(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig that acts as the launcher's service account, with just its rights."""
    return kube.kubeconfig("percmae-launcher", tmp_path_factory.mktemp("kubeconfig"))
