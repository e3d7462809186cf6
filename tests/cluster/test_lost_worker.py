"""A training that loses a pod, in real pods."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from kube import ROOT, wait
from small_pipeline import TINY, write_images
from trainings import SMALL, TRAIN, Laptop, jobs

from percmae.data.sample import make_sample_archives
from percmae.storage import StorePath

pytestmark = pytest.mark.slow


def test_a_lost_worker_costs_only_the_steps_since_the_checkpoint(
    here: Laptop, tmp_path: Path
) -> None:
    """A pod is deleted in mid-training: both begin again, from the checkpoint, to the same end."""
    images = write_images(tmp_path, "dark", "grey", "light")
    made = make_sample_archives(tmp_path / "archives", str(images))
    archives = ["--train", str(made.train), "--val", str(made.val), "--devkit", str(made.devkit)]
    here.percmae("ingest", *archives, "--to", "s3://percmae/small")
    data = "s3://percmae/small/manifest.json"
    mine = [s for s in TINY if not s.startswith(("optim.epochs", "data.batch_size"))]
    mine += ["optim.epochs=150", "checkpoint.every_steps=20", "trainer.val_interval=50"]
    mine += ["tracking.images_every=50"]
    common = ["--recipe", "demo", "--data", data, *mine]
    to = "s3://percmae/lost"
    work = ["pretrain", "--tag", "lost", "--to", to, *common, "data.batch_size=16"]
    # As a user that the image knows nothing of, such as OpenShift chooses.
    settings = [f"image={TRAIN}", "gpus=0", "nodes=2", "run_as_user=1000660000", *SMALL]
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
