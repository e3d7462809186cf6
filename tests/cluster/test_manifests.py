"""What docs/operators.md tells a newcomer to do on a bare cluster, done on a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from deployed import Deployed, namespace_for, overlay

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Deployed]:
    with namespace_for("manifests") as cluster:
        cluster.apply(*overlay("overlays/minimal", cluster.namespace))
        yield cluster


def can(cluster: Deployed, account: str, *what: str) -> bool:
    who = f"system:serviceaccount:{cluster.namespace}:{account}"
    answer = cluster("auth", "can-i", *what, f"--as={who}", check=False)
    return answer.strip() == "yes"


def test_before_there_is_a_secret_pods_wait_and_say_why(cluster: Deployed) -> None:
    def reason() -> str:
        (pod,) = cluster.get("pods", selector="app.kubernetes.io/component=bucket")
        # The first of its containers makes the user of the bucket.
        (state,) = pod.get("status", {}).get("initContainerStatuses") or [{"state": {}}]
        return str(state["state"].get("waiting", {}).get("reason"))

    cluster.wait(lambda: reason() == "CreateContainerConfigError", 180, "bucket waits for the keys")


def test_with_the_secret_everything_comes_up_by_itself(cluster: Deployed) -> None:
    cluster.create_secret()
    cluster.create_root_secret()
    cluster.wait_for_store()
    assert "is there" in cluster("logs", "job/percmae-bucket")
    cluster.wait(lambda: cluster.ready("deployment", "tensorboard"), 300, "TensorBoard is ready")


def test_applying_again_changes_nothing(cluster: Deployed) -> None:
    said = cluster.apply(*overlay("overlays/minimal", cluster.namespace))
    assert said
    assert [line for line in said if not line.endswith(" unchanged")] == []


def test_the_launcher_may_launch_and_nothing_else(cluster: Deployed) -> None:
    for verb in ("create", "get", "list", "watch", "patch", "delete"):
        assert can(cluster, "percmae-launcher", verb, "pytorchjobs.kubeflow.org")
        assert can(cluster, "percmae-launcher", verb, "jobs.batch")
        assert not can(cluster, "percmae-train", verb, "pytorchjobs.kubeflow.org")
    assert can(cluster, "percmae-launcher", "get", "pods", "--subresource=log")
    for verb, resource in (
        ("get", "secrets"),
        ("create", "pods"),
        ("update", "jobs.batch"),
        ("get", "configmaps"),
        ("create", "rolebindings.rbac.authorization.k8s.io"),
    ):
        assert not can(cluster, "percmae-launcher", verb, resource), (verb, resource)
    assert not can(cluster, "percmae-launcher", "list", "pods", "--all-namespaces")
    assert not can(cluster, "percmae-train", "list", "pods")


def test_a_newcomer_trains_on_the_sample_under_quota_and_limits(cluster: Deployed) -> None:
    cluster.apply(*overlay("base/limits", cluster.namespace))
    cluster.apply(*overlay("jobs/sample.yaml", cluster.namespace))
    cluster.wait(lambda: cluster.complete("sample"), 600, "the sample is ingested")

    (pretrain,) = overlay("jobs/pretrain-mae.yaml", cluster.namespace)
    master = pretrain["spec"]["pytorchReplicaSpecs"]["Master"]
    master["template"]["spec"]["containers"][0]["command"].append("optim.epochs=2")  # of twelve
    cluster.apply(pretrain)

    def condition() -> str:
        found = cluster.get("pytorchjob", "pretrain-mae").get("status", {}).get("conditions", [])
        states = [each["type"] for each in found if each["status"] == "True"]
        assert "Failed" not in states, cluster("logs", "pretrain-mae-master-0")
        return states[-1] if states else ""

    cluster.wait(lambda: condition() == "Succeeded", 900, "pretrain-mae is done")

    # And TensorBoard, which follows the store, knows the run.
    service = f"/api/v1/namespaces/{cluster.namespace}/services/tensorboard:6006/proxy/data/runs"

    def runs() -> list[str]:
        answer = cluster("get", "--raw", service, check=False)
        return list(json.loads(answer)) if answer else []

    cluster.wait(lambda: runs() == ["sample_mae"], 180, "TensorBoard shows the run")
