"""From what is to be done and where to the Kubernetes object: pure functions, no cluster needed.

``job_object`` is the one entrance; the kinds differ in how pods are grouped, the pod is the same:

- PyTorchJob (``kubeflow.org/v1``, training-operator 1.9): a Master and workers. The operator gives
  each pod PET_* variables, which torchrun reads as its own options; nothing else may (RANK there is
  the pod's rank, not the process's).
- TrainJob (``percmae.jobs.trainjob``, Kubeflow Trainer 2.3).
- Job (``batch/v1``): one pod, for stages that do not train and for clusters without an operator.

Exit codes decide about restarts (percmae.errors): what is ≥ 128 may pass, everything else would
only happen again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from copy import deepcopy

from percmae import __version__
from percmae.jobs.check import check_fit, check_object, check_settings
from percmae.jobs.names import GPU_TYPE_LABEL, QUEUE_LABEL, Object
from percmae.jobs.parts import OWN_VOLUMES
from percmae.jobs.settings import JobSettings
from percmae.jobs.work import Work

DIGEST = "percmae.dev/spec-digest"
"""Annotation: what the object was made of, so that a launcher knows its own job again."""
RUN_LABEL = "percmae.dev/run"
CONTAINER = "pytorch"
"""Name the operator requires of the container that trains."""
USER = 10001
PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Seconds torchrun gives its processes to end when it is told to; 30 if it is not said."""
USING_A_GPU = ("evaluate", "reconstruct")
"""Stages that do not train and are quicker on a GPU."""
OWN_MOUNTS = tuple(OWN_VOLUMES.values())
"""Where every job mounts something of its own (its variables: percmae.jobs.parts)."""


def job_object(work: Work, settings: JobSettings, owner: Object | None = None) -> Object:
    """The object that has ``work`` carried out.

    owner: an ownerReferences entry; the job is removed with its owner. The owner is not part of
    the digest: a retry from another pod finds the job unchanged. Raises ConfigError for what the
    API server or the operator would refuse.
    """
    check_settings(settings)
    check_fit(work, settings)
    if not work.trains or settings.kind == "job":
        made = _plain_job(work, _for_stage(work, settings))
    elif settings.kind == "pytorchjob":
        made = _pytorch_job(work, settings)
    else:
        from percmae.jobs.trainjob import train_job

        made = train_job(work, settings)
    made["metadata"] = _metadata(work, settings) | {"annotations": dict(settings.annotations)}
    made["metadata"]["annotations"][DIGEST] = object_digest(made)
    if settings.namespace is not None:
        made["metadata"]["namespace"] = settings.namespace
    if owner is not None:
        made["metadata"]["ownerReferences"] = [owner]
    check_object(made)
    return made


def object_digest(made: Object) -> str:
    """``sha256:…`` of everything in the object but where it lies and who owns it."""
    metadata = made["metadata"]
    annotations = {k: v for k, v in metadata.get("annotations", {}).items() if k != DIGEST}
    kept = {"name": metadata["name"], "labels": metadata["labels"], "annotations": annotations}
    text = json.dumps({**made, "metadata": kept}, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _for_stage(work: Work, settings: JobSettings) -> JobSettings:
    """Settings as a stage that does not train needs them: no GPU for what has no network."""
    if work.trains or not settings.gpus:
        return settings
    if work.stage in USING_A_GPU:
        return dataclasses.replace(settings, gpus=1)
    return dataclasses.replace(settings, gpus=0, gpu_type=None)


def labels_of(work: Work, settings: JobSettings) -> dict[str, str]:
    """Labels of the job and its pods (kubernetes.io's recommended ones, and the run)."""
    return {
        "app.kubernetes.io/name": "percmae",
        "app.kubernetes.io/component": work.stage,
        "app.kubernetes.io/instance": work.name,
        "app.kubernetes.io/version": __version__,
        "app.kubernetes.io/part-of": "percmae",
        "app.kubernetes.io/managed-by": "percmae",
        RUN_LABEL: re.sub(r"[^A-Za-z0-9._-]+", "-", work.run).lstrip("-_.")[:63].rstrip("-_."),
        **settings.labels,
    }


def _metadata(work: Work, settings: JobSettings) -> Object:
    labels = labels_of(work, settings)
    if settings.queue is not None:
        labels[QUEUE_LABEL] = settings.queue
    return {"name": work.name, "labels": labels}


def _pytorch_job(work: Work, settings: JobSettings) -> Object:
    template = pod_template(work, settings, torchrun_command(work), CONTAINER)
    policy = run_policy(settings)
    if settings.volcano_queue is not None:
        policy["schedulingPolicy"] = {
            "minAvailable": settings.min_nodes or settings.nodes,
            "queue": settings.volcano_queue,
            **({"priorityClass": settings.priority_class} if settings.priority_class else {}),
        }
    spec: Object = {"nprocPerNode": str(max(1, settings.gpus)), "runPolicy": policy}
    # ExitCode: the operator replaces a pod that ended with a code ≥ 128, and gives up on others.
    if settings.min_nodes is not None:
        # An elastic job has no Master: any worker may be the one that is lost.
        spec["elasticPolicy"] = {
            "rdzvBackend": "c10d",
            "minReplicas": settings.min_nodes,
            "maxReplicas": settings.nodes,
            "maxRestarts": settings.max_restarts,
        }
        replicas = {"Worker": settings.nodes}
    else:
        replicas = {"Master": 1, "Worker": settings.nodes - 1}
    spec["pytorchReplicaSpecs"] = {
        role: {"replicas": count, "restartPolicy": "ExitCode", "template": deepcopy(template)}
        for role, count in replicas.items()
        if count
    }
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {}, "spec": spec}


