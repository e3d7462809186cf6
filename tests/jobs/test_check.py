"""What a cluster would refuse is refused here, in one line that names the setting."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from percmae.errors import ConfigError, UserError
from percmae.jobs import shapes
from percmae.jobs.check import check_object, warn_unpinned
from percmae.jobs.schema import JobSettings
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object
from percmae.jobs.trainjob import STORE_VARIABLES

from .works import OWNER, SPREAD, pretraining

A_VOLUME = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
A_MOUNT = {"name": "data", "mountPath": "/data"}

REFUSED: list[tuple[dict[str, Any], str]] = [
    # Quantities
    ({"memory": "16GB"}, "memory='16GB': not a quantity; write 16G or 16Gi"),
    ({"memory": "16GiB"}, "write 16Gi"),
    ({"memory": "16 Gi"}, "write 16Gi"),
    ({"memory": "16g"}, "write 16G or 16Gi"),
    ({"memory": "512kb"}, "write 512k or 512Ki"),
    ({"memory": "lots"}, "not a quantity; write a number with a unit"),
    ({"memory": ""}, "not a quantity"),
    ({"memory": "٣Gi"}, "not a quantity"),
    ({"memory": "0"}, "memory='0': must be more than 0"),
    ({"memory": "-1Gi"}, "must be more than 0"),
    ({"memory": "512m"}, "0.512 bytes; for 512 megabytes write 512M"),
    ({"memory": "16"}, "16 bytes; add a unit"),
    ({"memory": "1e999999999"}, "out of range"),
    ({"cpu": "0"}, "cpu='0': must be more than 0"),
    ({"cpu": "4 cores"}, "cpu='4 cores': not a quantity"),
    ({"cpu": "0.0001"}, "whole thousandths"),
    ({"cpu": "4", "cpu_limit": "3500m"}, "cpu_limit=3500m is less than cpu=4"),
    ({"memory": "2Gi", "shm": "3Gi"}, "shm=3Gi is more than memory=2Gi"),
    ({"shm": "2GB"}, "shm='2GB'"),
    ({"scratch": "ten"}, "scratch='ten'"),
    ({"nodes": 2**31}, "nodes=2147483648: out of range"),
    ({"ttl": 0}, "ttl=0: a launcher needs time"),
    # Further resources and rights
    ({"resources": {"rdma": "1"}}, "resources, rdma: a vendor's resource with its domain"),
    ({"resources": {"cpu": "1"}}, "resources, cpu: a vendor's resource"),
    ({"resources": {"rdma/ib": "half"}}, "resources, rdma/ib='half': not a quantity"),
    ({"resources": {"rdma/ib": "1500m"}}, "resources, rdma/ib=1500m: a whole number of devices"),
    ({"resources": {"hugepages-2Mi": "2"}}, "hugepages-2Mi='2': that is 2 bytes"),
    ({"resources": {"nvidia.com/gpu": "1"}}, "nvidia.com/gpu: set gpus=1 instead"),
    ({"capabilities": ["CAP_IPC_LOCK"]}, "'CAP_IPC_LOCK': as in a container, such as IPC_LOCK"),
    ({"capabilities": ["ipc_lock"]}, "'ipc_lock': as in a container"),
    ({"topology_spread": [{"maxSkew": 1}]}, "topology_spread[0]: topologyKey is missing"),
    ({"topology_spread": [{**SPREAD, "maxSkew": 0}]}, "topology_spread[0].maxSkew=0: 1 or more"),
    (
        {"topology_spread": [{**SPREAD, "whenUnsatisfiable": "Never"}]},
        "'Never' is not one of DoNot",
    ),
    ({"topology_spread": [{**SPREAD, "topologyKey": "a b"}]}, "topology_spread[0].topologyKey"),
    # Names
    ({"namespace": "Team_A"}, "namespace='Team_A': not a name"),
    ({"namespace": "a" * 64}, "at most 63"),
    ({"namespace": "a.b"}, "namespace='a.b'"),
    ({"service_account": "Trainer"}, "service_account='Trainer'"),
    ({"priority_class": "high priority"}, "priority_class="),
    ({"queue": "q" * 64}, "queue="),
    ({"queue": "team_a"}, "queue='team_a'"),
    ({"volcano_queue": "-a"}, "volcano_queue='-a'"),
    ({"store_secret": "s/x"}, "store_secret='s/x'"),
    ({"store_config": ""}, "store_config=''"),
    ({"store_access_key": "access key"}, "not the name of an entry"),
    ({"store_secret_key": ".."}, "not the name of an entry"),
    ({"image_pull_secrets": ["ok", "NOT"]}, "image_pull_secrets='NOT'"),
    ({"image_pull_secrets": ["a", "b", "a"]}, "a is given twice"),
    ({"kind": "trainjob", "runtime": "torch distributed"}, "runtime='torch distributed'"),
    # Images
    ({"image": ""}, "image='': not an image reference: it must be given"),
    ({"image": "Percmae:1"}, "the name in lower case"),
    ({"image": "percmae: 1"}, "without spaces"),
    ({"image": "docker://percmae:1"}, "leave the scheme"),
    ({"image": "percmae@sha256:abc"}, "a digest is @sha256: and 64"),
    ({"image": "a/" * 300 + "b"}, "not an image reference"),
    # Labels, annotations, selectors
    ({"labels": {"a b": "c"}}, "job setting labels: 'a b'"),
    ({"labels": {"-a": "c"}}, "job setting labels: '-a'"),
    ({"labels": {"Example_.com/a": "c"}}, "is a domain, such as example.com"),
    ({"labels": {"/a": "c"}}, "is a domain"),
    ({"labels": {"a" * 64: "c"}}, "at most 63"),
    ({"labels": {"x" * 254 + "/a": "c"}}, "is a domain"),
    ({"labels": {"team": "vision team"}}, "job setting labels, team='vision team'"),
    ({"labels": {"team": "v" * 64}}, "at most 63"),
    ({"labels": {"app.kubernetes.io/name": "x"}}, "is set for every job"),
    ({"labels": {"percmae.dev/run": "x"}}, "is set for every job"),
    ({"labels": {"kueue.x-k8s.io/queue-name": "team-a"}}, "set queue=team-a instead"),
    ({"annotations": {"percmae.dev/spec-digest": "x"}}, "is set for every job"),
    ({"annotations": {"a b": "x"}}, "job setting annotations: 'a b'"),
    ({"annotations": {"a": "x" * 300_000}}, "Kubernetes takes 256 KiB"),
    ({"node_selector": {"a b": "x"}}, "job setting node_selector: 'a b'"),
    ({"node_selector": {"pool": "a b"}}, "job setting node_selector, pool='a b'"),
    # GPUs
    ({"gpu_resource": "gpu"}, "with its domain, such as nvidia.com/gpu"),
    ({"gpu_resource": "kubernetes.io/gpu"}, "with its domain"),
    ({"gpu_resource": "nvidia.com/g p u"}, "job setting gpu_resource"),
    ({"gpu_type": "NVIDIA H100"}, "gpu_type='NVIDIA H100'"),
    ({"gpu_type": "NVIDIA-H100", "gpus": 0}, "asks for a kind of GPU, but gpus=0"),
    (
        {"gpu_type": "H100", "node_selector": {"nvidia.com/gpu.product": "A100"}},
        "node_selector asks for A100",
    ),
    # Environment
    ({"env": [{"name": "1A", "value": ""}]}, "'1A' is no name of a variable"),
    ({"env": [{"name": "A=B", "value": ""}]}, "no name of a variable"),
    ({"env": [{"value": "x"}]}, "env[0]: name is missing"),
    ({"env": [{"name": "A", "value": 1}]}, "env[0].value: expected a string"),
    ({"env": [{"name": "A", "value": None}]}, "env[0].value: expected a string"),
    ({"env": [{"name": "A", "vale": "x"}]}, "unknown field 'vale'; did you mean 'value'"),
    ({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "A: given twice"),
    ({"env": [{"name": "HOME", "value": "/root"}]}, "every job sets it to /tmp"),
    ({"env": [{"name": "AWS_ACCESS_KEY_ID", "value": "x"}]}, "come from store_secret"),
    ({"env": [{"name": "RANK", "value": "0"}]}, "the operator or torchrun sets it"),
    ({"env": [{"name": "PET_NNODES", "value": "2"}]}, "the operator or torchrun sets it"),
    (
        {"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "a"}}}]},
        "value or valueFrom, not both",
    ),
    ({"env": [{"name": "A", "valueFrom": {}}]}, "names one source"),
    (
        {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]},
        "env[0].valueFrom.secretKeyRef: key is missing",
    ),
    ({"env": [{"name": "HF_TOKEN", "value": "hf_123"}]}, "HF_TOKEN: looks like a secret"),
    ({"env": [{"name": "WANDB_API_KEY", "value": "123"}]}, "looks like a secret"),
    ({"env": [{"name": "TRACKER", "value": "http://me:pw@tracker:3128"}]}, "looks like a secret"),
    # Volumes and mounts
    ({"volumes": [A_VOLUME]}, "data: is mounted nowhere"),
    ({"volume_mounts": [A_MOUNT]}, "there is no volume 'data'"),
    ({"volumes": [A_VOLUME, A_VOLUME], "volume_mounts": [A_MOUNT]}, "data: given twice"),
    ({"volumes": [{"name": "shm", "emptyDir": {}}]}, "every job has one of this name"),
    ({"volumes": [{"name": "Data", "emptyDir": {}}]}, "volumes, name='Data'"),
    ({"volumes": [{"name": "data"}]}, "needs one source"),
    ({"volumes": [{"name": "a", "emptyDir": {}, "hostPath": {"path": "/"}}]}, "emptyDir, hostPath"),
    ({"volumes": [{"name": "a", "pvc": {}}]}, "volumes[0]: unknown field 'pvc'"),
    ({"volumes": [{"name": "a", "emptyDir": {"size": "1Gi"}}]}, "volumes[0].emptyDir: unknown"),
    ({"volumes": [{"name": "a", "nfs": {"path": "/x"}}]}, "volumes[0].nfs: server is missing"),
    ({"volumes": [A_VOLUME], "volume_mounts": [{"name": "data"}]}, "mountPath is missing"),
    (
        {"volumes": [A_VOLUME], "volume_mounts": [{"name": "data", "mountPath": "data"}]},
        "an absolute path",
    ),
    (
        {"volumes": [A_VOLUME], "volume_mounts": [{"name": "data", "mountPath": "/tmp/"}]},
        "would lie over /tmp",
    ),
    (
        {"volumes": [A_VOLUME], "volume_mounts": [{"name": "data", "mountPath": "/x/../dev"}]},
        "would lie over /dev/shm",
    ),
    (
        {"volumes": [A_VOLUME], "volume_mounts": [{"name": "data", "mountPath": "/"}]},
        "would lie over",
    ),
    ({"volumes": [A_VOLUME], "volume_mounts": [A_MOUNT, A_MOUNT]}, "mounted there already"),
    # Tolerations
    ({"tolerations": ["all"]}, "tolerations"),
    ({"tolerations": [{"key": "a", "operator": "Exist"}]}, "'Exist' is not one of Exists, Equal"),
    ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "takes no value"),
    ({"tolerations": [{"operator": "Equal"}]}, "without a key the operator is Exists"),
    ({"tolerations": [{"key": "a", "effect": "NoRun"}]}, "'NoRun' is not one of NoSchedule"),
    ({"tolerations": [{"key": "a", "tolerationSeconds": 3}]}, "needs effect: NoExecute"),
    ({"tolerations": [{"key": "a", "tolerationSeconds": "3"}]}, "expected a whole number"),
    ({"tolerations": [{"key": "a", "value": "b c"}]}, "tolerations[0].value='b c'"),
    ({"tolerations": [{"keys": "a"}]}, "unknown field 'keys'; did you mean 'key'"),
    # Affinity
    ({"affinity": {"nodeAfinity": {}}}, "affinity: unknown field 'nodeAfinity'; did you mean"),
    ({"affinity": {"nodeAffinity": []}}, "affinity.nodeAffinity: expected a mapping"),
]


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        job_settings(**values)
    assert said in str(error.value)
    assert str(error.value).startswith("job setting ")
    assert "\n" not in str(error.value)


def test_the_builder_refuses_as_well_what_was_not_read_from_key_value() -> None:
    with pytest.raises(ConfigError, match="memory='16GB'"):
        job_object(pretraining(), JobSettings(memory="16GB"))


def _node_affinity(**requirement: Any) -> dict[str, Any]:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


@pytest.mark.parametrize(
    ("affinity", "said"),
    [
        (_node_affinity(key="a", operator="in", values=["b"]), "'in' is not one of In, NotIn"),
        (_node_affinity(key="a", operator="In"), "operator In needs values"),
        (_node_affinity(key="a", operator="Exists", values=["b"]), "takes no values"),
        (_node_affinity(key="a", operator="Gt", values=["b"]), "needs one whole number"),
        (_node_affinity(key="a b", operator="Exists"), "'a b'"),
        (_node_affinity(operator="Exists"), "matchExpressions[0]: key is missing"),
        (
            {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}
                }
            },
            "needs at least one",
        ),
        (
            {
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 0, "podAffinityTerm": {"topologyKey": "zone"}}
                    ]
                }
            },
            "weight=0: from 1 to 100",
        ),
        (
            {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}},
            "[0]: topologyKey is missing",
        ),
    ],
)
def test_affinity_refused(affinity: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        job_settings(affinity=affinity)
    assert said in str(error.value)
    assert str(error.value).startswith("job setting affinity.")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"priority_class": "high"}, "priority_class: a TrainJob takes it from its runtime"),
        ({"image_pull_policy": "Always"}, "image_pull_policy: a TrainJob takes it from"),
        ({"topology_spread": [SPREAD]}, "topology_spread: a TrainJob takes it from its runtime"),
        ({"backoff_limit": 1}, "backoff_limit"),
        ({"clean_pods": "All"}, "clean_pods"),
        ({"tolerations": [{"operator": "Exists"}] * 129}, "a TrainJob holds 128; use"),
        ({"image_pull_secrets": [f"s{i}" for i in range(65)]}, "a TrainJob holds 64; use"),
        (
            {
                "volumes": [A_VOLUME],
                "volume_mounts": [A_MOUNT, {"name": "data", "mountPath": "/elsewhere"}],
            },
            "a TrainJob mounts a volume once",
        ),
    ],
)
def test_what_a_train_job_cannot_say_is_refused_not_dropped(
    values: dict[str, Any], said: str
) -> None:
    job_settings(**values)  # another kind can
    with pytest.raises(ConfigError, match=said):
        job_settings(kind="trainjob", **values)


ALLOWED: list[dict[str, Any]] = [
    {"memory": "1.5Gi", "shm": "1.5Gi", "cpu": "250m", "cpu_limit": ".25"},
    {"memory": "1e9", "shm": "1M", "scratch": "1Ti"},
    {"image": "percmae"},
    {"image": "localhost:5000/a/b_c--d.e:Tag_1.0-x"},
    {"image": "registry.example.com/a/b:1@sha256:" + "a" * 64},
    {"labels": {"a": "", "example.com/A.b_c-d": "1.0"}},
    {"annotations": {"example.com/any": "thing {}: ü\n"}},
    {"queue": "q" * 63, "service_account": "a.b-c.d"},
    {"env": [{"name": "TOKENIZERS_PARALLELISM", "value": "false"}]},
    {"env": [{"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": "/var/run/token"}]},
    {"env": [{"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": "/secrets/gcp.json"}]},
    {"env": [{"name": "MY_TOKEN", "value": "$(OTHER)"}, {"name": "PET_RDZV_CONF", "value": "a=1"}]},
    {"env": [{"name": "EMPTY"}]},
    {"gpu_resource": "nvidia.com/mig-1g.10gb"},
    {"kind": "pytorchjob", "gpus": 0, "nodes": 4},
    {"volume_mounts": [{"name": "scratch", "mountPath": "/var/cache", "subPath": "cache"}]},
]


@pytest.mark.parametrize("values", ALLOWED)
def test_allowed(values: dict[str, Any]) -> None:
    job_object(pretraining(), job_settings(**values))


def test_a_training_that_expects_other_pods_is_refused() -> None:
    refused = [
        ("trainer.num_nodes=2", {}, "trainer.num_nodes=2, but job setting nodes=1"),
        ("trainer.num_nodes=4", {"nodes": 2}, "job setting nodes=2"),
        ("trainer.num_nodes=4", {"nodes": 4, "min_nodes": 2}, "an elastic job"),
        ("trainer.devices=1", {"gpus": 4}, "one GPU of a machine"),
        ("optim.total_batch=4096", {"nodes": 3}, "data.batch_size=8 on 3 processes"),
        ("optim.total_batch=8", {"gpus": 2}, "(job settings nodes=1, gpus=2)"),
        ("optim.total_batch=256", {"nodes": 4, "min_nodes": 2}, "on 3 processes"),
        ("optim.total_batch=null", {"nodes": 4, "min_nodes": 2}, "set optim.total_batch"),
    ]
    for override, values, said in refused:
        with pytest.raises(ConfigError, match=re.escape(said)):
            job_object(pretraining(override), job_settings(**values))
    job_object(pretraining("trainer.num_nodes=4"), job_settings(nodes=4))
    job_object(pretraining("trainer.devices=0"), job_settings(gpus=1))
    job_object(pretraining("optim.total_batch=768"), job_settings(nodes=4, min_nodes=2))
    job_object(pretraining("optim.total_batch=null"), job_settings(nodes=3, gpus=7))


def _spoiled(change: dict[str, Any], **values: Any) -> dict[str, Any]:
    job = json.loads(json.dumps(job_object(pretraining(), job_settings(**values))))
    job["spec"].update(change)
    return job


def test_the_rules_of_the_operators_webhook() -> None:
    job = _spoiled({}, nodes=2)
    check_object(job)
    master, worker = (job["spec"]["pytorchReplicaSpecs"][r] for r in ("Master", "Worker"))

    def replicas(**of: Any) -> dict[str, Any]:
        return _spoiled({"pytorchReplicaSpecs": of}, nodes=2)

    unnamed = json.loads(json.dumps(worker))
    unnamed["template"]["spec"]["containers"][0]["name"] = "main"
    blank = json.loads(json.dumps(worker))
    blank["template"]["spec"]["containers"][0]["image"] = ""
    for spoiled, said in [
        (_spoiled({"elasticPolicy": {}}), "consists of workers"),
        (replicas(Master=master, Worker={**worker, "replicas": 0}), "0 pods of role Worker"),
        (replicas(Master={**master, "replicas": 2}), "2 pods of role Master"),
        (replicas(Chief=master), "'Chief' is not one of Master, Worker"),
        (replicas(Worker=unnamed), "must be called pytorch"),
        (replicas(Worker=blank), "without an image"),
    ]:
        with pytest.raises(ConfigError, match=said):
            check_object(spoiled)


def test_names_that_would_not_fit_are_refused() -> None:
    job = _spoiled({}, nodes=2)
    for name in ("1a", "A", "a_b", "a-", "", "a" * 64):
        job["metadata"]["name"] = name
        with pytest.raises(ConfigError, match="job name"):
            check_object(job)
    for kind in ("pytorchjob", "trainjob"):
        job = _spoiled({}, nodes=2, kind=kind)
        job["metadata"]["name"] = "a" * 60  # itself short enough, its pods' names are not
        with pytest.raises(ConfigError, match="pod name"):
            check_object(job)


def test_an_owner_that_cannot_be_found_again_is_refused() -> None:
    with pytest.raises(ConfigError, match="uid is missing"):
        job_object(pretraining(), job_settings(), {**OWNER, "uid": ""})


def test_an_image_that_is_not_pinned_is_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    def said(image: str) -> str:
        warn_unpinned(image)
        return capsys.readouterr().err

    assert "WARNING: image percmae-train:1.0 is not pinned by digest:" in said("percmae-train:1.0")
    for moving in ("a", "a:latest", "localhost:5000/a"):
        assert "latest" in said(moving)
    assert said("a:1@sha256:" + "0" * 64) == ""


def test_the_store_is_configured_by_the_same_names_under_every_kind() -> None:
    from percmae.storage import settings as storage
    from percmae.storage.outage import OUTAGE_VARIABLE

    read = {*storage.ENDPOINT_VARIABLES, *storage.REGION_VARIABLES, storage.RETRY_VARIABLE}
    read.add(OUTAGE_VARIABLE)
    assert read <= set(STORE_VARIABLES)
    assert set(STORE_VARIABLES) - read == {"AWS_CA_BUNDLE", "SSL_CERT_FILE"}
    assert set(storage._from_environment(dict.fromkeys(STORE_VARIABLES, "x"))) == {
        "endpoint",
        "region",
        "ca_file",
    }


def test_without_the_kubernetes_package_only_raw_parts_need_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes._fields.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "kubernetes", None)
    job_object(pretraining(), job_settings())
    with pytest.raises(UserError, match=r"pip install 'percmae\[pipelines\]'"):
        job_settings(tolerations=[{"operator": "Exists"}])
    monkeypatch.undo()
    job_settings(tolerations=[{"operator": "Exists"}])
