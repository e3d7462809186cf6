"""From what is to be done and where to the Kubernetes object: pure functions, without a cluster."""

from __future__ import annotations

import hashlib
import json

from percmae.jobs.check import check_fit, check_object, check_settings
from percmae.jobs.kinds import plain_job, pytorch_job
from percmae.jobs.names import (
    DIGEST_ANNOTATION,
    JOB,
    PYTORCH_JOB,
    QUEUE_LABEL,
    TRAIN_JOB,
    TTL_ANNOTATION,
    Object,
)
from percmae.jobs.pod import labels_of
from percmae.jobs.schema import JobSettings
from percmae.jobs.trainjob import train_job
from percmae.jobs.work import Work

_KINDS = {
    "pytorchjob": (PYTORCH_JOB, pytorch_job),
    "trainjob": (TRAIN_JOB, train_job),
    "job": (JOB, plain_job),
}


def job_object(work: Work, settings: JobSettings, owner: Object | None = None) -> Object:
    """The object that has ``work`` carried out.

    owner: an ownerReferences entry; the job is removed with its owner. The owner is not part of
    the digest: a retry from another pod finds the job unchanged. Raises ConfigError for what the
    API server or the operator would refuse.
    """
    settings = settings.for_stage(work.stage, work.trains)
    check_settings(settings, work.stage)
    check_fit(work, settings)
    resource, spec = _KINDS[settings.kind]
    job: Object = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": _metadata(work, settings),
        "spec": spec(work, settings),
    }
    job["metadata"]["annotations"][DIGEST_ANNOTATION] = object_digest(job)
    if settings.namespace is not None:
        job["metadata"]["namespace"] = settings.namespace
    if owner is not None:
        job["metadata"]["ownerReferences"] = [owner]
    check_object(job)
    return job


def object_digest(job: Object) -> str:
    """``sha256:…`` of everything in the object but where it lies and who owns it."""
    metadata = job["metadata"]
    annotations = dict(metadata["annotations"])
    annotations.pop(DIGEST_ANNOTATION, None)
    kept = {"name": metadata["name"], "labels": metadata["labels"], "annotations": annotations}
    text = json.dumps({**job, "metadata": kept}, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _metadata(work: Work, settings: JobSettings) -> Object:
    labels = labels_of(work, settings)
    if settings.queue is not None:
        labels[QUEUE_LABEL] = settings.queue
    annotations = dict(settings.annotations)
    if settings.kind == "trainjob" and settings.ttl is not None:  # which has no field for it
        annotations[TTL_ANNOTATION] = str(settings.ttl)
    return {"name": work.name, "labels": labels, "annotations": annotations}
