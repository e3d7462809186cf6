"""What the API server or the training operator would refuse, told before they are asked.

``check_settings`` looks at what is asked for and names the setting; ``check_fit`` at what the work
and the settings want of each other; ``check_object`` at the finished object, by the rules of
training-operator 1.9's validating webhook and of Kubeflow Trainer's schema.
"""

from __future__ import annotations

import dataclasses
import re

from percmae.config import Config
from percmae.errors import ConfigError
from percmae.jobs.names import (
    GPU_TYPE_LABEL,
    LONGEST_LABEL,
    NODE,
    PYTORCH,
    PYTORCH_JOB,
    QUEUE_LABEL,
    TRAIN_JOB,
    Object,
    is_pinned,
)
from percmae.jobs.parts import (
    OWN_VOLUMES,
    check_affinity,
    check_env,
    check_tolerations,
    check_topology_spread,
    check_volumes,
)
from percmae.jobs.schema import SHARED, JobSettings
from percmae.jobs.syntax import (
    cores,
    dns_label,
    entry,
    image,
    job_name,
    label_value,
    memory,
    qualified_name,
    quantity,
    subdomain,
)
from percmae.jobs.work import Work
from percmae.progress import warn

MOST_ENTRIES = 128
"""Entries of a list in a TrainJob."""
# What a TrainJob takes from its runtime, and can say nothing about.
_OF_THE_RUNTIME = ("image_pull_policy", "priority_class", "backoff_limit", "clean_pods")
_LONGEST_INT32 = 2**31 - 1
# Labels and annotations that others look for, and must find as they were put there.
_RESERVED = re.compile(
    r"app\.kubernetes\.io/(name|component|instance|version|part-of|managed-by)$|percmae\.dev/|"
    r"training\.kubeflow\.org/|trainer\.kubeflow\.org/|batch\.kubernetes\.io/|jobset\.sigs\.k8s\.io/"
)


def check_settings(settings: JobSettings, stage: str | None = None) -> None:
    """stage: whose job they are for, where that is known already.

    Raises ConfigError naming the setting for the first thing that no cluster would take."""
    _check_kind(settings, stage)
    image(settings.image, "job setting image")
    _check_names(settings)
    _check_sizes(settings)
    _check_resources(settings)
    _check_labels(settings)
    check_env(settings.env)
    check_volumes(settings.volumes, settings.volume_mounts)
    check_tolerations(settings.tolerations)
    check_affinity(settings.affinity)
    check_topology_spread(settings.topology_spread)
    if settings.kind == "trainjob":
        _check_runtime(settings)


def _check_kind(settings: JobSettings, stage: str | None) -> None:
    """What a kind of job can do at all."""
    if settings.kind == "job" and settings.nodes > 1 and stage not in SHARED:
        raise ConfigError(
            f"job setting nodes={settings.nodes}: a plain job has one pod (but for "
            f"{', '.join(SHARED)}); use kind=pytorchjob"
        )
    if settings.min_nodes is not None:
        if settings.kind != "pytorchjob":
            raise ConfigError("job setting min_nodes: elastic training needs kind=pytorchjob")
        if settings.min_nodes > settings.nodes:
            raise ConfigError(
                f"job setting min_nodes={settings.min_nodes} is more than nodes={settings.nodes}"
            )
    if settings.volcano_queue is not None and settings.kind != "pytorchjob":
        raise ConfigError("job setting volcano_queue: needs kind=pytorchjob")
    if settings.queue is not None and settings.volcano_queue is not None:
        raise ConfigError("job settings queue and volcano_queue: a job waits in one queue only")


def _check_names(settings: JobSettings) -> None:
    if settings.namespace is not None:
        dns_label(settings.namespace, "job setting namespace")
    for key in ("service_account", "priority_class", "volcano_queue", "runtime", "store_secret"):
        if (value := getattr(settings, key)) is not None:
            subdomain(value, f"job setting {key}")
    subdomain(settings.store_config, "job setting store_config")
    for name in settings.image_pull_secrets:
        subdomain(name, "job setting image_pull_secrets")
        if settings.image_pull_secrets.count(name) > 1:
            raise ConfigError(f"job setting image_pull_secrets: {name} is given twice")
    if settings.queue is not None:  # the value of a label as well
        subdomain(settings.queue, "job setting queue", 63)
    for key in ("store_access_key", "store_secret_key", "store_session_token"):
        entry(getattr(settings, key), f"job setting {key}")


