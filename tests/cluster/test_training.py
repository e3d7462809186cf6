"""Real trainings in real pods: our images, an S3 server in the cluster, the pipeline's own DAG.

The images are those of ``make images``, known to the cluster's nodes (kind load, k3s ctr import).
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube import ROOT, TOY, Kube, toy_settings, wait, weed

from percmae import __version__
from percmae.storage import StorePath, StoreSettings
from pipelines.local import ARCHIVES

sys.path.insert(0, str(ROOT / "tests" / "pipelines"))
from small import TINY, write_images

TRAIN = os.environ.get("PERCMAE_TEST_TRAIN_IMAGE", f"percmae-train:{__version__}")
PIPELINE = os.environ.get("PERCMAE_TEST_PIPELINE_IMAGE", f"percmae-pipeline:{__version__}")
# Requests that fit a machine of two cores; torch alone takes half a gigabyte.
SMALL = ["cpu=100m", "memory=1500Mi", "shm=64Mi", "scratch=256Mi", "grace=20"]
PORT = 9000


@pytest.fixture(scope="module")
def store(kube: Kube) -> Iterator[dict[str, str]]:
    """An S3 server as Service ``store``; the environment that reaches it from here."""
    labels = {"app": "store"}
    container = {
        "name": "store",
        "image": TOY,
        "command": weed("/tmp", PORT),
        "env": [
            {"name": "AWS_ACCESS_KEY_ID", "value": "test"},
            {"name": "AWS_SECRET_ACCESS_KEY", "value": "test-secret"},
        ],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
    }
    meta = {"name": "store", "labels": labels}
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"containers": [container]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": labels, "ports": [{"port": PORT}]},
        },
    )
    kube("wait", "--for=condition=Ready", "pod/store", "--timeout=60s")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    forward = subprocess.Popen(
        ["kubectl", "-n", kube.namespace, "port-forward", "pod/store", f"{port}:{PORT}"],
        stdout=subprocess.DEVNULL,
    )
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
    }
    try:
        settings = StoreSettings.load(values)
        wait(lambda: _answers(port), 30)
        wait(lambda: _prepared(settings), 60)
        config = {"AWS_ENDPOINT_URL": f"http://store:{PORT}"}
        kube.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "percmae-store"},
                "data": config,
            }
        )
        yield values
    finally:
        forward.terminate()
        forward.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _prepared(settings: StoreSettings) -> bool:
    from percmae.errors import PercmaeError

    try:
        StorePath("s3://percmae/x", settings).prepare()
    except PercmaeError:
        return False
    return True


@pytest.fixture(scope="module")
def environment(store: dict[str, str], launcher_config: Path, tmp_path_factory: Any) -> Any:
    """Of a laptop that launches: the store, the launcher's account, a home of its own."""
    home = tmp_path_factory.mktemp("home")
    return {
        **os.environ,
        **store,
        "KUBECONFIG": str(launcher_config),
        "PERCMAE_HOME": str(home),
    }


def percmae(*arguments: str, env: dict[str, str], seconds: float = 600) -> str:
    """Run the command line; what it said on stderr is shown when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "percmae", *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=env,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout + done.stderr


def jobs(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--job", setting)]


@pytest.fixture(scope="module")
def whole_run(
    kube: Kube, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The DAG run from here, its trainings and evaluations in the cluster; two pods pretrain."""
    folder = tmp_path_factory.mktemp("dag")
    (folder / "images").mkdir()
    images = write_images(folder / "images", "dark", "grey", "light")
    run = ["run", "--source", str(images), "--seeds", "0", "--tag", "e2e", "--no-fine-tune"]
    run += ["--store", "s3://percmae/e2e", "--to", str(folder / "runs")]
    run += ["--launcher", "pytorchjob", "--train-image", TRAIN, "--nodes", "2", "--gpus", "0"]
    settings = [*SMALL, "probe.nodes=1"]
    said = percmae(*run, *jobs(settings), *TINY, env=environment)
    return said, folder / "runs" / "e2e_mae"


