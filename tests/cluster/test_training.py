"""Real trainings in real pods: our images, the store of k8s/base, the pipeline's own DAG.

The images are those of ``make images``, known to the cluster's nodes (kind load, k3s ctr import).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube import ROOT, wait
from trainings import SMALL, TRAIN, Laptop, jobs, laptop

from percmae.storage import StorePath

sys.path.insert(0, str(ROOT / "tests" / "pipelines"))
from small import TINY, write_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    with laptop("training", tmp_path_factory.mktemp("home")) as here:
        yield here


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
    assert len(evaluated) == 3, "reconstructions, probe, untrained probe"
    record = here.read_run("e2e/runs/seed-0/e2e_mae")
    assert record["status"] == "complete"
    assert "e2e_mae" in said


def test_two_pods_learn_what_one_process_would(here: Laptop, whole_run: tuple[str, Path]) -> None:
    there = here.read_run("e2e/runs/seed-0/e2e_mae")
    mine = [setting.removeprefix("pretrain.").removeprefix("all.") for setting in TINY]
    local = ["pretrain", "--recipe", "demo", "--tag", "here", "--to", "s3://percmae/here"]
    local += ["--data", there["data"]["uri"], *mine, "seed=0"]
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


def test_a_lost_worker_costs_only_the_steps_since_the_checkpoint(
    here: Laptop, whole_run: tuple[str, Path], tmp_path: Path
) -> None:
    """A pod is deleted in mid-training: both begin again, from the checkpoint, to the same end."""
    data = here.read_run("e2e/runs/seed-0/e2e_mae")["data"]["uri"]
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
        launcher = subprocess.Popen(command, stdout=log, stderr=log, env=here.env, cwd=ROOT)
    saved = StorePath(f"{to}/lost_mae/checkpoints", here.store)
    wait(lambda: any(saved.iter()), 600, output.read_text)
    name = re.search(r"PyTorchJob (\S+) created", output.read_text())[1]  # type: ignore[index]
    here.cluster("delete", "pod", f"{name}-worker-0", "--wait=false")
    assert launcher.wait(1200) == 0, output.read_text()
    said = output.read_text()
    assert f"pod {name}-worker-0 is new" in said
    assert re.search(r"going on from step [1-9]\d* of", said), said
    local = ["pretrain", "--tag", "whole", "--to", to, *common, "data.batch_size=32"]
    here.percmae(*local)
    there, whole = (here.read_run(f"lost/{run}") for run in ("lost_mae", "whole_mae"))
    assert there["metrics"]["val/loss"] == pytest.approx(whole["metrics"]["val/loss"], rel=1e-3)