def _check_sizes(settings: JobSettings) -> None:
    settings = settings.for_stage("", trains=True)  # sizes that are not given
    cpu = cores(settings.cpu or "", "job setting cpu")
    if settings.cpu_limit is not None and cores(settings.cpu_limit, "job setting cpu_limit") < cpu:
        raise ConfigError(
            f"job setting cpu_limit={settings.cpu_limit} is less than cpu={settings.cpu}, which is "
            "promised; raise it or lower cpu"
        )
    total = memory(settings.memory or "", "job setting memory")
    if memory(settings.shm or "", "job setting shm") > total:
        raise ConfigError(
            f"job setting shm={settings.shm} is more than memory={settings.memory}, of which "
            "/dev/shm is a part; raise memory or lower shm"
        )
    memory(settings.scratch, "job setting scratch")
    numbers = ("nodes", "max_restarts", "backoff_limit", "ttl", "gpus", "deadline", "grace")
    for key in numbers:
        if (getattr(settings, key) or 0) > _LONGEST_INT32:
            raise ConfigError(f"job setting {key}={getattr(settings, key)}: out of range")
    if settings.ttl is not None and settings.ttl < 60:
        raise ConfigError(
            f"job setting ttl={settings.ttl}: a launcher needs time to read how a job ended; "
            "give 60 seconds or more"
        )
    _check_gpus(settings)


def _check_gpus(settings: JobSettings) -> None:
    resource = settings.gpu_resource
    qualified_name(resource, "job setting gpu_resource")
    if "/" not in resource or resource.partition("/")[0].endswith("kubernetes.io"):
        raise ConfigError(
            f"job setting gpu_resource={resource!r}: a vendor's resource with its domain, such as "
            "nvidia.com/gpu"
        )
    if settings.gpu_type is None:
        return
    label_value(settings.gpu_type, "job setting gpu_type")
    if not settings.gpus:
        raise ConfigError(
            f"job setting gpu_type={settings.gpu_type}: asks for a kind of GPU, but gpus=0"
        )
    chosen = settings.node_selector.get(GPU_TYPE_LABEL, settings.gpu_type)
    if chosen != settings.gpu_type:
        raise ConfigError(
            f"job setting gpu_type={settings.gpu_type}: node_selector asks for {chosen}"
        )


def _check_resources(settings: JobSettings) -> None:
    """Devices, whole; and huge pages, of memory. What has a setting of its own has it there."""
    for name, count in settings.resources.items():
        where = f"job setting resources, {name}"
        qualified_name(name, "job setting resources")
        domain, slash, _ = name.rpartition("/")
        if name.startswith("hugepages-"):
            memory(count, where)
        elif name == settings.gpu_resource:
            raise ConfigError(f"{where}: set gpus={count} instead")
        elif not slash or domain.endswith("kubernetes.io"):
            raise ConfigError(
                f"{where}: a vendor's resource with its domain, such as rdma/ib, or hugepages-…; "
                "cpu, memory and scratch are settings of their own"
            )
        elif quantity(count, where).denominator != 1:
            raise ConfigError(f"{where}={count}: a whole number of devices")
    for name in settings.capabilities:
        if not re.fullmatch(r"(?!CAP_)[A-Z][A-Z_]*", name):
            raise ConfigError(
                f"job setting capabilities: {name!r}: as in a container, such as IPC_LOCK"
            )


def _check_labels(settings: JobSettings) -> None:
    for setting in ("labels", "annotations", "node_selector"):
        what = f"job setting {setting}"
        for key, value in getattr(settings, setting).items():
            qualified_name(key, what)
            if setting != "annotations":
                label_value(value, f"{what}, {key}")
            if setting == "node_selector":
                continue
            if key == QUEUE_LABEL:
                raise ConfigError(f"{what}, {key}: set queue={value} instead")
            if _RESERVED.match(key):
                raise ConfigError(f"{what}, {key}: is set for every job; choose another key")
    size = sum(len(k) + len(v.encode()) for k, v in settings.annotations.items())
    if size > 200 << 10:
        raise ConfigError(
            f"job setting annotations: {size >> 10} KiB; Kubernetes takes 256 KiB in all"
        )


def _check_runtime(settings: JobSettings) -> None:
    """A TrainJob has no place for some settings, and little for others."""
    if settings.topology_spread:
        raise ConfigError(
            "job setting topology_spread: a TrainJob takes it from its runtime; set it there, or "
            "give affinity"
        )
    for field in dataclasses.fields(JobSettings):
        if field.name in _OF_THE_RUNTIME and getattr(settings, field.name) != field.default:
            raise ConfigError(
                f"job setting {field.name}: a TrainJob takes it from its runtime (runtime="
                f"{settings.runtime}); set it there and leave it out, or use kind=pytorchjob"
            )
    own = len(OWN_VOLUMES)
    most = {
        "volumes": MOST_ENTRIES - own,
        "volume_mounts": MOST_ENTRIES - own,
        "tolerations": MOST_ENTRIES,
        "image_pull_secrets": MOST_ENTRIES // 2,
    }
    for key, count in most.items():
        if len(getattr(settings, key)) > count:
            raise ConfigError(f"job setting {key}: a TrainJob holds {count}; use kind=pytorchjob")
    seen = set(OWN_VOLUMES)
    for mount in settings.volume_mounts:
        if mount["name"] in seen:
            raise ConfigError(
                f"job setting volume_mounts, {mount['name']}: a TrainJob mounts a volume once; "
                "give a second volume of the same source, or use kind=pytorchjob"
            )
        seen.add(mount["name"])


