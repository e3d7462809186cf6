"""``percmae doctor --cluster``: whether a cluster has what our jobs need, and what mends it.

Most of it is asked of the API server. Two things only a try tells, so they are tried and cleared
away again: whether an operator takes up a (suspended) training, and whether a pod gets our image
and reaches the store with the keys it is given (``percmae.doctor.tries``).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from percmae.doctor.finding import Finding, show
from percmae.doctor.tries import try_operator, try_pod
from percmae.jobs.api import Api, Refused
from percmae.jobs.names import GPU_TYPE_LABEL, LAUNCHER, Object
from percmae.jobs.settings import JobSettings, job_settings

KFP_ACCOUNTS = ("pipeline-runner", "default-editor")
KFP_SECRET = "mlpipeline-minio-artifact"
# (API group, resource, verbs): what launching takes. The Role in k8s/base/rights grants just this.
RIGHTS = (
    ("kubeflow.org", "pytorchjobs", ("create", "get", "list", "watch", "patch", "delete")),
    ("trainer.kubeflow.org", "trainjobs", ("create", "get", "list", "watch", "patch", "delete")),
    ("batch", "jobs", ("create", "get", "list", "watch", "patch", "delete")),
    ("", "pods", ("get", "list", "watch")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list", "watch")),
)
OPERATOR = (
    "kubectl apply --server-side -k "
    '"github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=v1.9.4"'
)
TRAINER = (
    "kubectl apply --server-side -k "
    '"https://github.com/kubeflow/trainer.git/manifests/overlays/manager?ref=v2.3.0"'
)
DEVICE_PLUGIN = (
    "kubectl apply -f https://raw.githubusercontent.com/NVIDIA/k8s-device-plugin/v0.17.1/"
    "deployments/static/nvidia-device-plugin.yml"
)
OLDEST_KUBERNETES = (1, 29)
"""The first whose schemas take our objects as they are: before, no rule of podFailurePolicy was
about exit codes alone. A CronJob's time zone (1.27) and the rest are older."""

Line = tuple[bool, Finding]
"""A finding, and before it whether jobs need what it is about."""
Check = Callable[["Look"], Iterator[Line]]


@dataclass(frozen=True)
class Look:
    """What is looked at: a namespace of a cluster, for jobs of these settings.

    given: the names of the settings that somebody asked for; timeout: seconds for each try.
    """

    api: Api
    namespace: str
    settings: JobSettings
    given: frozenset[str]
    kfp: bool
    store: str
    timeout: float

    def path(self, resource: str, group: str = "") -> str:
        """Path of a namespaced resource; group with its version, "" for the core's v1."""
        root = f"/apis/{group}" if group else "/api/v1"
        return f"{root}/namespaces/{self.namespace}/{resource}"

    def apply(self, part: str) -> str:
        """The command that applies one part of k8s/base to this namespace."""
        if self.kfp:
            return "kubectl apply -k k8s/overlays/kfp"
        if self.namespace == "percmae":
            return f"kubectl apply -k k8s/base/{part}"
        renamed = f"sed 's/namespace: percmae/namespace: {self.namespace}/'"
        return f"kubectl kustomize k8s/base/{part} | {renamed} | kubectl apply -f -"

    @property
    def kubectl(self) -> str:
        return f"kubectl -n {self.namespace}"


def doctor_cluster(
    namespace: str | None = None,
    kfp: bool = False,
    overrides: list[str] | tuple[str, ...] = (),
    store: str = "s3://percmae",
    timeout: float = 180.0,
) -> bool:
    """Print the findings on stdout; True when nothing that jobs need is missing.

    namespace: default percmae, with kfp kubeflow; kfp: beside Kubeflow Pipelines, whose store,
    secret and accounts are used; overrides: job settings as for a launch (image=…, queue=…); store:
    the bucket; timeout: seconds for each thing that is tried. Raises ConfigError for settings that
    are none, UserError without a kubeconfig, Unreachable when no API server answers.
    """
    values: dict[str, Any] = {"store_secret": KFP_SECRET} if kfp else {}
    given = frozenset(override.partition("=")[0].strip() for override in overrides)
    settings = job_settings(overrides, **values)
    chosen = namespace or settings.namespace or ("kubeflow" if kfp else "percmae")
    look = Look(Api(), chosen, settings, given, kfp, store, timeout)
    fine = True
    for check in _CHECKS:
        fine &= _shown(check, look)
        if check is _namespace and not _there(look):
            break  # everything in it would only be missing too
    return fine