def test_the_dag_with_its_trainings_in_the_cluster(
    kube: Kube, whole_run: tuple[str, Path], environment: dict[str, str]
) -> None:
    said, folder = whole_run
    report = json.loads((folder / "report.json").read_text())
    rows = {row["row"]: row for row in report["table"]}
    assert 0 <= rows["probe"]["top1"]["mean"] <= 1
    assert (folder / "report.html").stat().st_size > 10_000
    made = kube.get("pytorchjob", selector="app.kubernetes.io/component=pretrain")
    (pretrain,) = [job for job in made if "e2e" in job["metadata"]["name"]]
    replicas = pretrain["spec"]["pytorchReplicaSpecs"]
    assert {role: spec["replicas"] for role, spec in replicas.items()} == {"Master": 1, "Worker": 1}
    conditions = {c["type"] for c in pretrain["status"]["conditions"] if c["status"] == "True"}
    assert "Succeeded" in conditions
    evaluated = kube.get("job", selector="app.kubernetes.io/component=evaluate")
    assert len(evaluated) == 3, "reconstructions, probe, untrained probe"
    record = read_run("e2e/runs/seed-0/e2e_mae", environment)
    assert record["status"] == "complete"
    assert "e2e_mae" in said


def read_run(key: str, environment: dict[str, str]) -> dict[str, Any]:
    settings = StoreSettings.load(environment)
    found: dict[str, Any] = StorePath(f"s3://percmae/{key}/run.json", settings).read_json()
    return found


def test_two_pods_learn_what_one_process_would(
    whole_run: tuple[str, Path], environment: dict[str, str]
) -> None:
    there = read_run("e2e/runs/seed-0/e2e_mae", environment)
    mine = [setting.removeprefix("pretrain.").removeprefix("all.") for setting in TINY]
    local = ["pretrain", "--recipe", "demo", "--tag", "here", "--to", "s3://percmae/here"]
    local += ["--data", there["data"]["uri"], *mine, "seed=0"]
    percmae(*local, "data.batch_size=32", env=environment)
    here = read_run("here/here_mae", environment)
    assert here["total_steps"] == there["total_steps"]
    for name in ("train/loss", "val/loss"):
        assert there["metrics"][name] == pytest.approx(here["metrics"][name], rel=1e-4), name


def test_again_everything_is_found(
    kube: Kube, whole_run: tuple[str, Path], environment: dict[str, str]
) -> None:
    """The same command again launches nothing: the store has it all."""
    before = {job["metadata"]["uid"] for job in kube.get("pytorchjob")}
    images = whole_run[1].parents[1] / "images"
    run = ["run", "--source", str(images), "--seeds", "0", "--tag", "e2e", "--no-fine-tune"]
    run += ["--store", "s3://percmae/e2e", "--to", str(whole_run[1].parent)]
    run += ["--launcher", "pytorchjob", "--train-image", TRAIN, "--nodes", "2"]
    said = percmae(*run, *jobs([*SMALL, "probe.nodes=1"]), *TINY, env=environment)
    assert said.count("unchanged, reused") >= 4
    assert {job["metadata"]["uid"] for job in kube.get("pytorchjob")} == before


def test_a_lost_worker_costs_only_the_steps_since_the_checkpoint(
    kube: Kube, whole_run: tuple[str, Path], environment: dict[str, str], tmp_path: Path
) -> None:
    """A pod is deleted in mid-training: both begin again, from the checkpoint, to the same end."""
    data = read_run("e2e/runs/seed-0/e2e_mae", environment)["data"]["uri"]
    mine = [setting.removeprefix("pretrain.").removeprefix("all.") for setting in TINY]
    mine = [s for s in mine if not s.startswith(("optim.epochs", "data.batch_size"))]
    mine += ["optim.epochs=150", "checkpoint.every_steps=20", "trainer.val_interval=50"]
    mine += ["tracking.images_every=50"]
    common = ["--recipe", "demo", "--data", data, *mine]
    to = "s3://percmae/lost"
    work = ["pretrain", "--tag", "lost", "--to", to, *common, "data.batch_size=16"]
    settings = [f"image={TRAIN}", "gpus=0", "nodes=2", *SMALL]
    command = [sys.executable, "-m", "percmae", "submit", *jobs(settings), *work]
    output = tmp_path / "said"
    with output.open("w") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
    settings_of_store = StoreSettings.load(environment)
    saved = StorePath(f"{to}/lost_mae/checkpoints", settings_of_store)
    wait(lambda: any(saved.iter()), 120, output.read_text)
    name = re.search(r"PyTorchJob (\S+) created", output.read_text())[1]  # type: ignore[index]
    kube("delete", "pod", f"{name}-worker-0", "--wait=false")
    assert launcher.wait(400) == 0, output.read_text()
    said = output.read_text()
    assert f"pod {name}-worker-0 is new" in said
    assert re.search(r"going on from step [1-9]\d* of", said), said
    local = ["pretrain", "--tag", "whole", "--to", to, *common, "data.batch_size=32"]
    percmae(*local, env=environment)
    there, here = (read_run(f"lost/{run}", environment) for run in ("lost_mae", "whole_mae"))
    assert there["metrics"]["val/loss"] == pytest.approx(here["metrics"]["val/loss"], rel=1e-3)


