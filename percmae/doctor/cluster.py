"""``percmae doctor --cluster``: whether a cluster has what our jobs need, and what to do where not.

Most of it is asked of the API server. Two things only a try tells, so they are tried and cleared
away again: whether an operator takes up a (suspended) training, and whether a pod gets our image
and reaches the store with the keys it is given (``percmae.doctor.tries``).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

from percmae.doctor.context import Context
from percmae.doctor.finding import Finding, show
from percmae.doctor.kfp import absent_service, pipelines
from percmae.doctor.tries import try_operator, try_pod
from percmae.jobs.client import Client, Refused
from percmae.jobs.names import (
    ACCESS_KEY,
    BUCKET,
    BUCKET_VARIABLE,
    EVENT,
    GPU_TYPE_LABEL,
    JOB,
    KFP_ACCOUNTS,
    KFP_NAMESPACE,
    KFP_SECRET,
    LAUNCHER,
    NAMESPACE,
    POD,
    PYTORCH_JOB,
    SECRET_KEY,
    STORE_NOTES,
    STORE_ROOT,
    TRAIN_JOB,
    Object,
    Resource,
)
from percmae.jobs.settings import job_settings

# (API group, resource, verbs): what launching takes. The Role in k8s/base/rights grants just this.
RIGHTS = (
    *(
        (job.group, job.plural, ("create", "get", "list", "watch", "patch", "delete"))
        for job in (PYTORCH_JOB, TRAIN_JOB, JOB)
    ),
    (POD.group, POD.plural, ("get", "list", "watch")),
    (POD.group, f"{POD.plural}/log", ("get",)),
    (EVENT.group, EVENT.plural, ("list", "watch")),
)
OPERATOR = (
    "kubectl apply --server-side -k "
    '"github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=v1.9.4"'
)
TRAINER = (
    "kubectl apply --server-side -k "
    '"https://github.com/kubeflow/trainer.git/manifests/overlays/manager?ref=v2.3.0"'
)
_OPERATORS = ((PYTORCH_JOB, OPERATOR), (TRAIN_JOB, TRAINER))
DEVICE_PLUGIN = (
    "kubectl apply -f https://raw.githubusercontent.com/NVIDIA/k8s-device-plugin/v0.17.1/"
    "deployments/static/nvidia-device-plugin.yml"
)
OLDEST_KUBERNETES = (1, 29)
"""The first whose schemas take our objects as they are: before, no rule of podFailurePolicy was
about exit codes alone. A CronJob's time zone (1.27) and the rest are older."""

Line = tuple[bool, Finding]
"""A finding, and before it whether jobs need what it is about."""
Check = Callable[[Context], Iterator[Line]]


def doctor_cluster(
    namespace: str | None = None,
    kfp: bool = False,
    overrides: list[str] | tuple[str, ...] = (),
    store: str | None = None,
    timeout: float = 180.0,
) -> bool:
    """Print the findings on stdout; True when nothing that jobs need is missing.

    namespace: default percmae, with kfp kubeflow; kfp: beside Kubeflow Pipelines, whose store,
    secret and accounts are used; overrides: job settings as for a job (image=…, queue=…); store:
    the bucket, by default as the store's ConfigMap says; timeout: seconds for each thing that is
    tried. Raises ConfigError for settings that are none, UserError without a kubeconfig,
    Unreachable when no API server answers.
    """
    given = frozenset(override.partition("=")[0].strip() for override in overrides)
    settings = job_settings(overrides)
    chosen = namespace or settings.namespace or (KFP_NAMESPACE if kfp else NAMESPACE)
    client = Client(chosen)
    config = _config(client, settings.store_config)
    if kfp:
        notes = config.get("metadata", {}).get("annotations") or {}
        said = {name: notes[key] for name, key in STORE_NOTES.items() if key in notes}
        settings = job_settings(overrides, **({"store_secret": KFP_SECRET} | said))
    bucket = store or (config.get("data") or {}).get(BUCKET_VARIABLE) or BUCKET
    context = Context(client, settings, given, kfp, bucket, timeout)
    fine = True
    for check in _CHECKS:
        fine &= _shown(check, context)
        if check is _namespace and not _there(context):
            break  # everything in it would only be missing too
    return fine