def _shown(check: Check, look: Look) -> bool:
    """Print what a check finds; False when something needed is missing."""
    fine = True
    try:
        for needed, finding in check(look):
            fine &= show(finding, needed)
    except Refused as error:
        if error.status == 401:
            raise
        what = check.__name__.strip("_").replace("_", " ")
        if error.status == 403:  # what cannot be seen may well be there
            mend = "look as somebody who may"
            return fine & show(Finding(False, what, f"may not look: {error}", mend), needed=False)
        fine &= show(Finding(False, what, f"the API server says {error.status}: {error}"), True)
    return fine


def _server(look: Look) -> Iterator[Line]:
    version = look.api.request("GET", "/version")
    found = f"{version.get('gitVersion')} at {look.api.host}"
    numbers = tuple(int(str(version.get(key, "0")).rstrip("+")) for key in ("major", "minor"))
    oldest = ".".join(map(str, OLDEST_KUBERNETES))
    mend = f"use a cluster of Kubernetes {oldest} or newer"
    yield True, Finding(numbers >= OLDEST_KUBERNETES, "Kubernetes", found, mend)


def _namespace(look: Look) -> Iterator[Line]:
    there = _there(look)
    mend = f"kubectl create namespace {look.namespace}"
    if look.namespace == "percmae":
        mend = "kubectl apply -k k8s/overlays/minimal (or gpu, multi-node)"
    yield True, Finding(there, f"namespace {look.namespace}", "there" if there else "none", mend)


def _there(look: Look) -> bool:
    try:
        return look.api.get(f"/api/v1/namespaces/{look.namespace}") is not None
    except Refused as error:
        if error.status != 403:
            raise
        return True  # those who only work in it may not look at it


def _kinds(look: Look) -> Iterator[Line]:
    for kind, group, version, resource, mend in (
        ("pytorchjob", "kubeflow.org", "v1", "pytorchjobs", OPERATOR),
        ("trainjob", "trainer.kubeflow.org", "v1alpha1", "trainjobs", TRAINER),
    ):
        served = look.api.get(f"/apis/{group}/{version}")
        names = [entry["name"] for entry in served["resources"]] if served else []
        there = resource in names
        found = f"served in {version}"
        if not there:
            found = f"not served in {version} (its group has: {_versions(look.api, group)})"
        yield look.settings.kind == kind, Finding(there, f"{resource}.{group}", found, mend)


def _versions(api: Api, group: str) -> str:
    found = api.get(f"/apis/{group}")
    return ", ".join(entry["version"] for entry in found["versions"]) if found else "nothing"


def _operator(look: Look) -> Iterator[Line]:
    kind, runtime = look.settings.kind, look.settings.runtime
    if kind == "trainjob":
        path = f"/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/{runtime}"
        there = look.api.get(path) is not None
        found = "there" if there else "none"
        mend = TRAINER.replace("overlays/manager", "overlays/runtimes")
        yield True, Finding(there, f"ClusterTrainingRuntime {runtime}", found, mend)
    # Where there is no such kind, that has been said.
    if kind == "pytorchjob" and look.api.get("/apis/kubeflow.org/v1") is not None:
        yield True, try_operator(look, OPERATOR)
    if kind == "trainjob" and look.api.get("/apis/trainer.kubeflow.org/v1alpha1") is not None:
        yield True, try_operator(look, TRAINER)


def _accounts(look: Look) -> Iterator[Line]:
    for name in (look.settings.service_account, *_launchers(look)[:1]):
        there = look.api.get(look.path(f"serviceaccounts/{name}")) is not None
        found = "there" if there else "none"
        yield True, Finding(there, f"service account {name}", found, look.apply("rights"))


