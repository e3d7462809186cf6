"""What the README of k8s/ tells a newcomer to do, done on a real cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from deployed import K8S, STORE, Cluster, complete, namespace_for, overlay, ready

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with namespace_for("manifests") as cluster:
        cluster.apply(overlay("overlays/minimal", cluster.namespace))
        yield cluster


def can(cluster: Cluster, account: str, *what: str) -> bool:
    who = f"system:serviceaccount:{cluster.namespace}:{account}"
    answer = cluster.kubectl("auth", "can-i", *what, f"--as={who}", check=False).stdout
    return answer.strip() == "yes"


def test_before_there_is_a_secret_pods_wait_and_say_why(cluster: Cluster) -> None:
    def reason() -> str:
        (pod,) = cluster.pods("app.kubernetes.io/component=bucket")
        (state,) = pod.get("status", {}).get("containerStatuses") or [{"state": {}}]
        return str(state["state"].get("waiting", {}).get("reason"))

    cluster.wait(lambda: reason() == "CreateContainerConfigError", 60, "bucket waits for the keys")


def test_with_the_secret_everything_comes_up_by_itself(cluster: Cluster) -> None:
    cluster.create_secret()
    if not STORE:
        cluster.wait(lambda: ready(cluster, "statefulset", "minio"), 300, "the store is ready")
    cluster.wait(lambda: complete(cluster, "percmae-bucket"), 120, "the bucket is made")
    assert "is there" in cluster.kubectl("logs", "job/percmae-bucket").stdout
    cluster.wait(lambda: ready(cluster, "deployment", "tensorboard"), 120, "TensorBoard is ready")


def test_applying_again_changes_nothing(cluster: Cluster) -> None:
    said = cluster.apply(overlay("overlays/minimal", cluster.namespace))
    assert said
    assert [line for line in said if not line.endswith(" unchanged")] == []


def test_the_launcher_may_launch_and_nothing_else(cluster: Cluster) -> None:
    for verb in ("create", "get", "list", "watch", "delete"):
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


def test_the_server_takes_every_job_and_part(cluster: Cluster) -> None:
    for path in sorted(K8S.rglob("jobs/*.yaml")):
        objects = overlay(str(path.relative_to(K8S)), cluster.namespace)
        (line,) = cluster.apply(objects, "--dry-run=server")
        assert line.endswith("created (server dry run)"), line
    for path in ("base", "overlays/gpu"):
        lines = cluster.apply(overlay(path, cluster.namespace), "--dry-run=server")
        assert len(lines) > 10


def test_a_newcomer_trains_on_the_sample_under_quota_and_limits(cluster: Cluster) -> None:
    cluster.apply(overlay("base/limits", cluster.namespace))
    cluster.apply(overlay("jobs/sample.yaml", cluster.namespace))
    cluster.wait(lambda: complete(cluster, "sample"), 300, "the sample is ingested")

    cluster.apply(overlay("jobs/pretrain-mae.yaml", cluster.namespace))

    def condition() -> str:
        found = cluster.get("pytorchjob", "pretrain-mae").get("status", {}).get("conditions", [])
        states = [each["type"] for each in found if each["status"] == "True"]
        assert "Failed" not in states, cluster.kubectl("logs", "pretrain-mae-master-0").stdout
        return states[-1] if states else ""

    cluster.wait(lambda: condition() == "Succeeded", 900, "pretrain-mae is done")

    # And TensorBoard, which follows the store, knows the run.
    service = f"/api/v1/namespaces/{cluster.namespace}/services/tensorboard:6006/proxy/data/runs"

    def runs() -> list[str]:
        answer = cluster.kubectl("get", "--raw", service, check=False).stdout
        return list(json.loads(answer)) if answer else []

    cluster.wait(lambda: runs() == ["sample_mae"], 90, "TensorBoard shows the run")