def _plain_job(work: Work, settings: JobSettings) -> Object:
    if work.trains and settings.gpus > 1:
        command = ["python", "-m", "percmae.engine.torchrun", "--standalone"]
        command += ["--nproc-per-node", str(settings.gpus), "--", *work.arguments]
    else:
        command = ["percmae", *work.arguments]
    template = pod_template(work, settings, command, "percmae")
    template["spec"]["restartPolicy"] = "Never"
    spec: Object = {
        "backoffLimit": settings.backoff_limit,
        "podFailurePolicy": failure_policy(),
        "template": template,
    }
    if settings.deadline is not None:
        spec["activeDeadlineSeconds"] = settings.deadline
    if settings.ttl is not None:
        spec["ttlSecondsAfterFinished"] = settings.ttl
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": spec}


def failure_policy() -> Object:
    """podFailurePolicy of a Job, as ExitCode is for a PyTorchJob.

    Bad input and failures are final, as is a command that is not there (126, 127); being moved or
    interrupted is not, and a pod that its node let go of does not count.
    """
    moved = {"type": "DisruptionTarget", "status": "True"}
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [moved]},
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2, 126, 127]}},
        ]
    }


def torchrun_command(work: Work) -> list[str]:
    """A pod's command: torchrun, which takes its options from PET_* variables."""
    return ["python", "-m", "percmae.engine.torchrun", "--", *work.arguments]


def run_policy(settings: JobSettings) -> Object:
    """runPolicy of a training operator's job."""
    policy: Object = {
        "backoffLimit": settings.backoff_limit,
        "cleanPodPolicy": settings.clean_pods,
    }
    if settings.deadline is not None:
        policy["activeDeadlineSeconds"] = settings.deadline
    if settings.ttl is not None:
        policy["ttlSecondsAfterFinished"] = settings.ttl
    return policy


def pod_template(work: Work, settings: JobSettings, command: list[str], name: str) -> Object:
    """The pod, the same for every kind: what it runs, what it may use and must not do."""
    spec: Object = {
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": settings.grace,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(work, settings, command, name)],
        "volumes": volumes(settings),
    }
    spec |= placement(settings)
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in settings.image_pull_secrets]
    metadata: Object = {"labels": labels_of(work, settings)}
    if settings.annotations:
        metadata["annotations"] = dict(settings.annotations)
    return {"metadata": metadata, "spec": spec}


def placement(settings: JobSettings) -> Object:
    """Where pods may run: fields of a pod's spec."""
    selector = dict(settings.node_selector)
    if settings.gpu_type is not None:
        selector[GPU_TYPE_LABEL] = settings.gpu_type
    found = {
        "nodeSelector": selector,
        "tolerations": settings.tolerations,
        "affinity": settings.affinity,
        "priorityClassName": settings.priority_class,
    }
    return {key: value for key, value in found.items() if value}


def container(work: Work, settings: JobSettings, command: list[str], name: str) -> Object:
    """The one container of a pod."""
    made: Object = {
        "name": name,
        "image": settings.image,
        # With tini as the first process: Python there would not be ended by SIGTERM, and would
        # leave dead loader processes behind.
        # ($ is doubled because Kubernetes replaces $(NAME) in a command, and $$ by $.)
        "command": ["tini", "--", *(part.replace("$", "$$") for part in command)],
        "env": environment(work, settings),
        "envFrom": [{"configMapRef": {"name": settings.store_config}}],
        "resources": resources(settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "scratch", "mountPath": "/tmp"},
            *settings.volume_mounts,
        ],
    }
    if settings.image_pull_policy is not None:
        made["imagePullPolicy"] = settings.image_pull_policy
    return made


def environment(work: Work, settings: JobSettings) -> list[Object]:
    """Environment variables: the store's keys by reference, and a home that can be written to."""
    keys = {
        "AWS_ACCESS_KEY_ID": settings.store_access_key,
        "AWS_SECRET_ACCESS_KEY": settings.store_secret_key,
    }
    return [
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": settings.store_secret, "key": k}}}
            for name, k in keys.items()
        ),
        {"name": "HOME", "value": "/tmp"},
        *([{"name": PATIENCE, "value": str(max(1, settings.grace - 5))}] if work.trains else []),
        *settings.env,
    ]


def resources(settings: JobSettings) -> Object:
    """Requests and limits: memory and GPUs exactly, CPU at least."""
    gpus = {settings.gpu_resource: str(settings.gpus)} if settings.gpus else {}
    requests = {"cpu": settings.cpu, "memory": settings.memory, **gpus}
    limits = {"memory": settings.memory, **gpus}
    if settings.cpu_limit is not None:
        limits["cpu"] = settings.cpu_limit
    return {"requests": requests, "limits": limits}


def volumes(settings: JobSettings) -> list[Object]:
    """/dev/shm in memory (NCCL's, between the GPUs of a machine), /tmp, and what is asked for."""
    return [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm}},
        {"name": "scratch", "emptyDir": {"sizeLimit": settings.scratch}},
        *settings.volumes,
    ]
