"""A training with too little memory that is applied: killed for real, and not for ever."""

from __future__ import annotations

from pathlib import Path

from kube import wait
from small_pipeline import write_images
from trainings import SMALL, TRAIN, Laptop

from percmae.config import load_config
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object
from percmae.jobs.work import training
from percmae.storage import StorePath


def test_a_training_that_is_killed_for_its_memory_again_and_again(
    here: Laptop, tmp_path: Path
) -> None:
    """The operator would make its pod anew without end; the pod counts its starts in the store."""
    to, data = "s3://percmae/oom", "s3://percmae/datasets/oom"
    images = tmp_path / "images"
    images.mkdir()
    here.percmae("ingest", "--images", str(write_images(images, "a", "b")), "--to", data)
    # Gigabytes of weights. What only reads files too large for its memory would not be killed:
    # their pages are dropped and read again, for minutes.
    sizes = ["data.batch_size=16", "model.encoder.width=2048", "model.encoder.depth=24"]
    config = load_config("mae", "demo", overrides=sizes, tag="oom")
    given = [f"image={TRAIN}", "gpus=0", "backoff_limit=2", *SMALL, "memory=700Mi", "shm=16Mi"]
    made = job_object(
        training(config, f"{data}/manifest.json", to),
        job_settings(given, namespace=here.cluster.namespace),
    )
    name = made["metadata"]["name"]
    counts = StorePath(f"{to}/oom_mae/restarts", here.store)
    starts: set[int] = set()

    def ended() -> bool:
        starts.update(entry.path.read_json()["starts"] for entry in counts.iter())
        status = here.cluster.get("pytorchjob", name).get("status", {})
        conditions = {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}
        assert "Succeeded" not in conditions
        return "Failed" in conditions

    with here.cluster.history(name, tmp_path / "pods") as states:
        here.cluster.apply(made)
        wait(ended, 600, lambda: (starts, here.cluster("get", "pods")))
        ends = [
            container["state"].get("terminated", {}).get("reason")
            for pod in states()
            for container in pod["status"].get("containerStatuses", [])
        ]
    assert "OOMKilled" in ends, "by the kernel, not by us"
    assert starts <= {1, 2, 3}
    said = here.cluster("logs", f"{name}-master-0")
    assert "has started 3 times" in said
    assert "raise job setting memory" in said
    assert not list(counts.iter()), "the next job counts anew"