def _config(client: Client, name: str) -> Object:
    """The ConfigMap of the store; an empty one where there is none, or it may not be looked at."""
    try:
        return client.get(client.path(Resource("v1", "configmaps"), name)) or {}
    except Refused:
        return {}  # whatever is wrong comes up in its place among the findings


def _shown(check: Check, context: Context) -> bool:
    """Print what a check finds; False when something needed is missing."""
    fine = True
    try:
        for needed, finding in check(context):
            fine &= show(finding, needed)
    except Refused as error:
        if error.status == 401:
            raise
        what = check.__name__.strip("_").replace("_", " ")
        if error.status == 403:  # what cannot be seen may well be there
            found, fix = f"may not look: {error.message}", "look as somebody who may"
            return fine & show(Finding(False, what, found, fix), needed=False)
        fine &= show(Finding(False, what, f"the API server says {error.reason}"), True)
    return fine


def _server(context: Context) -> Iterator[Line]:
    version = context.client.request("GET", "/version")
    found = f"{version.get('gitVersion')} at {context.client.host}"
    numbers = tuple(int(str(version.get(key, "0")).rstrip("+")) for key in ("major", "minor"))
    oldest = ".".join(map(str, OLDEST_KUBERNETES))
    fix = f"use a cluster of Kubernetes {oldest} or newer"
    yield True, Finding(numbers >= OLDEST_KUBERNETES, "Kubernetes", found, fix)


def _namespace(context: Context) -> Iterator[Line]:
    fix = f"kubectl create namespace {context.namespace}"
    if context.namespace == NAMESPACE:
        fix = "kubectl apply -k k8s/overlays/minimal (or gpu, multi-node)"
    yield True, _presence(f"namespace {context.namespace}", _there(context), fix)


def _there(context: Context) -> bool:
    try:
        return context.client.get(f"/api/v1/namespaces/{context.namespace}") is not None
    except Refused as error:
        if error.status != 403:
            raise
        return True  # those who only work in it may not look at it


def _presence(what: str, there: bool, fix: str) -> Finding:
    return Finding(there, what, "there" if there else "none", fix)


def _kinds(context: Context) -> Iterator[Line]:
    for resource, fix in _OPERATORS:
        there = context.serves(resource)
        found = f"served in {resource.version}"
        if not there:
            versions = _versions(context.client, resource.group)
            found = f"not served in {resource.version} (its group has: {versions})"
        what = f"{resource.plural}.{resource.group}"
        yield _launches(context, resource), Finding(there, what, found, fix)


def _versions(client: Client, group: str) -> str:
    served = client.get(f"/apis/{group}")
    return ", ".join(entry["version"] for entry in served["versions"]) if served else "nothing"


def _launches(context: Context, resource: Resource) -> bool:
    """Whether trainings are to be jobs of this kind."""
    return context.settings.kind == resource.kind.lower()


def _operator(context: Context) -> Iterator[Line]:
    if _launches(context, TRAIN_JOB):
        name = context.settings.runtime
        path = f"/apis/{TRAIN_JOB.api_version}/clustertrainingruntimes/{name}"
        fix = TRAINER.replace("overlays/manager", "overlays/runtimes")
        there = context.client.get(path) is not None
        yield True, _presence(f"ClusterTrainingRuntime {name}", there, fix)
    for resource, fix in _OPERATORS:
        # Where there is no such kind, that has been said.
        if _launches(context, resource) and context.serves(resource):
            yield True, try_operator(context, resource, fix)


def _accounts(context: Context) -> Iterator[Line]:
    for name in (context.settings.service_account, *_launchers(context)[:1]):
        there = context.find("serviceaccounts", name) is not None
        yield True, _presence(f"service account {name}", there, context.apply("rights"))