def check_fit(work: Work, settings: JobSettings) -> None:
    """Raises ConfigError when the config of a training wants other pods than it would get."""
    if work.config is None:
        return
    trainer, elastic = work.config.trainer, settings.min_nodes is not None
    if trainer.num_nodes not in (1, settings.nodes):
        raise ConfigError(
            f"trainer.num_nodes={trainer.num_nodes}, but job setting nodes={settings.nodes}: leave "
            "trainer.num_nodes out, or make them equal"
        )
    if trainer.num_nodes > 1 and elastic:
        raise ConfigError(
            f"trainer.num_nodes={trainer.num_nodes}: an elastic job (job setting min_nodes) may "
            "have fewer nodes; leave it out"
        )
    if trainer.devices != -1 and settings.gpus != 1:
        raise ConfigError(
            f"trainer.devices={trainer.devices} is one GPU of a machine, but job setting "
            f"gpus={settings.gpus}; leave trainer.devices out"
        )
    port, served = work.config.tracking.metrics_port, settings.metrics_port
    if port is not None and port != (served or 0):
        raise ConfigError(
            f"tracking.metrics_port={port}, but job setting metrics_port="
            f"{'null' if served is None else served}: give the job setting alone"
        )
    _check_batch(work.config, settings)


def _check_batch(config: Config, settings: JobSettings) -> None:
    """The effective batch: what a training would find out only after it had waited in a queue."""
    total, micro = config.optim.total_batch, config.data.batch_size
    if total is None and settings.min_nodes is not None:
        raise ConfigError(
            "job setting min_nodes: an elastic job may lose nodes, and with them a part of its "
            "batch; set optim.total_batch, which every number of nodes then keeps"
        )
    for nodes in range(settings.min_nodes or settings.nodes, settings.nodes + 1):
        processes = nodes * max(1, settings.gpus)
        if total is not None and total % (micro * processes):
            raise ConfigError(
                f"optim.total_batch={total} is not a multiple of data.batch_size={micro} on "
                f"{processes} processes (job settings nodes={nodes}, gpus={settings.gpus}); change "
                "one of them"
            )


def check_object(job: Object) -> None:
    """Raises ConfigError naming the field for the first thing that would be refused."""
    metadata = job["metadata"]
    job_name(metadata["name"], "job name", LONGEST_LABEL)
    for key, value in metadata["labels"].items():
        label_value(value, f"label {key}")
    for owner in metadata.get("ownerReferences", []):
        missing = [k for k in ("apiVersion", "kind", "name", "uid") if not owner.get(k)]
        if missing:
            raise ConfigError(f"owner of job {metadata['name']}: {', '.join(missing)} is missing")
    if job["kind"] == PYTORCH_JOB.kind:
        _check_pytorch_job(metadata["name"], job["spec"])
    elif job["kind"] == TRAIN_JOB.kind:
        _check_train_job(metadata["name"], job["spec"]["trainer"])


def _check_pytorch_job(name: str, spec: Object) -> None:
    """The rules of the operator's webhook; and host names, which it forgets."""
    replicas = spec["pytorchReplicaSpecs"]
    if spec.get("elasticPolicy") is not None and "Worker" not in replicas:
        raise ConfigError("an elastic job consists of workers; it has none")
    for role, replica in replicas.items():
        if role not in ("Master", "Worker"):
            raise ConfigError(f"pod role {role!r} is not one of Master, Worker")
        count = replica["replicas"]
        if count < 1 or (role == "Master" and count != 1):
            raise ConfigError(f"{count} pods of role {role}: one Master, and at least one Worker")
        containers = replica["template"]["spec"]["containers"]
        if PYTORCH not in [each["name"] for each in containers]:
            raise ConfigError(f"a training pod's container must be called {PYTORCH}")
        if not all(each.get("image") for each in containers):
            raise ConfigError("a container without an image")
        job_name(f"{name}-{role.lower()}-{count - 1}", "pod name", LONGEST_LABEL)


def _check_train_job(name: str, trainer: Object) -> None:
    job_name(f"{name}-{NODE}-0-{trainer['numNodes'] - 1}", "pod name", LONGEST_LABEL)
    for key in ("args", "env"):
        if len(trainer[key]) > MOST_ENTRIES:
            raise ConfigError(
                f"a TrainJob holds {MOST_ENTRIES} {key}, this one has {len(trainer[key])}; use "
                "kind=pytorchjob"
            )


def warn_unpinned(reference: str) -> None:
    """Say so when another image may stand behind the same name later.

    A pod that starts again pulls its image again: a tag may mean other code by then, in the midst
    of a run.
    """
    if is_pinned(reference):
        return
    tag = re.search(r":([\w.-]+)$", reference)
    moving = "" if tag and tag[1] != "latest" else " (and latest moves by its nature)"
    warn(
        f"image {reference} is not pinned by digest{moving}: a pod that starts later may "
        "run other code; name it as <name>@sha256:<digest>"
    )
