"""What the objects say: what is run, with what, what may be restarted, what a pod may not do."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest

from percmae.config import load_config
from percmae.config.schema import Checkpoint
from percmae.errors import ConfigError
from percmae.jobs.names import PYTORCH, TTL_ANNOTATION, Object, shutdown_timeout
from percmae.jobs.pod import labels_of
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object
from percmae.jobs.trainjob import training_runtime
from percmae.jobs.work import command, training

from .works import KINDS, RUNS, SPREAD, every_work, pretraining


def pods(job: Object) -> list[Object]:
    """The pod templates of an object, a TrainJob's with its container put together."""
    spec = job["spec"]
    if job["kind"] == "PyTorchJob":
        return [replica["template"] for replica in spec["pytorchReplicaSpecs"].values()]
    if job["kind"] == "Job":
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


def container(job: Object) -> Object:
    found: Object = pods(job)[0]["spec"]["containers"][0]
    return found


def each(kind: str, **values: Any) -> Object:
    return job_object(pretraining(), job_settings(kind=kind, **values))


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
    job = each(kind, store_secret="minio", store_access_key="user", store_secret_key="password")
    env = {entry["name"]: entry for entry in container(job)["env"]}
    assert env["AWS_ACCESS_KEY_ID"]["valueFrom"] == {
        "secretKeyRef": {"name": "minio", "key": "user"}
    }
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"] == {
        "secretKeyRef": {"name": "minio", "key": "password"}
    }
    literal = {entry["name"] for entry in env.values() if "value" in entry}
    assert literal == {"HOME", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "PERCMAE_METRICS_PORT"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_is_told_its_image_where_that_is_one_for_good(kind: str) -> None:
    pinned = "registry.example/percmae-train@sha256:" + "ab" * 32
    told = {"name": "PERCMAE_IMAGE", "value": pinned}
    assert told in container(each(kind, image=pinned))["env"]
    env = container(each(kind, image="registry.example/percmae-train:1"))["env"]
    assert "PERCMAE_IMAGE" not in {entry["name"] for entry in env}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_has_a_port_for_prometheus(kind: str) -> None:
    main = container(each(kind, metrics_port=9500))
    assert {"name": "PERCMAE_METRICS_PORT", "value": "9500"} in main["env"]
    port = [{"name": "metrics", "containerPort": 9500, "protocol": "TCP"}]
    if kind == "trainjob":  # which has no place for it
        runtime = training_runtime(job_settings(metrics_port=9500))
        (jobs,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        (main,) = jobs["template"]["spec"]["template"]["spec"]["containers"]
    assert main["ports"] == port
    without = container(each(kind, metrics_port=None))
    assert "ports" not in without
    assert "PERCMAE_METRICS_PORT" not in {entry["name"] for entry in without["env"]}


def test_what_does_not_train_serves_no_figures() -> None:
    job = job_object(command("report", "r", "--runs", "a", "--to", "b"), job_settings())
    assert "ports" not in container(job)
    assert "PERCMAE_METRICS_PORT" not in {entry["name"] for entry in container(job)["env"]}


def test_a_port_of_the_config_is_the_pods() -> None:
    config = load_config("mae", "mae", overrides=["tracking.metrics_port=9401"], tag="t")
    work = training(config, "data", "runs")
    job_object(work, job_settings(metrics_port=9401))
    with pytest.raises(ConfigError, match=r"metrics_port=9401, but job setting metrics_port=9400"):
        job_object(work, job_settings())


@pytest.mark.parametrize("kind", KINDS)
def test_a_role_gives_the_keys_where_no_secret_does(kind: str) -> None:
    """Keys in the environment would go before the role's (percmae.storage.keys)."""
    settings = job_settings([f"kind={kind}", "store_secret=null"])
    made = job_object(pretraining(), settings)
    names = {entry["name"] for entry in container(made)["env"]}
    assert not names & {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


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
    counting = ["--run-folder", f"{RUNS}/t_mae", "--backoff-limit", "3"]
    assert container(each(kind))["command"] == [
        *("tini", "--", "python", "-m", "percmae.engine.torchrun"),
        *(counting if kind == "pytorchjob" else ()),
        *("--", *work.arguments),
    ]


def test_a_time_to_live_and_a_deadline_are_kept_by_somebody() -> None:
    """By the pods and our clean-up, where the operator does not."""
    (template,) = pods(each("pytorchjob", deadline=60))
    assert template["spec"]["activeDeadlineSeconds"] == 60
    assert "activeDeadlineSeconds" not in pods(each("pytorchjob", deadline=None))[0]["spec"]
    notes = each("trainjob", ttl=600)["metadata"]["annotations"]
    assert notes[TTL_ANNOTATION] == "600"
    assert TTL_ANNOTATION not in each("trainjob", ttl=None)["metadata"]["annotations"]
    runtime = training_runtime(job_settings())["spec"]["template"]["spec"]
    assert "ttlSecondsAfterFinished" not in runtime, "JobSet's would begin a training anew"


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
    job = job_object(work, job_settings(kind=kind))
    found = [expanded(part, {"HOME": "/tmp"}) for part in container(job)["command"]]
    assert found == ["tini", "--", "percmae", *work.arguments]


def test_a_pytorch_job_has_a_master_and_workers() -> None:
    spec = each("pytorchjob", nodes=4, gpus=8)["spec"]
    assert spec["nprocPerNode"] == "8"
    replicas = spec["pytorchReplicaSpecs"]
    assert {role: r["replicas"] for role, r in replicas.items()} == {"Master": 1, "Worker": 3}
    assert {r["restartPolicy"] for r in replicas.values()} == {"ExitCode"}
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    assert container(each("pytorchjob"))["name"] == PYTORCH == "pytorch"
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
    job = each(
        kind, gpus=2, cpu="8", memory="64Gi", gpu_type="H100", node_selector={"pool": "train"}
    )
    assert container(job)["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": "2"},
    }
    assert pods(job)[0]["spec"]["nodeSelector"] == {
        "pool": "train",
        "nvidia.com/gpu.product": "H100",
    }
    limited = each(kind, gpus=0, cpu="500m", cpu_limit="2")
    assert container(limited)["resources"] == {
        "requests": {"cpu": "500m", "memory": "16Gi"},
        "limits": {"memory": "16Gi", "cpu": "2"},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_further_resources_rights_and_users(kind: str) -> None:
    job = each(kind, gpus=1, resources={"rdma/ib": "1"}, capabilities=["IPC_LOCK"], run_as_user=0)
    for amounts in container(job)["resources"].values():
        assert (amounts["rdma/ib"], amounts["nvidia.com/gpu"]) == ("1", "1")
    assert container(job)["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["IPC_LOCK"],
    }
    security = pods(job)[0]["spec"]["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (False, 0, 0)
    left_to_the_cluster = pods(each(kind, run_as_user=None))[0]["spec"]["securityContext"]
    assert left_to_the_cluster == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_pods_are_spread_over_their_own_jobs() -> None:
    (found,) = pods(each("job", topology_spread=[SPREAD]))[0]["spec"]["topologySpreadConstraints"]
    own = {"app.kubernetes.io/instance": pretraining().name}
    assert found == {**SPREAD, "labelSelector": {"matchLabels": own}}
    given = {"matchLabels": {"a": "b"}}
    (found,) = pods(each("job", topology_spread=[{**SPREAD, "labelSelector": given}]))[0]["spec"][
        "topologySpreadConstraints"
    ]
    assert found["labelSelector"] == given


@pytest.mark.parametrize("kind", KINDS)
def test_what_makes_room_on_nodes_leaves_trainings_alone(kind: str) -> None:
    key = "karpenter.sh/do-not-disrupt"
    assert pods(each(kind))[0]["metadata"]["annotations"][key] == "true"
    own = each(kind, annotations={key: "false"})
    assert pods(own)[0]["metadata"]["annotations"][key] == "false"


def test_a_stage_without_a_network_takes_no_gpu() -> None:
    settings = job_settings(gpus=8, gpu_type="H100")
    works = every_work()
    for name in ("ingest", "report"):
        job = job_object(works[name], settings)
        assert "nvidia.com/gpu" not in container(job)["resources"]["limits"]
        assert "nodeSelector" not in pods(job)[0]["spec"]
    job = job_object(works["evaluate"], settings)
    assert container(job)["resources"]["limits"]["nvidia.com/gpu"] == "1"


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
    job = each(kind, labels={"team": "vision"}, annotations={"example.com/note": "x"})
    for metadata in (job["metadata"], pods(job)[0]["metadata"]):
        assert metadata["labels"]["team"] == "vision"
        assert metadata["labels"]["app.kubernetes.io/name"] == "percmae"
        assert metadata["annotations"]["example.com/note"] == "x"


@pytest.mark.parametrize("kind", KINDS)
def test_pods_ask_for_no_sidecar_unless_told_to(kind: str) -> None:
    name = "sidecar.istio.io/inject"
    for job, wanted in ((each(kind), "false"), (each(kind, labels={name: "true"}), "true")):
        assert all(pod["metadata"]["labels"][name] == wanted for pod in pods(job))
        assert all(pod["metadata"]["annotations"][name] == "false" for pod in pods(job))


def test_torchrun_waits_for_its_processes_as_long_as_kubernetes_waits_for_the_pod() -> None:
    for grace, patience in ((120, "115"), (3, "1")):
        env = {e["name"]: e.get("value") for e in container(each("job", grace=grace))["env"]}
        assert env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == patience
    # And sending what was saved has room in it.
    assert 1.5 * Checkpoint().grace < int(shutdown_timeout()) < job_settings().grace
    plain = job_object(every_work()["evaluate"], job_settings())
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in [e["name"] for e in container(plain)["env"]]


def test_an_ingest_knows_how_much_its_disk_holds() -> None:
    """Three quarters of /tmp, beyond which the pod would be evicted; a process sees the node's."""
    for scratch, size in (("10Gi", "8053063680"), ("200G", "150000000000")):
        made = job_object(every_work()["ingest"], job_settings([f"scratch={scratch}"]))
        env = {entry["name"]: entry.get("value") for entry in container(made)["env"]}
        assert env["PERCMAE_SCRATCH_SIZE"] == size
    with pytest.raises(ConfigError, match="it follows from scratch"):
        job_settings(["env=[{name: PERCMAE_SCRATCH_SIZE, value: '1'}]"])


def test_jobs_need_no_torch() -> None:
    code = (
        "import sys, percmae.jobs.spec, percmae.jobs.trainjob\n"
        "assert not {'torch', 'kubernetes', 'kfp'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