def _launchers(context: Context) -> list[str]:
    """Accounts that launch: ours; beside KFP those of its steps that there are."""
    if not context.kfp:
        return [LAUNCHER]
    there = [name for name in KFP_ACCOUNTS if context.find("serviceaccounts", name) is not None]
    return there or [KFP_ACCOUNTS[0]]


def _rights(context: Context) -> Iterator[Line]:
    # Rights on a kind of training matter where there are such; other stages are always Jobs.
    others = {job.group for job in (PYTORCH_JOB, TRAIN_JOB) if not _launches(context, job)}
    for account in _launchers(context):
        for group, resource, verbs in RIGHTS:
            if group in others:
                continue
            denied = [verb for verb in verbs if not _may(context, account, verb, group, resource)]
            name = f"{resource}.{group}" if group else resource
            found = f"may {', '.join(verbs)}"
            if denied:
                found = f"may not {', '.join(denied)}"
            yield True, Finding(not denied, f"{account}: {name}", found, context.apply("rights"))


def _may(context: Context, account: str, verb: str, group: str, resource: str) -> bool:
    namespace, accounts = context.namespace, "system:serviceaccounts"
    resource, _, subresource = resource.partition("/")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
    if subresource:
        attributes["subresource"] = subresource
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:{account}",
            "groups": [accounts, f"{accounts}:{namespace}", "system:authenticated"],
            "resourceAttributes": attributes,
        },
    }
    reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    answer = context.client.request("POST", reviews, body)
    return bool(answer["status"].get("allowed"))


