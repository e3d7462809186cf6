"""A namespace with a quota takes the pods of all steps, with what KFP puts beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed import Deployed, overlay
from kube import TOY

from percmae.plain import documents
from pipelines.which import compile_pipeline

QUOTA = {
    **{f"requests.{name}": "200Gi" for name in ("memory", "ephemeral-storage")},
    **{f"limits.{name}": "400Gi" for name in ("memory", "ephemeral-storage")},
    "requests.cpu": "64",
}


def step_pod(name: str, resources: dict[str, Any]) -> dict[str, Any]:
    """As Argo makes it: the step in ``main``, and two containers of which nobody says the size."""
    secure = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"image": TOY, "command": ["true"], "securityContext": secure}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "initContainers": [{"name": "init", **container}],
            "containers": [
                {"name": "wait", **container},
                {"name": "main", "resources": resources, **container},
            ],
        },
    }


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The resources of each step, as KFP's driver makes them of the compiled pipeline."""
    file = tmp_path_factory.mktemp("compiled") / "train.yaml"
    compile_pipeline("train", str(file))
    spec, _ = documents(file.read_text())
    found = {}
    for name, executor in spec["deploymentSpec"]["executors"].items():
        sizes = executor["container"]["resources"]
        found[name] = {
            kind: {
                "cpu": sizes[f"resourceCpu{ending}"],
                "memory": sizes[f"resourceMemory{ending}"],
            }
            for kind, ending in (("requests", "Request"), ("limits", "Limit"))
        }
    return found


def test_every_step_is_taken_under_a_quota(
    kube: Deployed, steps: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "all", "namespace": kube.namespace},
        "spec": {"hard": QUOTA},
    }
    kube.apply(quota)
    kube.wait(lambda: "hard" in kube.get("resourcequota", "all").get("status", {}), 60, "a quota")
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump(step_pod("bare", steps["exec-check"])))
    refused = kube.kubectl("create", "--dry-run=server", "-f", str(file))
    assert "must specify" in refused.stderr
    # Here base/limits is the component alone: the quota is the test's.
    (limits,) = [o for o in overlay("base/limits", kube.namespace) if o["kind"] == "LimitRange"]
    kube.apply(limits)
    for name, resources in steps.items():
        kube.dry_run(step_pod(name, resources))
    file.write_text(yaml.safe_dump(step_pod("unsized", {})))
    assert kube.kubectl("create", "--dry-run=server", "-f", str(file)).returncode == 0
