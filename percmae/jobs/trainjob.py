"""TrainJob (``trainer.kubeflow.org/v1alpha1``, Kubeflow Trainer 2.3) and a runtime that suits it.

A TrainJob says what to run on how many nodes; the pods come from a runtime in the cluster. What it
may change of them is a closed list, ``runtimePatches``. Nothing is dropped: the entries of the
store's ConfigMap come one by one (there is no envFrom), and settings that only a runtime can carry
are refused here. Those are why ``training_runtime`` exists: under the stock ``torch-distributed`` a
pod that failed for good is started again as well, because restarts are the runtime's to decide.
"""

from __future__ import annotations

from percmae.jobs.names import NODE, PART_OF_LABEL, TRAIN_JOB, Object, Objects
from percmae.jobs.pod import container, failure_policy, metrics, pod_template, torchrun_command
from percmae.jobs.schema import JobSettings
from percmae.jobs.work import Work

MANAGER = "percmae.dev/launcher"
"""Whose patches these are."""
STORE_VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "PERCMAE_STORE_RETRY_SECONDS",
    "PERCMAE_STORE_OUTAGE_SECONDS",
)
"""What percmae.storage reads of the environment and may stand in a ConfigMap."""


def train_job(work: Work, settings: JobSettings) -> Object:
    """Spec of the TrainJob that has a training carried out.

    A time to live is kept by our own clean-up: with the runtime's, JobSet would remove what the
    TrainJob consists of, and the Trainer make it anew.

    Kueue suspends a job with its label when it is created, so ``suspend`` is left to it.
    """
    command = torchrun_command(work)
    main = container(work, settings, command, NODE)
    # Command and arguments are lists of their own: each may have 128 parts.
    split = len(main["command"]) - len(work.arguments)
    body: Object = {
        "runtimeRef": {
            "apiGroup": TRAIN_JOB.group,
            "kind": "ClusterTrainingRuntime",
            "name": settings.runtime,
        },
        "trainer": {
            "image": settings.image,
            "command": main["command"][:split],
            "args": main["command"][split:],
            "env": _environment(main["env"], settings),
            "numNodes": settings.nodes,
            "numProcPerNode": max(1, settings.gpus),
            "resourcesPerNode": main["resources"],
        },
        "runtimePatches": [_patch(pod_template(work, settings, command, NODE))],
    }
    if settings.deadline is not None:
        body["activeDeadlineSeconds"] = settings.deadline
    return body


def _environment(env: Objects, settings: JobSettings) -> Objects:
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
    (main,) = pod["containers"]
    wanted = {key: value for key, value in pod.items() if key in _PATCHED}
    left = set(pod) - set(wanted) - {"containers", "automountServiceAccountToken"}
    assert not left, f"a TrainJob cannot say {left} of its pods"
    # (That a pod gets no token is said by the service account as well, which mounts none.)
    wanted["containers"] = [{key: main[key] for key in ("name", "securityContext", "volumeMounts")}]
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


def training_runtime(settings: JobSettings) -> Object:
    """A ClusterTrainingRuntime under which TrainJobs restart as PyTorchJobs do.

    Carries what no TrainJob can: which exit codes are final, restarts, pull policy, priority, and
    that pods get no token of the API. Use it by job setting ``runtime``.
    """
    labels = {
        "app.kubernetes.io/name": "percmae",
        PART_OF_LABEL: "percmae",
        "trainer.kubeflow.org/framework": "torch",
    }
    main: Object = {"name": NODE, "image": settings.image}
    if settings.metrics_port is not None:
        main["ports"] = [metrics(settings.metrics_port)]
    if settings.image_pull_policy is not None:
        main["imagePullPolicy"] = settings.image_pull_policy
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "containers": [main],
    }
    if settings.priority_class is not None:
        pod["priorityClassName"] = settings.priority_class
    job = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {
            "backoffLimit": settings.backoff_limit,
            "podFailurePolicy": failure_policy(),
            "template": {"spec": pod},
        },
    }
    jobs: Object = {
        "failurePolicy": {"maxRestarts": 0},
        "replicatedJobs": [{"name": NODE, "template": job}],
    }
    return {
        "apiVersion": TRAIN_JOB.api_version,
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": "percmae", "labels": labels},
        "spec": {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": jobs}},
    }
