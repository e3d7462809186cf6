"""Real trainings in real pods: our images, the store of k8s/base, the pipeline's own DAG.

The images are those of ``make images``, known to the cluster's nodes (kind load, k3s ctr import).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_pipeline import TINY, write_images
from trainings import SMALL, TRAIN, Laptop, jobs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole_run(here: Laptop, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The DAG run from here, its trainings and evaluations in the cluster; two pods pretrain."""
    folder = tmp_path_factory.mktemp("dag")
    (folder / "images").mkdir()
    images = write_images(folder / "images", "dark", "grey", "light")
    run = ["run", "--source", str(images), "--seeds", "0", "--tag", "e2e", "--no-fine-tune"]
    run += ["--store", "s3://percmae/e2e", "--to", str(folder / "runs")]
    run += ["--launcher", "pytorchjob", "--train-image", TRAIN, "--nodes", "2", "--gpus", "0"]
    settings = [*SMALL, "probe.nodes=1"]
    said = here.percmae(*run, *jobs(settings), *TINY)
    return said, folder / "runs" / "e2e_mae"


def test_the_dag_with_its_trainings_in_the_cluster(
    here: Laptop, whole_run: tuple[str, Path]
) -> None:
    said, folder = whole_run
    report = json.loads((folder / "report.json").read_text())
    rows = {row["row"]: row for row in report["table"]}
    assert 0 <= rows["probe"]["top1"]["mean"] <= 1
    assert (folder / "report.html").stat().st_size > 10_000
    made = here.cluster.get("pytorchjob", selector="app.kubernetes.io/component=pretrain")
    (pretrain,) = [job for job in made if "e2e" in job["metadata"]["name"]]
    replicas = pretrain["spec"]["pytorchReplicaSpecs"]
    assert {role: spec["replicas"] for role, spec in replicas.items()} == {"Master": 1, "Worker": 1}
    conditions = {c["type"] for c in pretrain["status"]["conditions"] if c["status"] == "True"}
    assert "Succeeded" in conditions
    evaluated = here.cluster.get("job", selector="app.kubernetes.io/component=evaluate")
    assert len(evaluated) == 4, "reconstructions, probe, its two controls"
    record = here.read_run("e2e/runs/seed-0/e2e_mae")
    assert record["status"] == "complete"
    assert "e2e_mae" in said


def test_two_pods_learn_what_one_process_would(here: Laptop, whole_run: tuple[str, Path]) -> None:
    there = here.read_run("e2e/runs/seed-0/e2e_mae")
    local = ["pretrain", "--recipe", "demo", "--tag", "here", "--to", "s3://percmae/here"]
    local += ["--data", there["data"]["uri"], *TINY, "seed=0"]
    here.percmae(*local, "data.batch_size=32")
    alone = here.read_run("here/here_mae")
    assert alone["total_steps"] == there["total_steps"]
    for name in ("train/loss", "val/loss"):
        assert there["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4), name


def test_again_everything_is_found(here: Laptop, whole_run: tuple[str, Path]) -> None:
    """The same command again launches nothing: the store has it all."""
    before = {job["metadata"]["uid"] for job in here.cluster.get("pytorchjob")}
    images = whole_run[1].parents[1] / "images"
    run = ["run", "--source", str(images), "--seeds", "0", "--tag", "e2e", "--no-fine-tune"]
    run += ["--store", "s3://percmae/e2e", "--to", str(whole_run[1].parent)]
    run += ["--launcher", "pytorchjob", "--train-image", TRAIN, "--nodes", "2"]
    said = here.percmae(*run, *jobs([*SMALL, "probe.nodes=1"]), *TINY)
    assert said.count("unchanged, reused") >= 4
    assert {job["metadata"]["uid"] for job in here.cluster.get("pytorchjob")} == before
