"""A TrainJob, its rules and its pods: the API server takes it, and an Indexed Job stands in for
what Kubeflow Trainer would make of it (JobSet's Job, with the names that JobSet gives)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from deployed import Deployed
from kube import TOY, lines_of, submit

pytestmark = pytest.mark.slow


def test_a_trainjob(trainer: None, kube: Deployed, launcher_config: Path, tmp_path: Path) -> None:
    started = submit(launcher_config, tmp_path, "train-v2", "", "kind=trainjob", "nodes=2")
    started.wait_for("its operator has made no pods yet")
    job = kube.get("trainjob", started.name)
    assert job["spec"]["trainer"]["numNodes"] == 2
    container = {"name": "node", "image": TOY, "command": ["percmae", "pretrain"]}
    template = {
        "metadata": {"labels": {"app.kubernetes.io/instance": started.name}},
        "spec": {"containers": [container], "restartPolicy": "Never"},
    }
    spec = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "template": template}
    name = f"{started.name}-node-0"
    kube.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})
    started.wait_for("toy: line 4")
    assert f"toy: pod {name}-0\n" in started.said, "the log of the pod with index 0"
    kube.wait(lambda: kube.get("job", name)["status"].get("succeeded") == 2, 180, "both are done")
    done = {"type": "Complete", "status": "True", "reason": "JobsCompleted", "message": "done"}
    job = kube.get("trainjob", started.name)
    job["status"] = {"conditions": [{**done, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    path = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{kube.namespace}/trainjobs"
    url = f"{path}/{started.name}/status"
    kube("replace", "--raw", url, "-f", "-", stdin=json.dumps(job))
    assert started.end() == 0, started.said
    assert lines_of(started.said) == list(range(5))
