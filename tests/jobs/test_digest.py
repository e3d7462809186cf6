"""The same in gives the same bytes out, and the digest says whether anything is different."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from percmae.jobs.names import DIGEST_ANNOTATION, Object
from percmae.jobs.schema import JobSettings
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object, object_digest
from percmae.jobs.work import Work

from .works import KINDS, OWNER, SPREAD, every_setting, every_work, pretraining, probing


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_in_gives_the_same_bytes_out(kind: str) -> None:
    def text() -> str:
        return json.dumps(
            [
                job_object(work, settings)
                for work in every_work().values()
                for settings in every_setting(kind).values()
            ]
        )

    assert text() == text()


@pytest.mark.slow
def test_the_same_bytes_in_another_process() -> None:
    code = (
        "import json; from percmae.config import load_config\n"
        "from percmae.jobs.settings import job_settings\n"
        "from percmae.jobs.spec import job_object\n"
        "from percmae.jobs.work import training\n"
        "work = training(load_config('mae', 'mae', tag='t'), 'd', 'r')\n"
        "print(json.dumps(job_object(work, job_settings(nodes=2, labels={'b': '1', 'a': '2'}))))"
    )
    seeds = ("0", "1")  # of the order of sets
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in seeds
    }
    assert len(found) == 1


# For each setting a value that is not the default, with what it needs beside it.
CHANGES: dict[str, dict[str, Any]] = {
    "kind": {"kind": "job"},
    "image": {"image": "other:1"},
    "image_pull_policy": {"image_pull_policy": "Never"},
    "image_pull_secrets": {"image_pull_secrets": ["registry"]},
    "service_account": {"service_account": "other"},
    "nodes": {"nodes": 2},
    "min_nodes": {"min_nodes": 1},
    "gpus": {"gpus": 2},
    "gpu_resource": {"gpu_resource": "amd.com/gpu"},
    "gpu_type": {"gpu_type": "A100"},
    "cpu": {"cpu": "5"},
    "cpu_limit": {"cpu_limit": "8"},
    "memory": {"memory": "17Gi"},
    "shm": {"shm": "3Gi"},
    "scratch": {"scratch": "11Gi"},
    "resources": {"resources": {"rdma/ib": "1"}},
    "capabilities": {"capabilities": ["IPC_LOCK"]},
    "run_as_user": {"run_as_user": None},
    "topology_spread": {"topology_spread": [SPREAD]},
    "node_selector": {"node_selector": {"a": "b"}},
    "tolerations": {"tolerations": [{"operator": "Exists"}]},
    "affinity": {"affinity": {"nodeAffinity": {}}},
    "priority_class": {"priority_class": "high"},
    "queue": {"queue": "team-a"},
    "volcano_queue": {"volcano_queue": "team-a"},
    "backoff_limit": {"backoff_limit": 4},
    "deadline": {"deadline": None},
    "ttl": {"ttl": None},
    "clean_pods": {"clean_pods": "All"},
    "grace": {"grace": 60},
    "store_config": {"store_config": "other"},
    "store_secret": {"store_secret": "other"},
    "store_access_key": {"store_access_key": "other"},
    "store_secret_key": {"store_secret_key": "other"},
    "store_session_token": {"store_session_token": "other"},
    "metrics_port": {"metrics_port": None},
    "env": {"env": [{"name": "A", "value": "1"}]},
    "volumes": {
        "volumes": [{"name": "a", "emptyDir": {}}],
        "volume_mounts": [{"name": "a", "mountPath": "/a"}],
    },
    "volume_mounts": {"volume_mounts": [{"name": "scratch", "mountPath": "/a"}]},
    "labels": {"labels": {"a": "b"}},
    "annotations": {"annotations": {"a": "b"}},
}
# Whose business it is: where an object lies, a launcher's patience, another kind.
UNCHANGED: dict[str, dict[str, Any]] = {
    "namespace": {"namespace": "elsewhere"},
    "queue_deadline": {"queue_deadline": 60},
    "stuck_deadline": {"stuck_deadline": 60},
    "max_restarts": {"max_restarts": 9},
    "runtime": {"runtime": "other"},
}


@pytest.mark.slow
def test_the_digest_changes_with_everything_that_matters_and_nothing_else() -> None:
    assert {*CHANGES, *UNCHANGED} == {field.name for field in dataclasses.fields(JobSettings)}
    plain = digest_of(job_settings())
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", plain)
    digests = [digest_of(job_settings(**values)) for values in CHANGES.values()]
    assert len({plain, *digests}) == 1 + len(CHANGES)
    for values in UNCHANGED.values():
        assert digest_of(job_settings(**values)) == plain
    elastic = {"nodes": 2, "min_nodes": 1}
    assert digest_of(job_settings(**elastic)) != digest_of(job_settings(**elastic, max_restarts=9))
    other = job_settings(kind="trainjob", runtime="other")
    assert digest_of(job_settings(kind="trainjob")) != digest_of(other)


def digest_of(settings: JobSettings, work: Work | None = None, owner: Object | None = None) -> str:
    job = job_object(work or pretraining(), settings, owner)
    digest: str = job["metadata"]["annotations"][DIGEST_ANNOTATION]
    assert object_digest(job) == digest  # what a launcher computes of an object it has made
    return digest


@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_is_no_part_of_the_digest_and_the_work_is(kind: str) -> None:
    settings = job_settings(kind=kind)
    assert digest_of(settings, owner=OWNER) == digest_of(settings)
    assert job_object(pretraining(), settings, OWNER)["metadata"]["ownerReferences"] == [OWNER]
    assert digest_of(settings, pretraining("data.workers=1")) != digest_of(settings)
    assert digest_of(settings, probing()) != digest_of(settings, probing(features="untrained"))
