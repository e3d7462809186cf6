"""The whole pipeline inside the cluster, as a schedule starts it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from kube import wait
from small_pipeline import TINY, write_images
from trainings import PIPELINE, SCHEDULE, SMALL, TRAIN, Laptop, jobs, printed

from percmae.data.archives import ARCHIVES
from percmae.data.sample import make_sample_archives
from percmae.storage import StorePath

pytestmark = pytest.mark.slow


def test_the_scheduled_dag_runs_whole_inside_the_cluster(here: Laptop, tmp_path: Path) -> None:
    """What a CronJob starts, started now: its pod runs the DAG and launches every training."""
    cluster = here.cluster
    images = write_images(tmp_path, "dark", "grey", "light")
    samples = tmp_path / "archives"
    make_sample_archives(samples, str(images))
    for file in ARCHIVES.values():
        StorePath(f"s3://percmae/archives/{file}", here.store).write_file(samples / file)
    run = ["run", "--launcher", "pytorchjob", "--store", "s3://percmae/scheduled", "--gpus", "0"]
    run += ["--dataset", "small", "--archives", "s3://percmae/archives", "--recipe", "demo"]
    run += ["--seeds", "0", "--train-image", TRAIN, "--to", "/tmp/runs", "--tag", "cron"]
    run += ["--label-fractions", "1"]
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
    assert len(mine) == 6  # pretraining, three probes, two fine-tunings
    pods = {owner["name"] for job in mine for owner in job["metadata"]["ownerReferences"]}
    assert len(pods) == 1, "all are owned by the pod that runs the DAG"
