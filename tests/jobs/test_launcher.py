"""The launcher over a real connection: what it finds and leaves, what it says of how a job ends.

(What pods do is in tests/cluster: here a server says so.)
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from doctor.kube_server import NS, PODS, TRAININGS, KubeServer

from percmae.errors import Interrupted, UserError
from percmae.jobs import client, launcher
from percmae.jobs.client import Refused, Unreachable
from percmae.jobs.launcher import JobFailed, JobRefused, clean, launch, submit
from percmae.jobs.names import CLAIMS, Object
from percmae.jobs.settings import job_settings
from percmae.jobs.work import Work
from percmae.signals import Signals

WORK = Work("pretrain", ("pretrain",), "toy", "0" * 16, trains=True)
JOB = f"{TRAININGS}/{WORK.name}"
IMAGE = "registry.example.com/train@sha256:" + "0" * 64


class Cluster(KubeServer):
    """Takes each job once, and gives it a uid. uids: how many; pods: those that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.uids = 0
        self.pods: list[Object] = []

    def get(self, path: str) -> tuple[int, Object | str]:
        if path in (PODS, f"{NS}/events"):
            pods = self.pods if path == PODS else []
            return 200, {"items": pods, "metadata": {"resourceVersion": "1"}}
        if path == TRAININGS and not self.forbidden:
            below = (each for at, each in self.objects.items() if at.rpartition("/")[0] == path)
            return 200, {"items": list(below), "metadata": {}}
        return super().get(path)

    def post(self, path: str, body: Object) -> tuple[int, Object]:
        if f"{path}/{body['metadata']['name']}" in self.objects:
            return 409, {"message": "already exists"}
        self.uids += 1
        body["metadata"]["uid"] = f"uid-{self.uids}"
        return super().post(path, body)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(launcher, "INTERVAL", 0.01)
    monkeypatch.setattr(launcher, "PATIENCE", 0.05)
    monkeypatch.setattr(client, "_PAUSE", 0.01)
    with Cluster().running() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        yield server


def settings(**values: Any) -> Any:
    return job_settings(namespace="percmae", image=IMAGE, **values)


def ended(kind: str, message: str = "") -> Object:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    condition = {"type": kind, "status": "True", "message": message, "lastTransitionTime": now}
    return {"conditions": [condition]}


