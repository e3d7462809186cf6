"""What ``percmae doctor --cluster`` tries: a suspended training and a pod, both cleared away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from jobs.validation import validate

from percmae.doctor.cluster import doctor_cluster

from .kube_server import PODS, RUNNING, TRAININGS, KubeServer, lines


def test_what_is_tried_is_valid_and_cleared_away(server: KubeServer) -> None:
    doctor_cluster(overrides=["image=registry.example.com/train:2", "tolerations=[{key: gpu}]"])
    (path, training), (_, pod) = server.posted
    assert path == TRAININGS
    for made in (training, pod):
        validate(made)
    assert training["spec"]["runPolicy"]["suspend"] is True
    spec = pod["spec"]
    assert spec["containers"][0]["image"] == "registry.example.com/train:2"
    assert spec["serviceAccountName"] == "percmae-train"
    assert spec["tolerations"] == [{"key": "gpu"}]
    assert spec["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] > 0
    names = [training["metadata"]["name"], pod["metadata"]["name"]]
    assert server.deleted == [f"{TRAININGS}/{names[0]}", f"{PODS}/{names[1]}"]
    assert not [path for path in server.objects if "doctor" in path]


def test_an_operator_that_does_not_answer(
    server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.statuses[TRAININGS] = [{}]
    assert doctor_cluster(timeout=0.2) is False
    (line,) = lines(capsys, "MISSING")
    assert line.startswith("operator: nobody took up a PyTorchJob within 0 s  → kubectl apply")


def test_a_webhook_that_is_down(server: KubeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.refused[TRAININGS] = (500, "failed calling webhook: connection refused")
    assert doctor_cluster() is False
    (line,) = lines(capsys, "MISSING")
    assert line.startswith("operator: a PyTorchJob is refused: failed calling webhook")


def waiting(reason: str, message: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"state": state}]}


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return {"phase": "Failed", "containerStatuses": [{"state": state}]}


IMAGE = "image percmae-train:0.1.0"
UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: insufficient memory"}
    ],
}
PODS_THAT_FAIL = {
    "no image": (waiting("ImagePullBackOff", "not found"), IMAGE, "ImagePullBackOff: not found"),
    "never": (waiting("ErrImageNeverPull", "absent"), IMAGE, "ErrImageNeverPull: absent"),
    "no secret": (
        waiting("CreateContainerConfigError", 'secret "percmae-store" not found'),
        "a pod",
        'CreateContainerConfigError: secret "percmae-store" not found',
    ),
    "no tini": (ended(128, "StartError", "no tini"), IMAGE, "does not start: no tini"),
    "too slow": (waiting("ErrImagePull", "timeout"), IMAGE, "not started within 0 s: ErrImagePull"),
    "no room": (UNSCHEDULABLE, "a pod", "not scheduled within 0 s: 0/1 nodes: insufficient"),
    "evicted": ({"phase": "Failed", "message": "no disk"}, "a pod", "no disk"),
    "store": (ended(1), "bucket s3://percmae", "the store at http://minio:9000 is away"),
    "hangs": (RUNNING, "bucket s3://percmae", "no answer within 0 s"),
}


@pytest.mark.parametrize("case", PODS_THAT_FAIL)
def test_pods_that_fail_say_why_and_are_deleted(
    case: str, server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    status, what, found = PODS_THAT_FAIL[case]
    server.statuses[TRAININGS] = [{"conditions": [{"type": "Suspended"}]}]
    server.statuses[PODS] = [status]
    server.logs = "some warning\npercmae: error: the store at http://minio:9000 is away\n"
    assert doctor_cluster(timeout=0.3) is False
    (line,) = lines(capsys, "MISSING")
    assert line.startswith(f"{what}: {found}"), line
    assert "  → " in line
    assert not [path for path in server.objects if path.startswith(f"{PODS}/")]


def test_an_absent_bucket_is_set_up_again(
    server: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.statuses[PODS] = [ended(2)]
    server.logs = "percmae: error: the bucket 'percmae' of s3://percmae/x does not exist in the st"
    assert doctor_cluster() is False
    (line,) = lines(capsys, "MISSING")
    assert "kubectl -n percmae delete job percmae-bucket --ignore-not-found; kubectl apply" in line


def test_a_pod_that_is_not_admitted(server: KubeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.refused[PODS] = (403, "exceeded quota: percmae, requested: pods=1")
    assert doctor_cluster() is False
    (line,) = lines(capsys, "MISSING")
    assert line.startswith("a pod: is refused: exceeded quota")


def test_being_told_to_stop_leaves_nothing(server: KubeServer) -> None:
    server.statuses[PODS] = [RUNNING]
    command = [sys.executable, "-m", "percmae", "doctor", "--cluster"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 20
    while not any(path == PODS for path, _ in server.posted):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=600) == 128 + 15
    assert not [path for path in server.objects if path.startswith(f"{PODS}/")]