def _launchers(look: Look) -> list[str]:
    """Accounts that launch: ours; beside KFP those of its steps that there are."""
    if not look.kfp:
        return [LAUNCHER]
    names = KFP_ACCOUNTS
    there = [n for n in names if look.api.get(look.path(f"serviceaccounts/{n}")) is not None]
    return there or [names[0]]


def _rights(look: Look) -> Iterator[Line]:
    for account in _launchers(look):
        for group, resource, verbs in RIGHTS:
            if not _asked_for(look, group):
                continue
            denied = [verb for verb in verbs if not _may(look, account, verb, group, resource)]
            name = f"{resource}.{group}" if group else resource
            found = f"may {', '.join(verbs)}"
            if denied:
                found = f"may not {', '.join(denied)}"
            yield True, Finding(not denied, f"{account}: {name}", found, look.apply("rights"))


def _asked_for(look: Look, group: str) -> bool:
    """Rights on a kind of job matter where such jobs are launched."""
    kinds = {"kubeflow.org": "pytorchjob", "trainer.kubeflow.org": "trainjob"}
    return kinds.get(group, look.settings.kind) == look.settings.kind


def _may(look: Look, account: str, verb: str, group: str, resource: str) -> bool:
    resource, _, subresource = resource.partition("/")
    attributes = {"namespace": look.namespace, "verb": verb, "group": group, "resource": resource}
    if subresource:
        attributes["subresource"] = subresource
    accounts = "system:serviceaccounts"
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{look.namespace}:{account}",
            "groups": [accounts, f"{accounts}:{look.namespace}", "system:authenticated"],
            "resourceAttributes": attributes,
        },
    }
    answer = look.api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
    return bool(answer["status"].get("allowed"))


