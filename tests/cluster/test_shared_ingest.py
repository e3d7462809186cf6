"""Images of one's own, ingested by the pods of an Indexed Job that share the shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_pipeline import write_images
from trainings import SMALL, TRAIN, Laptop, jobs

from percmae.data.shards import Dataset
from percmae.ingest import ingest
from percmae.storage import StorePath

pytestmark = pytest.mark.slow


def test_pods_of_an_indexed_job_make_one_dataset(
    here: Laptop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    images = write_images(tmp_path / "images", "dark", "grey", "light")
    shutil.make_archive(str(tmp_path / "photos"), "zip", images)
    here.percmae("put", str(tmp_path / "photos.zip"), "--to", "s3://percmae/own")
    to = "s3://percmae/datasets/own"
    own = ["ingest", "--images", "s3://percmae/own/photos.zip", "--to", to, "--shard-size", "64K"]
    settings = [f"image={TRAIN}", "gpus=0", "nodes=2", *SMALL]
    said = here.percmae("submit", *jobs(settings), *own)
    (job,) = here.cluster.get("job", selector="app.kubernetes.io/component=ingest")
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["status"]["succeeded"] == 2
    assert said.startswith(job["metadata"]["name"] + "\n")
    log = here.cluster("logs", "job/" + job["metadata"]["name"], "--all-pods=true", "--prefix")
    assert "pod 1 of 2 has built its" in log, log
    for name, value in here.env.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    there = Dataset.open(f"{to}/manifest.json")
    alone = ingest(images=str(tmp_path / "photos.zip"), to=str(tmp_path / "out"), shard_size="64K")
    assert there.digest == alone.dataset.digest
    assert len(there.shards["train"]) > 2
    before = StorePath(f"{to}/manifest.json").stat().etag
    assert "nothing new" in here.percmae("submit", *jobs(settings), *own)
    assert StorePath(f"{to}/manifest.json").stat().etag == before
