"""What the objects say: what is run, with what, what may be restarted, what a pod may not do."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from percmae.jobs.settings import JobSettings, job_settings
from percmae.jobs.spec import CONTAINER, DIGEST, job_object, labels_of, object_digest
from percmae.jobs.trainjob import training_runtime
from percmae.jobs.work import Work, command

from .works import KINDS, OWNER, every_setting, every_work, pretraining, probing

Object = dict[str, Any]


def pods(made: Object) -> list[Object]:
    """The pod templates of an object, a TrainJob's with its container put together."""
    spec = made["spec"]
    if made["kind"] == "PyTorchJob":
        return [replica["template"] for replica in spec["pytorchReplicaSpecs"].values()]
    if made["kind"] == "Job":
        return [spec["template"]]
    patch = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    template = patch["replicatedJobs"][0]["template"]["spec"]["template"]
    trainer = spec["trainer"]
    (container,) = template["spec"]["containers"]
    whole = {
        **container,
        "image": trainer["image"],
        "command": trainer["command"] + trainer["args"],
        "env": trainer["env"],
        "resources": trainer["resourcesPerNode"],
    }
    return [{**template, "spec": {**template["spec"], "containers": [whole]}}]


def container(made: Object) -> Object:
    found: Object = pods(made)[0]["spec"]["containers"][0]
    return found


def each(kind: str, **values: Any) -> Object:
    return job_object(pretraining(), job_settings(kind=kind, **values))


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
    made = job_object(work or pretraining(), settings, owner)
    digest: str = made["metadata"]["annotations"][DIGEST]
    assert object_digest(made) == digest  # what a launcher computes of an object it has made
    return digest


