"""Launchers inside the cluster: a step's pod, and the pipeline on a schedule."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from deployed import Deployed
from kube import ROOT, TOY, toy_settings, wait
from trainings import PIPELINE, SMALL, TRAIN, Laptop, jobs, laptop, printed

from percmae.data.sample import make_sample_archives
from percmae.storage import StorePath
from pipelines.local import ARCHIVES

sys.path.insert(0, str(ROOT / "tests" / "pipelines"))
from small import TINY, write_images

pytestmark = pytest.mark.slow
SCHEDULE = [sys.executable, "-m", "pipelines", "schedule", "--cronjob"]


@pytest.fixture
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    with laptop("schedule", tmp_path_factory.mktemp("home")) as here:
        yield here


def test_the_scheduled_dag_runs_whole_inside_the_cluster(here: Laptop, tmp_path: Path) -> None:
    """What a CronJob starts, started now: its pod runs the DAG and launches every training."""
    cluster = here.cluster
    images = write_images(tmp_path, "dark", "grey", "light")
    samples = tmp_path / "archives"
    make_sample_archives(samples, str(images))
    for file in ARCHIVES:
        StorePath(f"s3://percmae/archives/{file}", here.store).write_file(samples / file)
    run = ["run", "--launcher", "pytorchjob", "--store", "s3://percmae/scheduled", "--gpus", "0"]
    run += ["--dataset", "small", "--archives", "s3://percmae/archives", "--recipe", "demo"]
    run += ["--seeds", "0", "--train-image", TRAIN, "--to", "/tmp/runs", "--tag", "cron"]
    run += [*jobs(SMALL), *TINY]
    command = [*SCHEDULE, "--cron", "0 2 * * 0", "--name", "weekly", "--run", shlex.join(run)]
    command += ["--image", PIPELINE, "--namespace", cluster.namespace]
    cluster.apply(printed([*command, *jobs(["cpu=100m", "backoff_limit=0"])]))
    cluster("create", "job", "weekly-now", "--from=cronjob/weekly")

    def status() -> dict[str, Any]:
        return dict(cluster.get("job", "weekly-now").get("status", {}))

    def said() -> str:
        return cluster("logs", "job/weekly-now", check=False)

    wait(lambda: status().get("succeeded") or status().get("failed"), 1200, said)
    assert status().get("succeeded"), said()
    folder = "scheduled/runs/seed-0"
    for name in ("cron_mae", "cron_mae_probe", "cron_mae_probe_untrained", "cron_mae_finetune"):
        assert here.read_run(f"{folder}/{name}")["status"] == "complete"
        assert StorePath(f"s3://percmae/{folder}/{name}/evaluation.json", here.store).exists()
    assert StorePath("s3://percmae/scheduled/reports/cron_mae/report.html", here.store).exists()
    launched = cluster.get("pytorchjob", selector="app.kubernetes.io/part-of=percmae")
    mine = [job for job in launched if "cron" in job["metadata"]["name"]]
    assert len(mine) == 4
    pods = {owner["name"] for job in mine for owner in job["metadata"]["ownerReferences"]}
    assert len(pods) == 1, "all are owned by the pod that runs the DAG"


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
