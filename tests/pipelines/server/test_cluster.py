"""What the cluster behind KFP says of a run, where it can be asked: its pods as Argo makes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doctor.kube_server import KubeServer, secret
from kfp_server import Server

from percmae.errors import UserError
from percmae.jobs.names import Object
from pipelines.__main__ import main
from pipelines.pod import PodSettings
from pipelines.server import submit
from pipelines.server.api import Connection
from pipelines.server.cluster import Cluster
from pipelines.server.package import Package, compiled

pytestmark = pytest.mark.usefixtures("alone")

IMAGE = "registry.example/percmae-pipeline@sha256:" + "1" * 64
NS = "/api/v1/namespaces/kubeflow"
PODS, WORKFLOWS = f"{NS}/pods", "/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows"
LOG = """\
I1126 12:00:00.000000 1 launcher_v2.go:200] input parameters
t_mae: step 100
percmae: error: pod toy-master-0 exited with 2: no such archive
percmae: error: PyTorchJob toy failed: pod toy-master-0 exited with 2: no such archive
I1126 12:00:01.000000 1 launcher_v2.go:300] publish success.
F1126 12:00:01.000000 1 main.go:60] failed to execute component: exit status 2
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    server = KubeServer()
    server.objects = {
        f"{NS}/secrets/mlpipeline-minio-artifact": secret(accesskey="a", secretkey="b"),
        f"{NS}/configmaps/percmae-store": {},
        PODS: {"items": [], "metadata": {}},
        WORKFLOWS: {"items": [{"spec": {}}], "metadata": {}},
    }
    with server.running():
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        yield server


@pytest.fixture
def cluster(server: KubeServer) -> Cluster:
    return Cluster(Connection(port_forward=True), package())


def package() -> Package:
    return compiled(IMAGE, PodSettings())[1]


def pod(node: str, **status: Any) -> Object:
    name = f"percmae-train-x-system-container-impl-{abs(hash(node))}"
    notes = {"workflows.argoproj.io/node-name": f"percmae-train-x.root.{node}"}
    return {"metadata": {"name": name, "annotations": notes}, "status": status}


LOOP = "exit-handler-1.for-loop-2.iteration-item(0:0)"


def test_what_failed_steps_said_last(server: KubeServer, cluster: Cluster) -> None:
    failed = pod(f"{LOOP}.pretrain.executor(0)", phase="Failed")
    done = pod("exit-handler-1.ingest.executor", phase="Succeeded")
    server.objects[PODS]["items"] = [failed, done]
    server.logs = LOG
    last = "PyTorchJob toy failed: pod toy-master-0 exited with 2: no such archive"
    assert cluster.reasons("run") == {"Pretrain": last}
    server.logs = "Traceback (most recent call last):\nKeyError: 'odd'\n\n"
    assert cluster.reasons("run") == {"Pretrain": "KeyError: 'odd'"}


def test_a_step_that_never_started_says_why(server: KubeServer, cluster: Cluster) -> None:
    late = "Pod was active on the node longer than the specified deadline"
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "keys" not found'}
    status = {"containerStatuses": [{"name": "main", "state": {"waiting": waiting}}]}
    check = pod("exit-handler-1.check.executor", phase="Pending", **status)
    server.objects[PODS]["items"] = [check]
    reason = 'CreateContainerConfigError: secret "keys" not found'
    assert cluster.waiting("run") == [f"Check the parameters: {reason}"]
    # As Kubernetes 1.35 leaves it.
    gone = {"exitCode": 137, "reason": "ContainerStatusUnknown"}
    check["status"]["containerStatuses"][0]["state"] = {"terminated": gone}
    check["status"] |= {"phase": "Failed", "reason": "DeadlineExceeded", "message": late}
    found = {"Check the parameters": f"{reason}; DeadlineExceeded: {late}"}
    assert cluster.reasons("run") == found


def test_pods_without_room_and_pods_that_are_starting(server: KubeServer, cluster: Cluster) -> None:
    message = "0/1 nodes are available: 1 Insufficient cpu."
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    conditions = [{**unscheduled, "message": message}]
    server.objects[PODS]["items"] = [
        pod("exit-handler-1.ingest-driver", phase="Pending", conditions=conditions),
        pod("exit-handler-1.check.executor", phase="Pending"),
    ]
    assert cluster.waiting("run") == [f"Ingest: Unschedulable: {message}"]


def test_a_workflow_that_was_told_to_end(server: KubeServer, cluster: Cluster) -> None:
    assert cluster.terminated("run") is False
    server.objects[WORKFLOWS]["items"][0]["spec"]["activeDeadlineSeconds"] = 0
    assert cluster.terminated("run") is True


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (
            "secrets/mlpipeline-minio-artifact",
            "Secret mlpipeline-minio-artifact is not in",
        ),
        ("configmaps/percmae-store", "ConfigMap percmae-store is not in namespace kubeflow"),
    ],
)
def test_what_the_steps_would_wait_for(
    server: KubeServer, cluster: Cluster, gone: str, message: str
) -> None:
    cluster.check(PodSettings())
    del server.objects[f"{NS}/{gone}"]
    with pytest.raises(UserError, match=message):
        cluster.check(PodSettings())


def test_what_may_not_be_looked_at_is_said_once(
    server: KubeServer, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    server.forbidden = [NS, "/apis"]
    cluster.check(PodSettings())
    for _ in range(2):
        assert cluster.waiting("run") == []
        assert cluster.reasons("run") == {}
        assert cluster.terminated("run") is False
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(set(said)) == 4  # secret, ConfigMap, pods, workflows
    assert all("the cluster behind KFP does not say why" in line for line in said)


def test_no_cluster_is_asked_where_only_a_host_is_named(server: KubeServer) -> None:
    elsewhere = Cluster(Connection(host="https://kfp.example"), package())
    assert not elsewhere.reachable
    elsewhere.check(PodSettings("absent"))
    assert elsewhere.reasons("run") == {}


def test_submit_waits_and_says_why(
    kfp: Server,
    server: KubeServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From inside a cluster, where KFP is found by itself; here by another address."""
    monkeypatch.setattr(submit, "_POLL", 0.01)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr("pipelines.server.api._host", lambda where: kfp.url)
    assert main(["submit", "--image", IMAGE, "--store-secret", "absent"]) == 2
    assert "Secret absent is not in namespace kubeflow" in capsys.readouterr().err
    assert not kfp.versions
    tasks = [{"display_name": "pretrain", "state": "FAILED"}]
    end = {"state": "FAILED", "run_details": {"task_details": tasks}}
    kfp.script = [{"state": "RUNNING"}, end]
    server.objects[PODS]["items"] = [pod(f"{LOOP}.pretrain.executor", phase="Failed")]
    server.logs = LOG
    assert main(["submit", "--image", IMAGE, "--wait"]) == 1
    (run_id,) = kfp.runs
    assert capsys.readouterr().err.splitlines()[-1] == (
        "percmae: error: run failed: Pretrain (PyTorchJob toy failed: pod toy-master-0 exited "
        f"with 2: no such archive); {kfp.url}/#/runs/details/{run_id}"
    )