def test_a_launcher_in_the_cluster_that_is_killed_takes_its_job_along(kube: Kube) -> None:
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
        90,
        lambda: kube("logs", "step", check=False),
    )
    (job,) = kube.get("pytorchjob", selector=owned)
    assert [owner["name"] for owner in job["metadata"]["ownerReferences"]] == ["step"]
    kube("delete", "pod", "step", "--grace-period=0", "--force")
    wait(lambda: not kube.get("pytorchjob", selector=owned), 90)
    wait(lambda: not kube.get("pods", selector=owned), 60)


def test_the_scheduled_dag_runs_whole_inside_the_cluster(
    kube: Kube, whole_run: tuple[str, Path], environment: dict[str, str]
) -> None:
    """What a CronJob starts, started now: its pod runs the DAG and launches every training.

    Kubernetes 1.20 has no batch/v1 CronJob, so its job template is made a Job.
    """
    settings = StoreSettings.load(environment)
    samples = next(Path(environment["PERCMAE_HOME"], "samples").iterdir())
    for file in ARCHIVES:
        StorePath(f"s3://percmae/archives/{file}", settings).write_file(samples / file)
    run = "run --launcher pytorchjob --store s3://percmae/scheduled --dataset small --gpus 0 "
    run += f"--archives s3://percmae/archives --recipe demo --seeds 0 --train-image {TRAIN} "
    run += "--to /tmp/runs --tag cron " + " ".join(jobs(SMALL)) + " " + " ".join(TINY)
    command = [sys.executable, "-m", "pipelines", "schedule", "--cronjob", "--cron", "0 2 * * 0"]
    command += ["--name", "weekly", "--run", run, "--image", PIPELINE]
    command += ["--namespace", kube.namespace, *jobs(["cpu=100m"])]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    template = yaml.safe_load(text)["spec"]["jobTemplate"]
    template["spec"]["backoffLimit"] = 0
    kube.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "weekly-now", **template["metadata"]},
            "spec": template["spec"],
        }
    )

    def status() -> dict[str, Any]:
        return dict(kube.get("job", "weekly-now").get("status", {}))

    def said() -> str:
        return kube("logs", "job/weekly-now", check=False)

    wait(lambda: status().get("succeeded") or status().get("failed"), 400, said)
    assert status().get("succeeded"), said()
    folder = "scheduled/runs/seed-0"
    for name in ("cron_mae", "cron_mae_probe", "cron_mae_probe_untrained", "cron_mae_finetune"):
        assert read_run(f"{folder}/{name}", environment)["status"] == "complete"
        assert StorePath(f"s3://percmae/{folder}/{name}/evaluation.json", settings).exists()
    assert StorePath("s3://percmae/scheduled/reports/cron_mae/report.html", settings).exists()
    launched = kube.get("pytorchjob", selector="app.kubernetes.io/part-of=percmae")
    mine = [job for job in launched if "cron" in job["metadata"]["name"]]
    assert len(mine) == 4
    pods = {owner["name"] for job in mine for owner in job["metadata"]["ownerReferences"]}
    assert len(pods) == 1, "all are owned by the pod that runs the DAG"