def _store_config(look: Look) -> Iterator[Line]:
    name = look.settings.store_config
    found = look.api.get(look.path(f"configmaps/{name}"))
    endpoint = _first((found or {}).get("data") or {}, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    text = endpoint or ("none" if found is None else "without AWS_ENDPOINT_URL")
    yield True, Finding(endpoint is not None, f"ConfigMap {name}", text, look.apply("config"))


def _store_secret(look: Look) -> Iterator[Line]:
    settings = look.settings
    name, keys = settings.store_secret, (settings.store_access_key, settings.store_secret_key)
    if name is None:
        text = f"not asked for: service account {settings.service_account} has to have a role"
        yield True, Finding(True, "Secret of the store", text)
        return
    mend = (
        f"{look.kubectl} create secret generic {name} --from-literal={keys[0]}=percmae "
        f'--from-literal={keys[1]}="$(openssl rand -hex 20)"'
    )
    what = f"Secret {name}"
    found = look.api.get(look.path(f"secrets/{name}"))
    if found is None:
        yield True, Finding(False, what, "none", mend)
        return
    # Looked at for being there, never shown.
    data = found.get("data") or {}
    missing = [key for key in keys if not data.get(key)]
    unchanged = [k for k in keys if data.get(k) == base64.b64encode(b"CHANGE-ME").decode()]
    again = f"{look.kubectl} delete secret {name}; {mend}"
    if missing:
        yield True, Finding(False, what, f"without {' and '.join(missing)}", again)
    elif unchanged:
        yield True, Finding(False, what, "still the template's CHANGE-ME", again)
    else:
        yield True, Finding(True, what, f"has {keys[0]} and {keys[1]}")


def _first(data: dict[str, str], *keys: str) -> str | None:
    return next((data[key] for key in keys if data.get(key)), None)


def _storage_class(look: Look) -> Iterator[Line]:
    claim = look.api.get(look.path("persistentvolumeclaims/minio"))
    if claim is not None:
        phase = claim.get("status", {}).get("phase", "unknown")
        command = f"{look.kubectl} describe persistentvolumeclaim minio"
        yield False, Finding(phase == "Bound", "volume of minio", phase, f"see why: {command}")
    classes = (look.api.get("/apis/storage.k8s.io/v1/storageclasses") or {}).get("items", [])
    names = [item["metadata"]["name"] for item in classes]
    default = [item["metadata"]["name"] for item in classes if _is_default(item)]
    mend = "install a provisioner of volumes, such as rancher/local-path-provisioner"
    if names:
        key = "storageclass.kubernetes.io/is-default-class=true"
        mend = f"kubectl annotate storageclass {names[0]} {key}"
    found = ", ".join(default) or (f"none of {', '.join(names)}" if names else "there is none")
    waits = claim is not None and claim.get("status", {}).get("phase") != "Bound"
    own = claim is not None and bool(claim.get("spec", {}).get("storageClassName"))
    yield waits and not own, Finding(bool(default), "default StorageClass", found, mend)


def _is_default(item: Object) -> bool:
    notes = item["metadata"].get("annotations") or {}
    key = "storageclass.kubernetes.io/is-default-class"
    return "true" in (notes.get(key), notes.get(key.replace("storageclass.", "storageclass.beta.")))


def _gpus(look: Look) -> Iterator[Line]:
    settings, per_node = look.settings, {}
    for node in look.api.request("GET", "/api/v1/nodes")["items"]:
        kind = (node["metadata"].get("labels") or {}).get(GPU_TYPE_LABEL)
        if settings.gpu_type is not None and kind != settings.gpu_type:
            continue
        count = int((node["status"].get("allocatable") or {}).get(settings.gpu_resource, 0))
        if count:
            per_node[node["metadata"]["name"]] = count
    enough = sum(count >= max(1, settings.gpus) for count in per_node.values())
    found = f"{sum(per_node.values())} on {len(per_node)} nodes"
    if settings.gpu_type is not None:
        found += f" with {settings.gpu_type}"
    if enough < settings.nodes:
        found += f"; jobs want {settings.nodes} nodes with {max(1, settings.gpus)}"
    what = f"{settings.gpu_resource} to allocate"
    mend = f"{DEVICE_PLUGIN}; or gpus=0 to train on the CPU"
    yield (
        "gpus" in look.given and settings.gpus > 0,
        Finding(enough >= settings.nodes, what, found, mend),
    )


def _queue(look: Look) -> Iterator[Line]:
    name = look.settings.queue
    if name is None:
        return
    group = look.api.get("/apis/kueue.x-k8s.io")
    if group is None:
        mend = "install Kueue: https://kueue.sigs.k8s.io/docs/installation/"
        yield True, Finding(False, f"LocalQueue {name}", "the cluster has no Kueue", mend)
        return
    version = group["preferredVersion"]["groupVersion"]
    queue = look.api.get(look.path(f"localqueues/{name}", version))
    if queue is None:
        mend = "kubectl apply -f k8s/overlays/multi-node/queue.yaml"
        yield True, Finding(False, f"LocalQueue {name}", f"none ({version})", mend)
        return
    active = [c for c in queue.get("status", {}).get("conditions", []) if c["type"] == "Active"]
    fine = bool(active) and active[0]["status"] == "True"
    behind = queue["spec"]["clusterQueue"]
    found = f"active, before ClusterQueue {behind}"
    if not fine:
        found = active[0].get("message", "not active") if active else "Kueue has not looked at it"
    mend = "kubectl apply -f k8s/overlays/multi-node/admin/cluster-queue.yaml"
    yield True, Finding(fine, f"LocalQueue {name}", found, mend)


def _pipelines(look: Look) -> Iterator[Line]:
    if not look.kfp:
        return
    there = look.api.get(look.path("services/ml-pipeline")) is not None
    found = "there" if there else f"no Service ml-pipeline in {look.namespace}"
    mend = "install Kubeflow Pipelines, or give the namespace it is in (--namespace)"
    yield True, Finding(there, "Kubeflow Pipelines", found, mend)


def _inside(look: Look) -> Iterator[Line]:
    for finding in try_pod(look):
        yield True, finding


_CHECKS: tuple[Check, ...] = (
    _server,
    _kinds,
    _namespace,
    _pipelines,
    _operator,
    _accounts,
    _rights,
    _store_config,
    _store_secret,
    _storage_class,
    _gpus,
    _queue,
    _inside,
)
