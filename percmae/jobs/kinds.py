"""What PyTorchJob and Job say: how many pods there are, and which are started again.

- PyTorchJob (``kubeflow.org/v1``, training-operator 1.9): a Master and workers. The operator gives
  each pod PET_* variables, which torchrun reads as its own options; nothing else may (RANK there is
  the pod's rank, not the process's).
- Job (``batch/v1``): one pod, for stages that do not train and for clusters without an operator.
  An ingest may have several, which share its shards: an Indexed Job.
"""

from __future__ import annotations

from copy import deepcopy

from percmae.jobs.names import PYTORCH, Object
from percmae.jobs.pod import failure_policy, pod_template, torchrun_command
from percmae.jobs.schema import JobSettings
from percmae.jobs.work import Work


def pytorch_job(work: Work, settings: JobSettings) -> Object:
    """Spec of the PyTorchJob that has a training carried out."""
    counting: tuple[str, ...] = ()
    if work.folder:  # the operator counts none of the pods that it makes anew
        limit = str(settings.backoff_limit)
        counting = ("--run-folder", work.folder, "--backoff-limit", limit)
    template = pod_template(work, settings, torchrun_command(work, *counting), PYTORCH)
    if settings.deadline is not None:
        # The operator looks at the job's own deadline when something happens to a pod: this does.
        template["spec"]["activeDeadlineSeconds"] = settings.deadline
    policy: Object = {
        "backoffLimit": settings.backoff_limit,
        "cleanPodPolicy": settings.clean_pods,
        **_limits(settings),
    }
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
    return spec


def plain_job(work: Work, settings: JobSettings) -> Object:
    """Spec of the Job that has any work carried out, in one pod or, an ingest, in several."""
    shared: Object = {}
    if work.trains and settings.gpus > 1:
        processes = ("--nproc-per-node", str(settings.gpus))
        command = torchrun_command(work, "--standalone", *processes)
    else:
        command = ["percmae", *work.arguments]
        if settings.nodes > 1:
            shared = {"completions": settings.nodes, "parallelism": settings.nodes}
            shared["completionMode"] = "Indexed"
            command += ["--of", str(settings.nodes)]
    template = pod_template(work, settings, command, "percmae")
    template["spec"]["restartPolicy"] = "Never"
    return {
        **shared,
        "backoffLimit": settings.backoff_limit,
        "podFailurePolicy": failure_policy(),
        "template": template,
        **_limits(settings),
    }


def _limits(settings: JobSettings) -> Object:
    """How long a job may run, and how long it stays when it has ended."""
    limits = {
        "activeDeadlineSeconds": settings.deadline,
        "ttlSecondsAfterFinished": settings.ttl,
    }
    return {key: seconds for key, seconds in limits.items() if seconds is not None}