@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_is_no_part_of_the_digest_and_the_work_is(kind: str) -> None:
    settings = job_settings(kind=kind)
    assert digest_of(settings, owner=OWNER) == digest_of(settings)
    assert job_object(pretraining(), settings, OWNER)["metadata"]["ownerReferences"] == [OWNER]
    assert digest_of(settings, pretraining("data.workers=1")) != digest_of(settings)
    assert digest_of(settings, probing()) != digest_of(settings, probing(untrained=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_may_do_no_more_than_it_must(kind: str) -> None:
    for work in every_work().values():
        for template in pods(job_object(work, job_settings(kind=kind))):
            pod = template["spec"]
            (main,) = pod["containers"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] == 10001
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert main["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            mounts = {mount["mountPath"]: mount["name"] for mount in main["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
            assert "medium" not in volumes[mounts["/tmp"]]["emptyDir"]
            assert pod["serviceAccountName"] == "percmae-train"
    runtime = training_runtime(job_settings())["spec"]["template"]["spec"]["replicatedJobs"][0]
    assert runtime["template"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    if kind != "trainjob":
        assert pods(each(kind))[0]["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("kind", KINDS)
def test_the_stores_keys_are_references_and_nothing_secret_is_written_out(kind: str) -> None:
    made = each(kind, store_secret="minio", store_access_key="user", store_secret_key="password")
    env = {entry["name"]: entry for entry in container(made)["env"]}
    assert env["AWS_ACCESS_KEY_ID"]["valueFrom"] == {
        "secretKeyRef": {"name": "minio", "key": "user"}
    }
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"] == {
        "secretKeyRef": {"name": "minio", "key": "password"}
    }
    literal = {entry["name"] for entry in env.values() if "value" in entry}
    assert literal == {"HOME", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"}


def test_the_stores_address_comes_with_every_kind() -> None:
    reference = {"configMapRef": {"name": "percmae-store"}}
    assert container(each("pytorchjob"))["envFrom"] == [reference]
    assert container(each("job"))["envFrom"] == [reference]
    env = {e["name"]: e.get("valueFrom") for e in container(each("trainjob"))["env"]}
    assert env["AWS_ENDPOINT_URL"] == {
        "configMapKeyRef": {"name": "percmae-store", "key": "AWS_ENDPOINT_URL", "optional": True}
    }
    own = [{"name": "AWS_REGION", "value": "eu-central-1"}]
    given = [e for e in container(each("trainjob", env=own))["env"] if e["name"] == "AWS_REGION"]
    assert given == own


@pytest.mark.parametrize("kind", ["pytorchjob", "trainjob"])
def test_a_training_runs_bare_torchrun_under_tini(kind: str) -> None:
    work = pretraining()
    assert container(each(kind))["command"] == [
        *("tini", "--", "python", "-m", "percmae.engine.torchrun", "--"),
        *work.arguments,
    ]


def test_a_plain_training_needs_torchrun_for_several_gpus_only() -> None:
    arguments = list(pretraining().arguments)
    assert container(each("job"))["command"] == ["tini", "--", "percmae", *arguments]
    assert container(each("job", gpus=4))["command"] == [
        *("tini", "--", "python", "-m", "percmae.engine.torchrun", "--standalone"),
        *("--nproc-per-node", "4", "--"),
        *arguments,
    ]


def expanded(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a part of a command: $$ is $, $(NAME) the variable, if there."""

    def replace(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replace, text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["$(HOME)", "$$(HOME)", "$", "$$", "a$b", "$(", "$$$(HOME)$"])
def test_kubernetes_changes_nothing_in_an_argument(kind: str, text: str) -> None:
    work = command("ingest", "x", "--train", text, "--to", f"s3://b/{text}/c")
    made = job_object(work, job_settings(kind=kind))
    found = [expanded(part, {"HOME": "/tmp"}) for part in container(made)["command"]]
    assert found == ["tini", "--", "percmae", *work.arguments]


def test_a_pytorch_job_has_a_master_and_workers() -> None:
    spec = each("pytorchjob", nodes=4, gpus=8)["spec"]
    assert spec["nprocPerNode"] == "8"
    replicas = spec["pytorchReplicaSpecs"]
    assert {role: r["replicas"] for role, r in replicas.items()} == {"Master": 1, "Worker": 3}
    assert {r["restartPolicy"] for r in replicas.values()} == {"ExitCode"}
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    assert container(each("pytorchjob"))["name"] == CONTAINER == "pytorch"
    assert list(each("pytorchjob")["spec"]["pytorchReplicaSpecs"]) == ["Master"]
    assert spec["runPolicy"] == {
        "backoffLimit": 3,
        "cleanPodPolicy": "Running",
        "activeDeadlineSeconds": 14 * 24 * 3600,
        "ttlSecondsAfterFinished": 7 * 24 * 3600,
    }


def test_an_elastic_job_has_workers_only() -> None:
    spec = each("pytorchjob", nodes=4, min_nodes=2, max_restarts=5, gpus=8)["spec"]
    assert list(spec["pytorchReplicaSpecs"]) == ["Worker"]
    assert spec["pytorchReplicaSpecs"]["Worker"]["replicas"] == 4
    assert spec["elasticPolicy"] == {
        "rdzvBackend": "c10d",
        "minReplicas": 2,
        "maxReplicas": 4,
        "maxRestarts": 5,
    }


def test_a_train_job_names_its_runtime_nodes_and_processes() -> None:
    spec = each("trainjob", nodes=4, gpus=8, runtime="percmae", deadline=60)["spec"]
    assert spec["runtimeRef"]["name"] == "percmae"
    assert (spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (4, 8)
    assert spec["activeDeadlineSeconds"] == 60
    assert "suspend" not in spec
    assert (
        "env"
        not in spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"][
            "replicatedJobs"
        ][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    )


def test_a_train_job_holds_a_config_in_which_every_setting_differs() -> None:
    work = dataclasses.replace(pretraining(), arguments=tuple(f"a.b{i}=1" for i in range(128)))
    assert len(container(job_object(work, job_settings(kind="trainjob")))["command"]) == 134
    longer = dataclasses.replace(work, arguments=(*work.arguments, "c=1"))
    with pytest.raises(Exception, match="a TrainJob holds 128 args, this one has 129"):
        job_object(longer, job_settings(kind="trainjob"))


def test_final_failures_and_those_that_may_pass() -> None:
    rules = each("job")["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["action"] == "Ignore"
    assert rules[1] == {
        "action": "FailJob",
        "onExitCodes": {"operator": "In", "values": [1, 2, 126, 127]},
    }
    assert pods(each("job"))[0]["spec"]["restartPolicy"] == "Never"
    runtime = training_runtime(job_settings(backoff_limit=5))["spec"]["template"]["spec"]
    job = runtime["replicatedJobs"][0]["template"]["spec"]
    assert job["podFailurePolicy"]["rules"] == rules
    assert job["backoffLimit"] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_resources_and_placement(kind: str) -> None:
    made = each(
        kind, gpus=2, cpu="8", memory="64Gi", gpu_type="H100", node_selector={"pool": "train"}
    )
    assert container(made)["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": "2"},
    }
    assert pods(made)[0]["spec"]["nodeSelector"] == {
        "pool": "train",
        "nvidia.com/gpu.product": "H100",
    }
    limited = each(kind, gpus=0, cpu="500m", cpu_limit="2")
    assert container(limited)["resources"] == {
        "requests": {"cpu": "500m", "memory": "16Gi"},
        "limits": {"memory": "16Gi", "cpu": "2"},
    }


def test_a_stage_without_a_network_takes_no_gpu() -> None:
    settings = job_settings(gpus=8, gpu_type="H100")
    works = every_work()
    for name in ("ingest", "report"):
        made = job_object(works[name], settings)
        assert "nvidia.com/gpu" not in container(made)["resources"]["limits"]
        assert "nodeSelector" not in pods(made)[0]["spec"]
    made = job_object(works["evaluate"], settings)
    assert container(made)["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("kind", KINDS)
def test_queues(kind: str) -> None:
    for work in (pretraining(), every_work()["evaluate"]):
        metadata = job_object(work, job_settings(kind=kind, queue="team-a"))["metadata"]
        assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    spec = each("pytorchjob", nodes=4, volcano_queue="gpu", priority_class="high")["spec"]
    assert spec["runPolicy"]["schedulingPolicy"] == {
        "minAvailable": 4,
        "queue": "gpu",
        "priorityClass": "high",
    }


def test_labels_are_labels_whatever_the_run_is_called() -> None:
    value = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
    for name in ("x" * 127, "a" * 62 + "._-b", "Fußgänger/été 2026", "-_.", "..a"):
        labels = labels_of(command("ingest", name), job_settings())
        for text in labels.values():
            assert len(text) <= 63
            assert value.fullmatch(text), text
    assert labels_of(pretraining(), job_settings())["percmae.dev/run"] == "t_mae"


@pytest.mark.parametrize("kind", KINDS)
def test_own_labels_and_annotations_are_on_the_job_and_its_pods(kind: str) -> None:
    made = each(kind, labels={"team": "vision"}, annotations={"example.com/note": "x"})
    for metadata in (made["metadata"], pods(made)[0]["metadata"]):
        assert metadata["labels"]["team"] == "vision"
        assert metadata["labels"]["app.kubernetes.io/name"] == "percmae"
        assert metadata["annotations"]["example.com/note"] == "x"


def test_torchrun_waits_for_its_processes_as_long_as_kubernetes_waits_for_the_pod() -> None:
    for grace, patience in ((120, "115"), (3, "1")):
        env = {e["name"]: e.get("value") for e in container(each("job", grace=grace))["env"]}
        assert env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == patience
    plain = job_object(every_work()["evaluate"], job_settings())
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in [e["name"] for e in container(plain)["env"]]


def test_jobs_need_no_torch() -> None:
    code = (
        "import sys, percmae.jobs.spec, percmae.jobs.trainjob\n"
        "assert not {'torch', 'kubernetes', 'kfp'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