def _store_config(context: Context) -> Iterator[Line]:
    name = context.settings.store_config
    config = context.find("configmaps", name)
    endpoint = _first((config or {}).get("data") or {}, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    found = endpoint or ("none" if config is None else "without AWS_ENDPOINT_URL")
    fine, apply = endpoint is not None, context.apply("config")
    if endpoint is not None and (absent := absent_service(context, endpoint)):
        fine, found = False, f"{endpoint}, but {absent}"
    yield True, Finding(fine, f"ConfigMap {name}", found, apply)


def _store_secret(context: Context) -> Iterator[Line]:
    settings = context.settings
    name, keys = settings.store_secret, (settings.store_access_key, settings.store_secret_key)
    if name is None:
        role = f"not asked for: service account {settings.service_account} has to have a role"
        yield True, Finding(True, "Secret of the store", role)
        return
    found = _secret(context, name, keys, "percmae")
    if found.fine and context.kfp and name != KFP_SECRET:
        said = f"{found.found}; submit, schedule and compile take --store-secret {name}"
        found = found._replace(found=said)
    yield True, found
    # A MinIO of ours has a root user, whose keys no job has.
    if context.find("statefulsets", "minio", "apps/v1") is not None:
        yield True, _secret(context, STORE_ROOT, (ACCESS_KEY, SECRET_KEY), "root")


def _secret(context: Context, name: str, keys: tuple[str, str], user: str) -> Finding:
    """Whether a secret has both entries; ``user``: for the command that makes it."""
    fix = (
        f"{context.kubectl} create secret generic {name} --from-literal={keys[0]}={user} "
        f'--from-literal={keys[1]}="$(openssl rand -hex 20)"'
    )
    what = f"Secret {name}"
    secret = context.find("secrets", name)
    if secret is None:
        return Finding(False, what, "none", fix)
    # Looked at for being there, never shown.
    data = secret.get("data") or {}
    missing = [key for key in keys if not data.get(key)]
    unchanged = [k for k in keys if data.get(k) == base64.b64encode(b"CHANGE-ME").decode()]
    again = f"{context.kubectl} delete secret {name}; {fix}"
    if missing:
        return Finding(False, what, f"without {' and '.join(missing)}", again)
    if unchanged:
        return Finding(False, what, "still the template's CHANGE-ME", again)
    return Finding(True, what, f"has {keys[0]} and {keys[1]}")


def _first(data: dict[str, str], *keys: str) -> str | None:
    return next((data[key] for key in keys if data.get(key)), None)


def _storage_class(context: Context) -> Iterator[Line]:
    claims = ((name, context.find("persistentvolumeclaims", name)) for name in _VOLUMES)
    store, claim = next((each for each in claims if each[1] is not None), ("", None))
    if claim is not None:
        phase = claim.get("status", {}).get("phase", "unknown")
        command = f"{context.kubectl} describe persistentvolumeclaim {store}"
        yield False, Finding(phase == "Bound", f"volume of {store}", phase, f"see why: {command}")
    classes = (context.client.get("/apis/storage.k8s.io/v1/storageclasses") or {}).get("items", [])
    names = [item["metadata"]["name"] for item in classes]
    default = [item["metadata"]["name"] for item in classes if _is_default(item)]
    fix = "install a provisioner of volumes, such as rancher/local-path-provisioner"
    if names:
        key = "storageclass.kubernetes.io/is-default-class=true"
        fix = f"kubectl annotate storageclass {names[0]} {key}"
    found = ", ".join(default) or (f"none of {', '.join(names)}" if names else "there is none")
    waits = claim is not None and claim.get("status", {}).get("phase") != "Bound"
    own = claim is not None and bool(claim.get("spec", {}).get("storageClassName"))
    yield waits and not own, Finding(bool(default), "default StorageClass", found, fix)


_VOLUMES = ("minio", "seaweedfs")
"""Of the stores in k8s/components/store."""


def _is_default(item: Object) -> bool:
    notes = item["metadata"].get("annotations") or {}
    key = "storageclass.kubernetes.io/is-default-class"
    return "true" in (notes.get(key), notes.get(key.replace("storageclass.", "storageclass.beta.")))


def _gpus(context: Context) -> Iterator[Line]:
    settings, per_node = context.settings, {}
    if settings.gpus == 0:
        return
    for node in context.client.request("GET", "/api/v1/nodes")["items"]:
        kind = (node["metadata"].get("labels") or {}).get(GPU_TYPE_LABEL)
        if settings.gpu_type is not None and kind != settings.gpu_type:
            continue
        count = int((node["status"].get("allocatable") or {}).get(settings.gpu_resource, 0))
        if count:
            per_node[node["metadata"]["name"]] = count
    enough = sum(count >= settings.gpus for count in per_node.values())
    found = f"{sum(per_node.values())} on {len(per_node)} nodes"
    if settings.gpu_type is not None:
        found += f" with {settings.gpu_type}"
    if enough < settings.nodes:
        found += f"; jobs want {settings.nodes} nodes with {settings.gpus}"
    what = f"{settings.gpu_resource} to allocate"
    fix = f"{DEVICE_PLUGIN}; or gpus=0 to train on the CPU"
    yield "gpus" in context.given, Finding(enough >= settings.nodes, what, found, fix)


def _queue(context: Context) -> Iterator[Line]:
    name = context.settings.queue
    if name is None:
        return
    group = context.client.get("/apis/kueue.x-k8s.io")
    if group is None:
        fix = "install Kueue: https://kueue.sigs.k8s.io/docs/installation/"
        yield True, Finding(False, f"LocalQueue {name}", "the cluster has no Kueue", fix)
        return
    version = group["preferredVersion"]["groupVersion"]
    queue = context.find("localqueues", name, version)
    if queue is None:
        fix = "kubectl apply -f k8s/overlays/multi-node/queue.yaml"
        yield True, Finding(False, f"LocalQueue {name}", f"none ({version})", fix)
        return
    active = [c for c in queue.get("status", {}).get("conditions", []) if c["type"] == "Active"]
    fine = bool(active) and active[0]["status"] == "True"
    behind = queue["spec"]["clusterQueue"]
    found = f"active, before ClusterQueue {behind}"
    if not fine:
        found = active[0].get("message", "not active") if active else "Kueue has not looked at it"
    fix = "kubectl apply -f k8s/overlays/multi-node/admin/cluster-queue.yaml"
    yield True, Finding(fine, f"LocalQueue {name}", found, fix)


def _inside(context: Context) -> Iterator[Line]:
    for finding in try_pod(context):
        yield True, finding


_CHECKS: tuple[Check, ...] = (
    _server,
    _kinds,
    _namespace,
    pipelines,
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
