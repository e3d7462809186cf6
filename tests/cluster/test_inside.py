"""Launchers inside the cluster: a step of a pipeline, and what a schedule starts."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from deployed import Deployed
from kube import TOY, toy_settings, wait
from trainings import PIPELINE, SCHEDULE, jobs, printed


def test_a_launcher_in_the_cluster_that_is_killed_takes_its_job_along(kube: Deployed) -> None:
    """As a step of a pipeline: its pod owns the job, and is removed without a word."""
    settings = toy_settings("lines=3000")
    work = ["pretrain", "--data", "s3://none/m.json", "--to", "s3://none/runs", "--tag", "owned"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "step"},
        "spec": {
            "serviceAccountName": "percmae-launcher",
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "main",
                    "image": PIPELINE,
                    "command": ["tini", "--", "percmae", "submit", *jobs(settings), *work],
                }
            ],
        },
    }
    kube.apply(pod)
    owned = "app.kubernetes.io/component=pretrain,percmae.dev/run=owned_mae"
    wait(
        lambda: any(p["status"]["phase"] == "Running" for p in kube.get("pods", selector=owned)),
        180,
        lambda: kube("logs", "step", check=False),
    )
    (job,) = kube.get("pytorchjob", selector=owned)
    assert [owner["name"] for owner in job["metadata"]["ownerReferences"]] == ["step"]
    kube("delete", "pod", "step", "--grace-period=0", "--force")
    wait(lambda: not kube.get("pytorchjob", selector=owned), 180)
    wait(lambda: not kube.get("pods", selector=owned), 180)


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
