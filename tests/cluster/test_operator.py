"""What the training operator does with the fields that limit a job, and what a launcher adds.

The first half of each test is the operator alone, as with a file of k8s/ that somebody applies: it
is written down here because the names of the fields promise more. Where a launcher keeps the
promise instead, the second half shows it.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from deployed import Deployed
from kube import submit, toy_settings, wait

from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object
from percmae.jobs.work import Work

# Prints one line and then does nothing for ten minutes.
QUIET = "lines=1 only=nobody patience=600"


def toy_job(kube: Deployed, name: str, toy: str, *settings: str) -> dict[str, Any]:
    """A PyTorchJob whose pods do what ``toy`` says."""
    work = Work("pretrain", ("pretrain",), name, "0" * 16, trains=True)
    given = job_settings([*toy_settings(toy), *settings], namespace=kube.namespace)
    return job_object(work, given)


def applied(kube: Deployed, made: dict[str, Any]) -> str:
    """Its name, once the operator has it."""
    kube.apply(made)
    return str(made["metadata"]["name"])


def conditions(kube: Deployed, name: str) -> dict[str, str]:
    """Conditions that hold, each with its reason."""
    found = kube.get("pytorchjob", name).get("status", {}).get("conditions", [])
    return {each["type"]: each["reason"] for each in found if each["status"] == "True"}


def phases(kube: Deployed, name: str) -> dict[str, str]:
    """The phase of each pod of a job, by the end of its name."""
    pods = kube.pods(name)
    return {p["metadata"]["name"].removeprefix(f"{name}-"): p["status"]["phase"] for p in pods}


def age(kube: Deployed, name: str) -> float:
    """Seconds since the operator took the job for started."""
    began = datetime.fromisoformat(kube.get("pytorchjob", name)["status"]["startTime"])
    return (datetime.now(UTC) - began).total_seconds()


def test_a_quiet_job_runs_on_past_its_deadline(kube: Deployed) -> None:
    """activeDeadlineSeconds is looked at when something happens to the job, and only then."""
    name = applied(kube, toy_job(kube, "quiet", QUIET))
    wait(lambda: phases(kube, name) == {"master-0": "Running"}, what=lambda: phases(kube, name))
    # Set now, however long the pod has taken to begin.
    deadline = int(age(kube, name)) + 15
    change = {"spec": {"runPolicy": {"activeDeadlineSeconds": deadline}}}
    kube("patch", "pytorchjob", name, "--type=merge", "-p", json.dumps(change))
    wait(lambda: age(kube, name) > deadline + 15)
    assert "Running" in conditions(kube, name)
    assert phases(kube, name) == {"master-0": "Running"}
    kube("annotate", "pytorchjob", name, "example.com/something=happened")
    wait(lambda: "Failed" in conditions(kube, name), what=lambda: conditions(kube, name))
    wait(lambda: not phases(kube, name), what=lambda: phases(kube, name))


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_pods_of_a_quiet_job_end_it_at_its_deadline(kube: Deployed, nodes: int) -> None:
    """That is something that happens, and the operator looks. (No launcher follows it.)"""
    name = applied(kube, toy_job(kube, "late", QUIET, "deadline=20", f"nodes={nodes}"))
    wait(lambda: "Failed" in conditions(kube, name), 300, lambda: conditions(kube, name))
    message = kube.get("pytorchjob", name)["status"]["conditions"][-1]["message"]
    assert "active longer than specified deadline" in message
    wait(lambda: "Running" not in phases(kube, name).values(), what=lambda: phases(kube, name))


@pytest.mark.parametrize("job", ["nodes=1", "nodes=2", "kind=job"])
def test_a_launched_job_ends_at_its_deadline(
    kube: Deployed, launcher_config: Path, tmp_path: Path, job: str
) -> None:
    """Whoever sees it first: the launcher, the operator as a second pod starts, or Kubernetes."""
    started = submit(launcher_config, tmp_path, "deadline", QUIET, "deadline=4", job)
    assert started.end() == 1, started.said
    last = started.said.splitlines()[-1]
    assert "has run for 4 s, the job setting deadline" in last


def test_failures_that_may_pass_are_tried_again_without_end(kube: Deployed) -> None:
    """backoffLimit does not count pods that ExitCode makes anew; a launcher counts them
    (test_out_of_memory_is_not_tried_for_ever)."""
    name = applied(kube, toy_job(kube, "again", "lines=1 exit=143", "backoff_limit=1"))
    seen: set[str] = set()

    def started_anew() -> bool:
        seen.update(pod["metadata"]["uid"] for pod in kube.pods(name))
        assert "Failed" not in conditions(kube, name)
        return len(seen) > 4

    wait(started_anew, 300, lambda: (seen, conditions(kube, name)))
    kube("delete", "pytorchjob", name)


def test_restarts_in_place_are_counted(kube: Deployed) -> None:
    """Under OnFailure, which is the operator's default and none of ours."""
    made = toy_job(kube, "in-place", "lines=1 exit=143", "backoff_limit=1")
    made["spec"]["pytorchReplicaSpecs"]["Master"]["restartPolicy"] = "OnFailure"
    name = applied(kube, made)
    wait(lambda: "Failed" in conditions(kube, name), 300, lambda: conditions(kube, name))
    message = kube.get("pytorchjob", name)["status"]["conditions"][-1]["message"]
    assert "backoff limit" in message, message


def test_a_time_to_live_is_for_jobs_that_went_well(
    kube: Deployed, launcher_config: Path, tmp_path: Path
) -> None:
    """An ExitCode failure sets no completionTime, from which the time would count. The next
    launcher removes what should have gone."""
    bad = toy_job(kube, "bad", "lines=1 exit=1")
    good = toy_job(kube, "good", "lines=1")
    for made in (bad, good):
        made["spec"]["runPolicy"]["ttlSecondsAfterFinished"] = 2  # our settings give a minute
    failed = applied(kube, bad)
    wait(lambda: "Failed" in conditions(kube, failed), what=lambda: conditions(kube, failed))
    ended = time.monotonic()
    name = applied(kube, good)
    wait(lambda: kube.get("pytorchjob", name) is None, 300)
    assert time.monotonic() - ended > 2
    status = kube.get("pytorchjob", failed)["status"]
    assert "completionTime" not in status, status
    started = submit(launcher_config, tmp_path, "next", "lines=1")
    assert started.end() == 0, started.said
    assert f"PyTorchJob {failed} ended more than 2 s ago: removed" in started.said
    assert kube.get("pytorchjob", failed) is None


def test_what_is_left_of_a_job_whose_first_pod_is_done(kube: Deployed) -> None:
    """cleanPodPolicy None lets workers run on; ours, Running, removes what runs and no more."""
    toy = "lines=1 only=master hold=1 patience=3000"
    kept, cleaned = (
        applied(kube, toy_job(kube, policy.lower(), toy, "nodes=2", f"clean_pods='{policy}'"))
        for policy in ("None", "Running")
    )
    both = {"master-0": "Running", "worker-0": "Running"}
    for name in (kept, cleaned):
        wait(lambda name=name: phases(kube, name) == both, 300, lambda: kube("get", "pods"))
        kube.let_go(f"{name}-master-0")
        wait(lambda name=name: "Succeeded" in conditions(kube, name), 300)
    wait(
        lambda: phases(kube, cleaned) == {"master-0": "Succeeded"},
        what=lambda: phases(kube, cleaned),
    )
    assert phases(kube, kept) == {"master-0": "Succeeded", "worker-0": "Running"}
    kube("delete", "pytorchjob", kept)