def pod(role: str, code: int) -> Object:
    """A pod that has ended with this code."""
    terminated = {"exitCode": code, "finishedAt": f"2026-01-01T00:00:0{code}Z"}
    status = {"name": "pytorch", "state": {"terminated": terminated}}
    name = f"{WORK.name}-{role}-0"
    metadata = {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
    spec = {"containers": [{"name": "pytorch"}]}
    phase = "Failed" if code else "Succeeded"
    return {
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": phase, "containerStatuses": [status]},
    }


def test_a_job_is_created_once_and_followed(
    server: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    server.statuses[TRAININGS] = [{}, ended("Succeeded")]
    launch(WORK, settings(), pipeline_run="run-a")
    ((path, job),) = server.posted
    assert (path, job["metadata"]["name"]) == (TRAININGS, WORK.name)
    assert f"{CLAIMS}run-a" in job["metadata"]["labels"]
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith(f": PyTorchJob {WORK.name} created in namespace percmae")
    assert said[-1].endswith(f": PyTorchJob {WORK.name} is done")
    assert server.deleted == []


def test_a_job_under_way_is_found_by_its_digest(
    server: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(WORK, settings(), pipeline_run="run-a") == WORK.name
    assert submit(WORK, settings(), pipeline_run="run-b") == WORK.name
    assert len(server.posted) == 1
    assert f"PyTorchJob {WORK.name} is under way: following it" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"48Gi there, 32Gi asked for.* kubectl delete pytorchjob"):
        submit(WORK, settings(memory="32Gi"))


def test_a_job_that_has_ended_is_begun_anew(
    server: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(WORK, settings())
    server.objects[JOB]["status"] = ended("Failed", "no")
    submit(WORK, settings(memory="32Gi"))
    assert server.deleted == [JOB]
    assert server.objects[JOB]["metadata"]["uid"] == "uid-2"
    assert "ended badly (no) earlier" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "error"), [(1, JobFailed), (2, JobRefused)])
def test_the_pod_that_failed_first_says_why(
    server: Cluster, capsys: pytest.CaptureFixture[str], code: int, error: type[JobFailed]
) -> None:
    server.pods = [pod("master", 3), pod("worker", code)]
    server.statuses[TRAININGS] = [ended("Failed", "its pods failed")]
    server.logs = "one\npercmae: error: the store is away\n"
    with pytest.raises(error) as failure:
        launch(WORK, settings(nodes=2))
    worker = f"{WORK.name}-worker-0"
    assert str(failure.value) == (
        f"PyTorchJob {WORK.name} failed: pod {worker} exited with {code}: the store is away"
    )
    assert failure.value.exit_code == code
    said = capsys.readouterr().err
    assert said.count("last lines of pod") == 1, "the first pod's log has been shown"
    assert f"last lines of pod {worker}:\n  one\n" in said


def test_a_server_that_stays_away_leaves_the_job(server: Cluster) -> None:
    stopped = threading.Event()
    looked = server.get

    def get(path: str) -> tuple[int, Object | str]:
        if path == JOB and not stopped.is_set():
            stopped.set()
            threading.Thread(target=server.stop).start()
        return looked(path)

    server.get = get  # type: ignore[method-assign]
    with pytest.raises(Unreachable) as error:
        launch(WORK, settings())
    assert str(error.value).endswith(
        f"; PyTorchJob {WORK.name} goes on without this launcher, start it again to follow"
    )
    assert server.deleted == []


def test_what_may_not_be_done_says_who_may_not(server: Cluster) -> None:
    server.refused[TRAININGS] = (403, 'User "me" cannot create resource "pytorchjobs"')
    with pytest.raises(Refused, match=r"cannot create .*; `percmae doctor --cluster` says"):
        launch(WORK, settings())


def test_a_definition_that_does_not_know_a_field_is_told(server: Cluster) -> None:
    """It would be dropped, and the job be another."""
    message = 'strict decoding error: unknown field "spec.runtimePatches"'
    server.refused[TRAININGS] = (400, message)
    with pytest.raises(UserError, match=r"PyTorchJob is an older one: .*runtimePatches.* 1\.9 or"):
        launch(WORK, settings())


def test_clean_removes_what_a_run_left_under_way(
    server: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(WORK, settings(), pipeline_run="run-a")
    done = deepcopy(server.objects[JOB])
    done["metadata"]["name"] += "-done"
    done["status"] = ended("Succeeded")
    server.objects[f"{JOB}-done"] = done
    assert clean("run-a", "percmae") == [f"PyTorchJob {WORK.name}"]
    assert server.deleted == [JOB]
    assert clean("run-a", "percmae") == [], "a second time there is nothing to do"
    # A cluster without Kubeflow Trainer is none to complain about: the run has made none of its.
    assert "TrainJob" not in capsys.readouterr().err
    server.forbidden = [TRAININGS]
    assert clean("run-a", "percmae") == []
    assert "PyTorchJobs not looked for: " in capsys.readouterr().err


def test_told_to_stop_it_deletes_the_job_first(
    server: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops it may leave it less than a second."""
    monkeypatch.setattr(launcher, "INTERVAL", 60.0)
    asked: list[tuple[str, str]] = []
    send, wait = client.Client._send, Signals.wait

    def record(self: client.Client, method: str, path: str, *rest: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            asked.append((method, path))
        return send(self, method, path, *rest)

    def told(self: Signals, seconds: float) -> bool:
        if self.received is None:
            asked.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        return wait(self, seconds)

    monkeypatch.setattr(client.Client, "_send", record)
    monkeypatch.setattr(Signals, "wait", told)
    with pytest.raises(Interrupted, match="the same command goes on") as stopped:
        launch(WORK, settings())
    assert stopped.value.exit_code == 143
    assert asked[0] == ("DELETE", JOB)
    assert JOB not in server.objects
