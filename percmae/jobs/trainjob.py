"""TrainJob (``trainer.kubeflow.org/v1alpha1``, Kubeflow Trainer 2.3) and a runtime that suits it.

A TrainJob says what to run on how many nodes; the pods come from a runtime in the cluster. What it
may change of them is a closed list, ``runtimePatches``. Nothing is dropped: the entries of the
store's ConfigMap come one by one (there is no envFrom), and settings that only a runtime can carry
are refused here. Those are why ``training_runtime`` exists: under the stock ``torch-distributed`` a
pod that failed for good is started again as well, because restarts are the runtime's to decide.
"""

from __future__ import annotations

import dataclasses

from percmae.errors import ConfigError
from percmae.jobs import spec
from percmae.jobs.names import Object
from percmae.jobs.settings import JobSettings
from percmae.jobs.work import Work

MANAGER = "percmae.dev/launcher"
"""Whose patches these are."""
NODE = "node"
"""The replicated job, and its container, that train in a runtime for torch."""
STORE_VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "PERCMAE_STORE_RETRY_SECONDS",
)
"""What percmae.storage reads of the environment and may stand in a ConfigMap."""
MOST_ENTRIES = 128
"""Entries of a list in a TrainJob."""
# Set in the runtime or not at all.
_OF_THE_RUNTIME = ("image_pull_policy", "priority_class", "backoff_limit", "ttl", "clean_pods")


def train_job(work: Work, settings: JobSettings) -> Object:
    """The TrainJob that has ``work`` carried out, without metadata.

    Kueue suspends a job with its label when it is created, so ``suspend`` is left to it. Raises
    ConfigError for what a TrainJob cannot hold.
    """
    command = spec.torchrun_command(work)
    split = len(command) - len(work.arguments)
    # Command and arguments are lists of their own: each may have 128 parts.
    made = spec.container(work, settings, command, NODE)
    trainer: Object = {
        "image": settings.image,
        "command": made["command"][: split + 2],
        "args": made["command"][split + 2 :],
        "env": _environment(made["env"], settings),
        "numNodes": settings.nodes,
        "numProcPerNode": max(1, settings.gpus),
        "resourcesPerNode": made["resources"],
    }
    for key in ("args", "env"):
        if len(trainer[key]) > MOST_ENTRIES:
            raise ConfigError(
                f"a TrainJob holds {MOST_ENTRIES} {key}, this one has {len(trainer[key])}; use "
                "kind=pytorchjob"
            )
    body: Object = {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "ClusterTrainingRuntime",
            "name": settings.runtime,
        },
        "trainer": trainer,
        "runtimePatches": [_patch(spec.pod_template(work, settings, command, NODE))],
    }
    if settings.deadline is not None:
        body["activeDeadlineSeconds"] = settings.deadline
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {},
        "spec": body,
    }


def _environment(env: list[Object], settings: JobSettings) -> list[Object]:
    """The container's variables, and those that envFrom would bring; a name stands once."""
    given = {entry["name"] for entry in env}
    return env + [
        {
            "name": name,
            "valueFrom": {
                "configMapKeyRef": {"name": settings.store_config, "key": name, "optional": True}
            },
        }
        for name in STORE_VARIABLES
        if name not in given
    ]


def _patch(template: Object) -> Object:
    """What the runtime's pods get of ``template``: the fields that may be patched."""
    pod = template["spec"]
    (made,) = pod["containers"]
    wanted = {key: value for key, value in pod.items() if key in _PATCHED}
    left = set(pod) - set(wanted) - {"containers", "automountServiceAccountToken"}
    assert not left, f"a TrainJob cannot say {left} of its pods"
    # (That a pod gets no token is said by the service account as well, which mounts none.)
    wanted["containers"] = [{key: made[key] for key in ("name", "securityContext", "volumeMounts")}]
    pods = {"template": {"metadata": template["metadata"], "spec": wanted}}
    jobs = {"replicatedJobs": [{"name": NODE, "template": {"spec": pods}}]}
    return {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": jobs}}}


_PATCHED = (
    "affinity",
    "imagePullSecrets",
    "nodeSelector",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "volumes",
)


def check_trainjob_settings(settings: JobSettings) -> None:
    """Raises ConfigError for settings that a TrainJob has no place for."""
    for field in dataclasses.fields(JobSettings):
        if field.name in _OF_THE_RUNTIME and getattr(settings, field.name) != field.default:
            raise ConfigError(
                f"job setting {field.name}: a TrainJob takes it from its runtime (runtime="
                f"{settings.runtime}); set it there and leave it out, or use kind=pytorchjob"
            )
    lists = {"volumes": 2, "volume_mounts": 2, "tolerations": 0, "image_pull_secrets": 64}
    for key, own in lists.items():
        if len(getattr(settings, key)) + own > MOST_ENTRIES:
            raise ConfigError(
                f"job setting {key}: a TrainJob holds {MOST_ENTRIES - own}; use kind=pytorchjob"
            )
    seen = {"shm", "scratch"}
    for mount in settings.volume_mounts:
        if mount["name"] in seen:
            raise ConfigError(
                f"job setting volume_mounts, {mount['name']}: a TrainJob mounts a volume once; "
                "give a second volume of the same source, or use kind=pytorchjob"
            )
        seen.add(mount["name"])


def training_runtime(settings: JobSettings, name: str = "percmae") -> Object:
    """A ClusterTrainingRuntime under which TrainJobs restart as PyTorchJobs do.

    Carries what no TrainJob can: which exit codes are final, restarts, time to live, pull policy,
    priority, and that pods get no token of the API. Use it by job setting ``runtime``.
    """
    labels = {
        "app.kubernetes.io/name": "percmae",
        "app.kubernetes.io/part-of": "percmae",
        "trainer.kubeflow.org/framework": "torch",
    }
    container: Object = {"name": NODE, "image": settings.image}
    if settings.image_pull_policy is not None:
        container["imagePullPolicy"] = settings.image_pull_policy
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "containers": [container],
    }
    if settings.priority_class is not None:
        pod["priorityClassName"] = settings.priority_class
    job = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {
            "backoffLimit": settings.backoff_limit,
            "podFailurePolicy": spec.failure_policy(),
            "template": {"spec": pod},
        },
    }
    jobs: Object = {
        "failurePolicy": {"maxRestarts": 0},
        "replicatedJobs": [{"name": NODE, "template": job}],
    }
    if settings.ttl is not None:
        jobs["ttlSecondsAfterFinished"] = settings.ttl
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": name, "labels": labels},
        "spec": {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": jobs}},
    }
