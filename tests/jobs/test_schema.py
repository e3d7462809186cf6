"""Every object that the builder makes is one that the API server takes, to the last field."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from percmae.doctor.cluster import OLDEST_KUBERNETES
from percmae.jobs.names import Object
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object
from percmae.jobs.trainjob import training_runtime

from .schemas import make
from .validation import OLDEST, Invalid, cel_rules, validate
from .works import KINDS, OWNER, every_setting, every_work, pretraining


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_and_variant_under_every_setting_is_valid(kind: str) -> None:
    kinds = set()
    for work in every_work().values():
        for settings in every_setting(kind).values():
            for owner in (None, OWNER):
                job = job_object(work, settings, owner)
                validate(job)
                validate(job, OLDEST)
                kinds.add((work.trains, job["kind"]))
    trained = {"pytorchjob": "PyTorchJob", "trainjob": "TrainJob", "job": "Job"}[kind]
    assert kinds == {(True, trained), (False, "Job")}


@pytest.mark.parametrize(
    "values", [{}, {"ttl": None}, {"priority_class": "low", "image_pull_policy": "Always"}]
)
def test_the_runtime_for_train_jobs_is_valid(values: Object) -> None:
    validate(training_runtime(job_settings(**values)))


def _pod(job: Object) -> Object:
    if job["kind"] == "PyTorchJob":
        found = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    elif job["kind"] == "TrainJob":
        patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
        found = patch["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    else:
        found = job["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


FAULTS: dict[str, tuple[Callable[[Object], object], str]] = {
    "unknown in the spec": (lambda job: job["spec"].update(suspended=True), "suspended"),
    "unknown in the pod": (lambda job: _pod(job).update(serviceAcountName="x"), "serviceAcount"),
    "unknown in metadata": (lambda job: job["metadata"].update(label={}), "label"),
    "wrong type": (lambda job: _pod(job).update(tolerations={}), "tolerations"),
    "wrong scalar": (
        lambda job: _pod(job).update(terminationGracePeriodSeconds="120"),
        "terminationGracePeriodSeconds",
    ),
    "label not a string": (lambda job: job["metadata"]["labels"].update(a=1), "labels"),
    "container without a name": (lambda job: _pod(job)["containers"][0].pop("name"), "'name'"),
    "no metadata": (lambda job: job.pop("metadata"), "metadata"),
    "no name": (lambda job: job["metadata"].pop("name"), "name"),
    "another kind": (lambda job: job.update(kind="PyTorchJobs"), "knows PyTorchJobs"),
    "another version": (lambda job: job.update(apiVersion="kubeflow.org/v2"), "knows"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_validator_sees(kind: str, fault: str) -> None:
    job = job_object(pretraining(), job_settings(kind=kind))
    validate(job)
    spoil, said = FAULTS[fault]
    spoiled = copy.deepcopy(job)
    spoil(spoiled)
    with pytest.raises(Invalid, match=said):
        validate(spoiled)


@pytest.mark.parametrize(
    ("kind", "path", "said"),
    [
        ("pytorchjob", ["pytorchReplicaSpecs"], "'pytorchReplicaSpecs' is a required property"),
        ("trainjob", ["runtimeRef"], "'runtimeRef' is a required property"),
        ("trainjob", ["runtimePatches", 0, "manager"], "'manager' is a required property"),
        ("job", ["template"], "'template' is a required property"),
    ],
)
def test_the_validator_sees_what_is_missing(kind: str, path: list[Any], said: str) -> None:
    job = job_object(pretraining(), job_settings(kind=kind))
    holder = job["spec"]
    for part in path[:-1]:
        holder = holder[part]
    del holder[path[-1]]
    with pytest.raises(Invalid, match=said):
        validate(job)


def test_the_validator_sees_two_entries_of_a_name() -> None:
    job = job_object(pretraining(), job_settings(kind="trainjob"))
    job["spec"]["trainer"]["env"].append({"name": "HOME", "value": "/root"})
    with pytest.raises(Invalid, match="two entries with"):
        validate(job)


def test_the_oldest_kubernetes_is_the_first_that_takes_our_jobs() -> None:
    job = job_object(pretraining(), job_settings(kind="job"))
    validate(job, OLDEST)
    major, minor = OLDEST_KUBERNETES
    with pytest.raises(Invalid, match="onPodConditions"):
        validate(job, f"{major}.{minor - 1}.0")


def test_the_validator_knows_what_the_oldest_kubernetes_lacks() -> None:
    job = job_object(pretraining(), job_settings(kind="job"))
    job["spec"]["managedBy"] = "example.com/other"  # of 1.30
    validate(job)
    with pytest.raises(Invalid, match="managedBy"):
        validate(job, OLDEST)


def test_the_carried_definitions_are_whole() -> None:
    definitions = make.load()
    assert definitions.keys() == make.RELEASES.keys()
    for kind, definition in definitions.items():
        (version,) = definition["spec"]["versions"]
        fields = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        assert fields, kind
    assert make.FILE.stat().st_size < 60_000


def test_the_carried_definitions_are_the_released_ones() -> None:
    """In a clone there are none to compare with; schemas/make.py says where they come from."""
    if not (folder := os.environ.get("PERCMAE_CRDS")):
        pytest.skip("PERCMAE_CRDS does not name a folder of released definitions")
    assert make.load() == make.released(Path(folder)), "tests/jobs/schemas/make.py makes it anew"


def test_rules_that_are_not_evaluated_are_known() -> None:
    """A new rule in the definition is to be read, and told percmae.jobs.check if it matters."""
    own = [
        rule
        for rule in cel_rules("trainer.kubeflow.org/v1alpha1", "TrainJob")
        if "oldSelf" not in rule and ".initializer." not in rule
    ]
    assert own == [
        "TrainJob: self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "TrainJob: size(self.metadata.name) <= 63",
        "TrainJob.spec.managedBy: self in ['trainer.kubeflow.org/trainjob-controller', "
        "'kueue.x-k8s.io/multikueue']",
        "TrainJob.status.trainerStatus: has(self.lastUpdatedTime)",
    ]
    pytorch = cel_rules("kubeflow.org/v1", "PyTorchJob")
    assert [
        rule for rule in pytorch if "oldSelf" not in rule and "replicatedJobs" not in rule
    ] == []
