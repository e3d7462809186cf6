"""The overlays under k8s/, built by kubectl: valid, whole, and fitting together."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from jobs.validation import OLDEST, validate
from percmae import __version__
from percmae.doctor import cluster
from percmae.jobs.manifests import FOLDERS, Folder
from percmae.jobs.names import (
    BUCKET_VARIABLE,
    KFP_ACCOUNTS,
    KFP_SECRET,
    LAUNCHER,
    STORE_NOTES,
    STORE_ROOT,
    Object,
)
from percmae.jobs.schema import JobSettings
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object
from pipelines.pod import PodSettings

from .kustomized import (
    K8S,
    KUBECTLS,
    NAMESPACES,
    OVERLAYS,
    PLACE,
    build,
    committed,
    containers,
    of_kind,
    pod_labels,
    pods,
    selects,
    templates,
    unordered,
    with_components,
)
from .works import pretraining

# --- kustomizations


@pytest.mark.parametrize("kubectl", KUBECTLS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_build_and_validate(overlay: str, kubectl: str | None) -> None:
    objects = build(overlay, kubectl)
    for each in objects:
        if each["kind"] != "LocalQueue":  # Kueue's
            validate(each)
            validate(each, OLDEST)
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(set(names)) == len(names)
    namespace = NAMESPACES.get(overlay, "percmae")
    for each in objects:
        expected = None if each["kind"] == "Namespace" else namespace
        assert each["metadata"].get("namespace") == expected
        for subject in each.get("subjects", []):
            assert subject["namespace"] == namespace


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_kubectl_builds_the_same(overlay: str) -> None:
    if len(KUBECTLS) < 2:
        pytest.skip("give several in PERCMAE_KUBECTL to compare what they build")

    first, *others = (unordered(build(overlay, kubectl)) for kubectl in KUBECTLS)
    for other in others:
        assert other == first


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_referred_to_is_there(overlay: str) -> None:
    objects = build(overlay, KUBECTLS[0])
    # Beside KFP the ConfigMap says which; everywhere else it has the ConfigMap's own name.
    (config,) = of_kind(objects, "ConfigMap").values()
    secret = config["metadata"].get("annotations", {}).get("percmae.dev/secret", "percmae-store")
    jobs = [job for place in FOLDERS if place.folder == f"{overlay}/jobs" for job in _jobs(place)]
    # MinIO's root user has one of its own.
    assert list(pods(objects))
    for pod in pods([*objects, *jobs]):
        assert pod["serviceAccountName"] in of_kind(objects, "ServiceAccount")
        for volume in pod["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in of_kind(objects, "PersistentVolumeClaim")
        for container in containers(pod):
            for source in container.get("envFrom", []):
                assert source["configMapRef"]["name"] in of_kind(objects, "ConfigMap")
            for entry in container["env"]:
                if "valueFrom" in entry:
                    root = _is_root(container, entry)
                    expected = STORE_ROOT if root else secret
                    assert entry["valueFrom"]["secretKeyRef"]["name"] == expected
    assert of_kind(objects, "Secret") == {}, "no secret is committed"
    for job in jobs:
        queue = job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
        assert queue is None or queue in of_kind(objects, "LocalQueue")


def _is_root(container: Object, entry: Object) -> bool:
    """Whether a variable is MinIO's root user: in MinIO, and in what makes the user of the jobs."""
    made = container["name"] == "user" and entry["name"].startswith("AWS_")
    return made or entry["name"].startswith("MINIO_ROOT_")


