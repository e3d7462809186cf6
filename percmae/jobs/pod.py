"""The pod of a job, the same for every kind of job: pure functions of a work and the settings.

Exit codes decide about restarts (percmae.errors): what is ≥ 128 may pass, everything else would
only happen again.
"""

from __future__ import annotations

import re

from percmae import __version__
from percmae.ingest.cores import SCRATCH_SIZE
from percmae.jobs.names import (
    GPU_TYPE_LABEL,
    IMAGE_VARIABLE,
    INSTANCE_LABEL,
    LONGEST_LABEL,
    METRICS,
    METRICS_VARIABLE,
    PART_OF_LABEL,
    RUN_LABEL,
    SESSION_TOKEN_VARIABLE,
    SHUTDOWN_TIMEOUT,
    UNDISTURBED,
    Object,
    Objects,
    is_pinned,
    shutdown_timeout,
)
from percmae.jobs.parts import OWN_VOLUMES
from percmae.jobs.schema import JobSettings
from percmae.jobs.syntax import memory
from percmae.jobs.work import Work

# Istio's sidecar, which every pod in a profile of Kubeflow would get, does not end with the work.
# Its newer versions look for a label, older ones for an annotation.
_NO_SIDECAR = {"sidecar.istio.io/inject": "false"}


def pod_template(work: Work, settings: JobSettings, command: list[str], name: str) -> Object:
    """The pod, the same for every kind: what it runs, what it may use and must not do."""
    spec: Object = {
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": settings.grace,
        "securityContext": _security(settings),
        "containers": [container(work, settings, command, name)],
        "volumes": _volumes(settings),
    }
    spec |= _scheduling(work, settings)
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in settings.image_pull_secrets]
    metadata: Object = {
        "labels": {**_NO_SIDECAR, **labels_of(work, settings)},
        "annotations": {**_NO_SIDECAR, **UNDISTURBED, **settings.annotations},
    }
    return {"metadata": metadata, "spec": spec}


def _security(settings: JobSettings) -> Object:
    """Of the pod. Without a user the cluster gives one (OpenShift: one of the namespace's own)."""
    user = settings.run_as_user
    ids = {} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {
        "runAsNonRoot": user != 0,
        **ids,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def labels_of(work: Work, settings: JobSettings) -> dict[str, str]:
    """Labels of the job and its pods (kubernetes.io's recommended ones, and the run)."""
    return {
        "app.kubernetes.io/name": "percmae",
        "app.kubernetes.io/component": work.stage,
        INSTANCE_LABEL: work.name,
        "app.kubernetes.io/version": __version__,
        PART_OF_LABEL: "percmae",
        "app.kubernetes.io/managed-by": "percmae",
        RUN_LABEL: _label_value(work.run),
        **settings.labels,
    }


def _label_value(text: str) -> str:
    """The text with what a label's value may hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("-_.")[:LONGEST_LABEL].rstrip("-_.")


def _scheduling(work: Work, settings: JobSettings) -> Object:
    """Where pods may run: fields of a pod's spec."""
    own = {"labelSelector": {"matchLabels": {INSTANCE_LABEL: work.name}}}
    selector = dict(settings.node_selector)
    if settings.gpu_type is not None:
        selector[GPU_TYPE_LABEL] = settings.gpu_type
    given = {
        "nodeSelector": selector,
        "tolerations": settings.tolerations,
        "affinity": settings.affinity,
        "topologySpreadConstraints": [{**own, **each} for each in settings.topology_spread],
        "priorityClassName": settings.priority_class,
    }
    return {key: value for key, value in given.items() if value}


def container(work: Work, settings: JobSettings, command: list[str], name: str) -> Object:
    """The one container of a pod."""
    capabilities: Object = {"drop": ["ALL"]}
    if settings.capabilities:
        capabilities["add"] = list(settings.capabilities)
    main: Object = {
        "name": name,
        "image": settings.image,
        # With tini as the first process: Python there would not be ended by SIGTERM, and would
        # leave dead loader processes behind.
        # ($ is doubled because Kubernetes replaces $(NAME) in a command, and $$ by $.)
        "command": ["tini", "--", *(part.replace("$", "$$") for part in command)],
        "env": _environment(work, settings),
        "envFrom": [{"configMapRef": {"name": settings.store_config}}],
        "resources": _resources(settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": capabilities,
        },
        "volumeMounts": [
            *({"name": name, "mountPath": path} for name, path in OWN_VOLUMES.items()),
            *settings.volume_mounts,
        ],
    }
    if work.trains and settings.metrics_port is not None:
        main["ports"] = [metrics(settings.metrics_port)]
    if settings.image_pull_policy is not None:
        main["imagePullPolicy"] = settings.image_pull_policy
    return main


def metrics(port: int) -> Object:
    """A container's port at which figures are served."""
    return {"name": METRICS, "containerPort": port, "protocol": "TCP"}


def _environment(work: Work, settings: JobSettings) -> Objects:
    """Environment variables: the store's keys by reference, and a home that can be written to."""
    keys: dict[str, Object] = {
        "AWS_ACCESS_KEY_ID": {"key": settings.store_access_key},
        "AWS_SECRET_ACCESS_KEY": {"key": settings.store_secret_key},
        SESSION_TOKEN_VARIABLE: {"key": settings.store_session_token, "optional": True},
    }
    if settings.store_secret is None:  # keys given here would go before those of a role
        keys = {}
    if any(entry.get("name") == SESSION_TOKEN_VARIABLE for entry in settings.env):
        keys.pop(SESSION_TOKEN_VARIABLE, None)
    seconds, port = shutdown_timeout(settings.grace), settings.metrics_port
    pinned = is_pinned(settings.image)
    scratch = str(memory(settings.scratch, "job setting scratch") * 3 // 4)
    return [
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": settings.store_secret, **entry}}}
            for name, entry in keys.items()
        ),
        {"name": "HOME", "value": "/tmp"},
        *([{"name": SHUTDOWN_TIMEOUT, "value": seconds}] if work.trains else []),
        *([{"name": METRICS_VARIABLE, "value": str(port)}] if work.trains and port else []),
        # A tag would say nothing for good, and kustomize may put another image in its place.
        *([{"name": IMAGE_VARIABLE, "value": settings.image}] if work.trains and pinned else []),
        # Of /tmp, whose end a process does not see: a pod that goes beyond is evicted.
        *([{"name": SCRATCH_SIZE, "value": scratch}] if work.stage == "ingest" else []),
        *settings.env,
    ]


def _resources(settings: JobSettings) -> Object:
    """Requests and limits: memory, GPUs and other resources exactly, CPU at least."""
    exactly = {"memory": settings.memory, **settings.resources}
    if settings.gpus:
        exactly[settings.gpu_resource] = str(settings.gpus)
    requests = {"cpu": settings.cpu, **exactly}
    limits = exactly.copy()
    if settings.cpu_limit is not None:
        limits["cpu"] = settings.cpu_limit
    return {"requests": requests, "limits": limits}


def _volumes(settings: JobSettings) -> Objects:
    """/dev/shm in memory (NCCL's, between the GPUs of a machine), /tmp, and what is asked for."""
    return [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm}},
        {"name": "scratch", "emptyDir": {"sizeLimit": settings.scratch}},
        *settings.volumes,
    ]


def torchrun_command(work: Work, *options: str) -> list[str]:
    """A training pod's command: torchrun, which also takes its options from PET_* variables."""
    return ["python", "-m", "percmae.engine.torchrun", *options, "--", *work.arguments]


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
