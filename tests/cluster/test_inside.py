"""Launchers inside the cluster: a step of a pipeline, and what a schedule starts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from deployed import Deployed
from kube import TOY, toy_settings, wait
from trainings import PIPELINE, SCHEDULE, jobs, printed

OWNED = "app.kubernetes.io/component=pretrain,percmae.dev/run=owned_mae"


def launching(toy: str) -> dict[str, Any]:
    """The spec of a pod that launches a toy, as a step of a pipeline does."""
    work = ["pretrain", "--data", "s3://none/m.json", "--to", "s3://none/runs", "--tag", "owned"]
    command = ["tini", "--", "percmae", "submit", *jobs(toy_settings(toy)), *work]
    return {
        "serviceAccountName": "percmae-launcher",
        "restartPolicy": "Never",
        "containers": [{"name": "main", "image": PIPELINE, "command": command}],
    }


def launching_job(toy: str, retries: int) -> dict[str, Any]:
    """What makes such a pod, and another in its place; for a pipeline it is Argo's Workflow."""
    spec = {"backoffLimit": retries, "template": {"spec": launching(toy)}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "step"}, "spec": spec}


def training(kube: Deployed, said: Callable[[], str]) -> dict[str, Any]:
    """The pod that trains, once it runs."""

    def running() -> list[dict[str, Any]]:
        pods = kube.get("pods", selector=OWNED)
        return [pod for pod in pods if pod["status"]["phase"] == "Running"]

    wait(running, 180, said)
    return running()[0]


def owners(kube: Deployed) -> list[str]:
    """Of the one job that is there."""
    (job,) = kube.get("pytorchjob", selector=OWNED)
    return [f"{owner['kind']} {owner['name']}" for owner in job["metadata"]["ownerReferences"]]


def nothing_is_left(kube: Deployed) -> None:
    """No job, and no pod of it."""
    wait(lambda: not kube.get("pytorchjob", selector=OWNED), 180)
    wait(lambda: not kube.get("pods", selector=OWNED), 180)


def test_a_launcher_in_a_bare_pod_that_is_killed_takes_its_job_along(kube: Deployed) -> None:
    """No other pod comes in its place."""
    metadata = {"name": "step"}
    kube.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": launching("lines=3000")}
    )
    training(kube, lambda: kube("logs", "step", check=False))
    assert owners(kube) == ["Pod step"]
    kube("delete", "pod", "step", "--grace-period=0", "--force")
    nothing_is_left(kube)


@pytest.mark.parametrize("how", [(), ("--grace-period=0", "--force")])
def test_a_training_outlives_its_launchers_pod(kube: Deployed, how: tuple[str, ...]) -> None:
    """Drained, deleted or killed: the next launcher finds the job and follows it to its end."""
    kube.apply(launching_job("lines=3 hold=1", retries=3))
    first = training(kube, lambda: kube("logs", "job/step", check=False))
    assert owners(kube) == ["Job step"]
    step = "batch.kubernetes.io/job-name=step"
    (launcher,) = kube.get("pods", selector=step)
    kube("delete", "pod", launcher["metadata"]["name"], *how)

    def next_launcher() -> list[str]:
        pods = [pod["metadata"]["name"] for pod in kube.get("pods", selector=step)]
        return [name for name in pods if name != launcher["metadata"]["name"]]

    wait(next_launcher)
    (name,) = next_launcher()
    wait(lambda: "is under way: following it" in kube("logs", name, check=False), 180)
    kube.let_go(first["metadata"]["name"])
    # (The Job counts the launcher that was deleted as a failed one.)
    wait(
        lambda: kube.get("job", "step")["status"].get("succeeded"),
        180,
        lambda: kube("logs", name, check=False),
    )
    (last,) = kube.get("pods", selector=OWNED)
    assert last["metadata"]["uid"] == first["metadata"]["uid"], "one pod has trained, undisturbed"


def test_a_pipeline_that_is_terminated_leaves_no_job(kube: Deployed) -> None:
    """Argo tells the container to stop, and leaves its pod."""
    kube.apply(launching_job("lines=3 hold=1", retries=0))
    training(kube, lambda: kube("logs", "job/step", check=False))
    kube("exec", "job/step", "--", "python", "-c", "import os; os.kill(1, 15)")
    nothing_is_left(kube)


def test_who_owns_a_launcher_takes_the_job_along(kube: Deployed) -> None:
    kube.apply(launching_job("lines=3 hold=1", retries=0))
    training(kube, lambda: kube("logs", "job/step", check=False))
    kube("delete", "job", "step")
    nothing_is_left(kube)


def test_a_schedule_fires_by_the_clock_of_its_time_zone(kube: Deployed) -> None:
    """Kathmandu's clock is 5:45 ahead: in UTC this hour and minute are far off."""
    zone = "Asia/Kathmandu"
    # At least ten seconds ahead, so that the CronJob is there before.
    then = datetime.now(ZoneInfo(zone)) + timedelta(seconds=70)
    command = [*SCHEDULE, "--cron", f"{then.minute} {then.hour} * * *", "--time-zone", zone]
    command += ["--name", "soon", "--run", "run --launcher pytorchjob --store s3://percmae"]
    command += ["--namespace", kube.namespace, *jobs(toy_settings("lines=3"))]
    kube.apply(printed(command))
    assert kube.get("cronjob", "soon")["spec"]["timeZone"] == zone

    def fired() -> list[Any]:
        return list(kube.get("job", selector="app.kubernetes.io/instance=soon"))

    wait(fired, 200, lambda: kube.get("cronjob", "soon")["status"])
    (job,) = fired()
    wait(lambda: kube.complete(job["metadata"]["name"]), 120)
    (pod,) = kube.pods("soon")
    assert pod["spec"]["containers"][0]["image"] == TOY
    assert pod["spec"]["serviceAccountName"] == "percmae-launcher"