def _jobs(place: Folder) -> list[Object]:
    return list(committed(place).values())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_confined(overlay: str) -> None:
    for pod in pods(build(overlay, KUBECTLS[0])):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert "cpu" in container["resources"]["requests"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_is_in_a_mesh(overlay: str) -> None:
    """A sidecar keeps jobs from ending, and those without one from a store that has one."""
    labels = list(pod_labels(build(overlay, KUBECTLS[0])))
    assert labels
    for each in labels:
        assert each["sidecar.istio.io/inject"] == "false"


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_openshift_gives_users_and_groups_itself(overlay: str, tmp_path: Path) -> None:
    objects = with_components(overlay, ["components/openshift"], tmp_path)
    left = [pod["securityContext"] for pod in pods(objects)]
    assert left
    for security in left:
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(security)
        assert security["runAsNonRoot"] is True


def test_the_oldest_kubernetes_is_stated() -> None:
    said = f"Kubernetes {'.'.join(map(str, cluster.OLDEST_KUBERNETES))} or newer"
    assert said in (K8S / "README.md").read_text()
    assert said in (K8S.parent / "README.md").read_text()


def test_images_are_this_version_or_pinned_by_digest() -> None:
    ours = {f"percmae-{name}:{__version__}" for name in ("train", "pipeline")}
    objects = [
        *build("overlays/gpu", KUBECTLS[0]),
        *(job for place in FOLDERS for job in _jobs(place)),
    ]
    images = {c["image"] for pod in pods(objects) for c in containers(pod)}
    assert images & ours
    for image in images - ours:
        assert re.search(r":RELEASE\.[^@]+@sha256:[0-9a-f]{64}$", image), image


def test_the_list_of_images_is_whole() -> None:
    done = subprocess.run(
        ["make", "--silent", "image-list"], cwd=K8S.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    listed = done.stdout.split()
    assert {f"percmae-{name}:{__version__}" for name in ("train", "pipeline")} <= set(listed)
    for overlay in OVERLAYS:
        used = {c["image"] for pod in pods(build(overlay, KUBECTLS[0])) for c in containers(pod)}
        assert used <= set(listed), overlay
    assert len(listed) == len(set(listed))


def test_the_launcher_has_the_rights_that_doctor_asks_for_and_no_others() -> None:
    objects = build("base", KUBECTLS[0])
    granted = [
        (rule["apiGroups"], rule["resources"], tuple(rule["verbs"]))
        for rule in of_kind(objects, "Role")[LAUNCHER]["rules"]
    ]
    assert granted == [([group], [resource], verbs) for group, resource, verbs in cluster.RIGHTS]
    assert of_kind(objects, "ClusterRole") == of_kind(objects, "ClusterRoleBinding") == {}
    (binding,) = of_kind(objects, "RoleBinding").values()
    assert [subject["name"] for subject in binding["subjects"]] == [LAUNCHER]


STORES = {
    "overlays/external-s3": ("https://s3.us-east-1.amazonaws.com", "s3://percmae", "percmae-store"),
    "overlays/kfp": ("http://seaweedfs.kubeflow:9000", "s3://percmae", KFP_SECRET),
    "overlays/kfp-minio": ("http://minio-service.kubeflow:9000", "s3://percmae", KFP_SECRET),
    "overlays/kfp-s3": ("https://s3.us-east-1.amazonaws.com", "s3://percmae", "percmae-store"),
    "overlays/kfp-profile": (
        "http://seaweedfs.kubeflow:9000",
        "s3://mlpipeline/private-artifacts/my-profile/percmae",
        KFP_SECRET,
    ),
}


@pytest.mark.parametrize("overlay", STORES)
def test_a_store_elsewhere_is_said_in_one_place(overlay: str) -> None:
    objects = build(overlay, KUBECTLS[0])
    config = of_kind(objects, "ConfigMap")["percmae-store"]
    endpoint, bucket, secret = STORES[overlay]
    assert config["data"]["AWS_ENDPOINT_URL"] == endpoint
    assert config["data"][BUCKET_VARIABLE] == bucket
    assert {config["metadata"]["annotations"][note] for note in STORE_NOTES.values()} == {
        secret, "accesskey", "secretkey"
    }  # fmt: skip
    assert PodSettings().store_secret == KFP_SECRET
    words = [word for pod in pods(objects) for each in containers(pod) for word in each["command"]]
    assert {f"$({BUCKET_VARIABLE})", f"$({BUCKET_VARIABLE})/runs"} < set(words)
    assert not any(word.startswith("s3://") for word in words)


@pytest.mark.parametrize("overlay", NAMESPACES)
def test_kfp_steps_may_launch(overlay: str) -> None:
    objects = build(overlay, KUBECTLS[0])
    assert not {"Namespace", "StatefulSet", "ResourceQuota"} & {o["kind"] for o in objects}
    binding = of_kind(objects, "RoleBinding")["percmae-steps"]
    assert [subject["name"] for subject in binding["subjects"]] == list(KFP_ACCOUNTS)


def test_the_example_of_the_secret_is_the_one_that_pods_read() -> None:
    defaults = JobSettings()
    keys = {defaults.store_access_key, defaults.store_secret_key}
    for file, name in (
        ("base/secret.example.yaml", defaults.store_secret),
        ("components/store/minio/secret.example.yaml", STORE_ROOT),
    ):
        example = yaml.safe_load((K8S / file).read_text())
        validate(example)
        assert example["metadata"]["name"] == name
        assert example["stringData"] == dict.fromkeys(keys, "CHANGE-ME")


# --- limits


QUANTITY = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text: str) -> float:
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", text)
    assert match, text
    return int(match[1]) * QUANTITY[match[2]]


@pytest.mark.parametrize("overlay", ["overlays/gpu", "overlays/multi-node"])
def test_the_largest_job_fits_into_the_quota(overlay: str) -> None:
    objects = build(overlay, KUBECTLS[0])
    hard = of_kind(objects, "ResourceQuota")["percmae"]["spec"]["hard"]
    assert not any("limits.cpu" in key for key in hard), "jobs have no CPU limit"
    for job in _jobs(PLACE[f"{overlay}/jobs"]):
        if job["kind"] != "PyTorchJob":
            continue
        used = dict.fromkeys(("cpu", "memory", "nvidia.com/gpu"), 0.0)
        for replica in job["spec"]["pytorchReplicaSpecs"].values():
            (container,) = replica["template"]["spec"]["containers"]
            for key in used:
                asked = quantity(container["resources"]["requests"][key])
                used[key] += replica["replicas"] * asked
        # Beside it there is room for MinIO and TensorBoard.
        for pod in pods(objects):
            for container in containers(pod):
                for key in ("cpu", "memory"):
                    used[key] += quantity(container["resources"]["requests"][key])
        for key, value in used.items():
            assert value <= quantity(hard[f"requests.{key}"]), (job["metadata"]["name"], key)
    (defaults,) = of_kind(objects, "LimitRange")["percmae"]["spec"]["limits"]
    assert "cpu" not in defaults["default"], "it would become a CPU limit of trainings"
    assert "max" not in defaults


def test_a_quota_beside_kfp_finds_what_its_own_containers_do_not_say(tmp_path: Path) -> None:
    """Disks are for nobody but the namespace to size: KFP can say nothing of them for a step."""
    shutil.copytree(K8S, tmp_path / "k8s")
    overlay = tmp_path / "k8s/overlays/kfp"
    file = overlay / "kustomization.yaml"
    parts = yaml.safe_load(file.read_text())
    parts["components"].append("../../components/limits")
    file.write_text(yaml.safe_dump(parts))
    objects = build(str(overlay), KUBECTLS[0])
    limits = of_kind(objects, "LimitRange")["percmae"]
    validate(limits)
    assert limits["metadata"]["namespace"] == "kubeflow"
    (defaults,) = limits["spec"]["limits"]
    assert defaults["defaultRequest"].keys() == {"cpu", "memory", "ephemeral-storage"}
    disk = quantity(defaults["default"]["ephemeral-storage"])
    assert quantity(defaults["defaultRequest"]["ephemeral-storage"]) < disk
    assert quantity(JobSettings().scratch) < disk


# --- what an overlay may have besides


def test_the_job_of_the_bucket_is_no_drift() -> None:
    job = of_kind(build("overlays/minimal", KUBECTLS[0]), "Job")["percmae-bucket"]
    # Argo CD compares no hooks and makes them anew at each sync; Flux replaces what has changed.
    assert job["metadata"]["annotations"] == {
        "argocd.argoproj.io/hook": "Sync",
        "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation",
        "helm.sh/hook": "post-install,post-upgrade",
        "helm.sh/hook-delete-policy": "before-hook-creation",
        "kustomize.toolkit.fluxcd.io/force": "enabled",
    }
    assert job["spec"]["ttlSecondsAfterFinished"] == 300


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_with_gitops_the_job_of_the_bucket_stays(overlay: str, tmp_path: Path) -> None:
    job = of_kind(with_components(overlay, ["components/gitops"], tmp_path), "Job")[
        "percmae-bucket"
    ]
    assert "ttlSecondsAfterFinished" not in job["spec"]


def test_a_budget_stops_drains_for_trainings_alone(tmp_path: Path) -> None:
    objects = with_components("overlays/gpu", ["components/no-eviction"], tmp_path)
    (budget,) = of_kind(objects, "PodDisruptionBudget").values()
    validate(budget)
    validate(budget, OLDEST)
    # Of pods that no controller with a scale has, only a whole number is taken.
    assert isinstance(budget["spec"]["minAvailable"], int)
    for labels in pod_labels([*objects, *_jobs(PLACE["overlays/gpu/jobs"])]):
        trains = labels["app.kubernetes.io/component"] in ("pretrain", "finetune", "probe")
        assert selects(budget["spec"]["selector"], labels) == trains
    assert not of_kind(build("overlays/gpu", KUBECTLS[0]), "PodDisruptionBudget"), "asked for only"


@pytest.mark.parametrize("overlay", ["overlays/gpu", "overlays/kfp-profile"])
def test_prometheus_finds_trainings_and_may_ask_them(overlay: str, tmp_path: Path) -> None:
    """(The definitions of its operator are not at hand: what it reads is looked at here.)"""
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s" / overlay / "kustomization.yaml"
    parts = yaml.safe_load(file.read_text())
    parts.setdefault("components", []).append("../../components/monitoring")
    file.write_text(yaml.safe_dump(parts))
    objects = build(str(file.parent), KUBECTLS[0])
    monitor = of_kind(objects, "PodMonitor")["percmae-trainings"]
    alerts = of_kind(objects, "PrometheusRule")["percmae-trainings"]
    policy = of_kind(objects, "NetworkPolicy")["percmae-figures-for-prometheus"]
    validate(policy)
    validate(policy, OLDEST)
    namespace = NAMESPACES.get(overlay, "percmae")
    for made in (monitor, alerts):
        assert made["apiVersion"] == "monitoring.coreos.com/v1"
        assert made["metadata"]["namespace"] == namespace
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    ((source,), (port,)) = (policy["spec"]["ingress"][0][key] for key in ("from", "ports"))
    assert source["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}
    assert endpoint["port"] == port["port"]
    for job in _jobs(PLACE["overlays/gpu/jobs"]):
        for template in templates([job]):
            labels = template["metadata"]["labels"]
            (main,) = template["spec"]["containers"]
            ports = {each["name"] for each in main.get("ports", [])}
            trains = labels["app.kubernetes.io/component"] in ("pretrain", "finetune", "probe")
            for selector in (monitor["spec"]["selector"], policy["spec"]["podSelector"]):
                assert selects(selector, labels) == trains
            assert ports == ({endpoint["port"]} if trains else set())
            assert set(monitor["spec"]["podTargetLabels"]) <= labels.keys()
    (group,) = alerts["spec"]["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [
        *("PercmaeNoStep", "PercmaeCheckpointOld", "PercmaeStoreFailing")
    ]
    for rule in group["rules"]:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_who_tells_mlflow_may_reach_it(tmp_path: Path) -> None:
    objects = with_components("overlays/gpu", ["components/mlflow"], tmp_path)
    policy = of_kind(objects, "NetworkPolicy")["percmae-reach-mlflow"]
    validate(policy)
    validate(policy, OLDEST)
    tells = ("pretrain", "finetune", "probe", "evaluate")
    for labels in pod_labels(_jobs(PLACE["overlays/gpu/jobs"])):
        expected = labels["app.kubernetes.io/component"] in tells
        assert selects(policy["spec"]["podSelector"], labels) == expected


def test_the_priority_class_is_one_that_jobs_can_have() -> None:
    made = yaml.safe_load((K8S / "admin/priority-class.yaml").read_text())
    validate(made)
    validate(made, OLDEST)
    assert made["preemptionPolicy"] == "Never"
    settings = job_settings([f"priority_class={made['metadata']['name']}"])
    (pod,) = pods([job_object(pretraining(), settings)])
    assert pod["priorityClassName"] == made["metadata"]["name"]
