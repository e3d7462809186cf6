"""What a job's objects say: has it ended, why does it wait, what went wrong. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from percmae.jobs.names import (
    NODE,
    PYTORCH_JOB,
    QUEUE_LABEL,
    TRAIN_JOB,
    YIELDS_ANNOTATION,
    Object,
)

NO_IMAGE = ("InvalidImageName", "ErrImageNeverPull", "ImagePullBackOff")
NO_START = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
"""What a container waits for that will not start by itself soon."""
HOPELESS = ("InvalidImageName",)
"""And never."""
_INDEX = "batch.kubernetes.io/job-completion-index"  # annotation of an Indexed Job's pods
_STUCK = (*NO_IMAGE, *NO_START, "ErrImagePull")
OVERRAN = "active longer than specified deadline"
"""What the condition of a job says that its operator has ended at its deadline."""


class Ending(NamedTuple):
    """How a job ended, and what its operator says about it."""

    succeeded: bool
    message: str


def ending(job: Object) -> Ending | None:
    """None while the job has not ended (PyTorchJob, TrainJob and Job alike)."""
    for condition in _true_conditions(job):
        if condition["type"] in ("Succeeded", "Complete"):
            return Ending(True, condition.get("message", ""))
        if condition["type"] == "Failed":
            reason, message = condition.get("reason", ""), condition.get("message", "")
            return Ending(False, message if reason in message else f"{reason}: {message}")
    return None


def ended_at(job: Object) -> datetime | None:
    """When a job ended; None while it has not."""
    for condition in _true_conditions(job):
        if condition["type"] in ("Succeeded", "Complete", "Failed"):
            return _time(condition["lastTransitionTime"])
    return None


def failing(job: Object) -> bool:
    """Whether a Job has ended, or is about to: it says so before the last of its pods has gone."""
    about_to = any(c["type"] == "FailureTarget" for c in _true_conditions(job))
    return about_to or ending(job) is not None


def needed(job: Object) -> int:
    """How many pods a job has to have before it can begin."""
    spec = job["spec"]
    if job["kind"] == PYTORCH_JOB.kind:
        least = (spec.get("elasticPolicy") or {}).get("minReplicas")
        replicas = spec["pytorchReplicaSpecs"].values()
        return int(least or sum(each.get("replicas", 1) for each in replicas))
    return int(spec["trainer"].get("numNodes") or 1) if job["kind"] == TRAIN_JOB.kind else 1


def placed(pods: Iterable[Object]) -> int:
    """How many pods hold a place on a node, or have done their part."""
    return sum(
        bool(pod["spec"].get("nodeName"))
        and phase(pod) != "Failed"
        and "deletionTimestamp" not in pod["metadata"]
        for pod in pods
    )


def begun(job: Object, pods: list[Object]) -> bool:
    """Whether as many pods have started as the job needs."""
    return sum(phase(pod) != "Pending" for pod in pods) >= needed(job)


def suspended(job: Object) -> bool:
    """Whether something (Kueue) holds the job back."""
    spec = job.get("spec", {})
    wanted = spec.get("suspend") or spec.get("runPolicy", {}).get("suspend")
    return bool(wanted) or any(c["type"] == "Suspended" for c in _true_conditions(job))


def rank_zero(job: Object, pods: Iterable[Object]) -> Object | None:
    """The pod whose log is the job's: the newest that holds the first process."""
    name = job["metadata"]["name"]
    if job["kind"] == PYTORCH_JOB.kind:
        roles = job["spec"]["pytorchReplicaSpecs"]
        first = f"{name}-master-0" if "Master" in roles else f"{name}-worker-0"
        candidates = [pod for pod in pods if pod["metadata"]["name"] == first]
    elif job["kind"] == TRAIN_JOB.kind:
        candidates = [
            pod for pod in pods if pod["metadata"]["name"].startswith(f"{name}-{NODE}-0-0-")
        ]
    else:
        # Pod 0 of an Indexed Job writes the result; a plain Job's pods have no index.
        candidates = [
            pod for pod in pods if pod["metadata"].get("annotations", {}).get(_INDEX, "0") == "0"
        ]
    return max(candidates, key=lambda pod: pod["metadata"]["creationTimestamp"], default=None)


def phase(pod: Object) -> str:
    """Pending, Running, Succeeded or Failed."""
    return str(pod.get("status", {}).get("phase", "Pending"))


def waits_for(job: Object, pods: list[Object], events: Iterable[Object]) -> str:
    """Why a job that has not begun is waiting, in words for a person."""
    if suspended(job):
        older = job["metadata"].get("annotations", {}).get(YIELDS_ANNOTATION)
        if older:
            return f"makes room for {older}, which began before it"
        queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL)
        return f"suspended, waiting in queue {queue}" if queue else "suspended"
    for pod in pods:
        reason = stuck(pod) or _unscheduled(pod)
        if reason:
            return f"pod {pod['metadata']['name']}: {reason}"
    if not pods:
        refused = [e for e in events if e.get("type") == "Warning"]
        if refused:
            latest = max(refused, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
            return f"{latest.get('reason')}: {latest.get('message')}"
        return "its operator has made no pods yet"
    pending = [pod["metadata"]["name"] for pod in pods if phase(pod) == "Pending"]
    return f"starting {', '.join(pending)}" if pending else "starting"


def stuck(pod: Object) -> str | None:
    """Why a pod that has a node does not start its containers, if it is more than taking time."""
    for status in _containers(pod):
        waiting = status.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in _STUCK:
            message = " ".join(waiting.get("message", "").split())
            return f"{waiting['reason']}: {message or status.get('image', '')}"
    return None


def _unscheduled(pod: Object) -> str | None:
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', 'Unschedulable')}: {condition.get('message', '')}"
    return None


class PodFailure(NamedTuple):
    """A container that ended badly; code is None where the pod was removed from its node."""

    pod: str
    container: str
    code: int | None
    reason: str
    finished: str

    def __str__(self) -> str:
        how = "was removed from its node" if self.code is None else f"exited with {self.code}"
        return f"pod {self.pod} {how}{f' ({self.reason})' if self.reason else ''}"


def failures(pods: Iterable[Object]) -> list[PodFailure]:
    """Containers that ended badly, the first to end first."""
    return sorted((f for pod in pods for f in _failures(pod)), key=lambda f: f.finished)


def _failures(pod: Object) -> Iterator[PodFailure]:
    name, failed = pod["metadata"]["name"], False
    for status in _containers(pod):
        for state in (status.get("state", {}), status.get("lastState", {})):
            ended = state.get("terminated")
            if ended and ended.get("exitCode"):
                failed = True
                reason = ended.get("reason", "")
                reason = "" if reason == "Error" else reason
                finished = ended.get("finishedAt") or ""
                yield PodFailure(name, status["name"], ended["exitCode"], reason, finished)
                break
    if not failed and phase(pod) == "Failed":
        status = pod.get("status", {})
        reason = f"{status.get('reason', '')} {status.get('message', '')}".strip()
        yield PodFailure(name, "", None, reason, status.get("startTime") or "")


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def _true_conditions(job: Object) -> list[Object]:
    conditions = job.get("status", {}).get("conditions") or []
    return [c for c in conditions if c["status"] == "True"]


def differences(wanted: Any, actual: Any, path: str = "") -> Iterator[str]:
    """Where an object in the cluster is not as wanted; what the server has added does not count."""
    if isinstance(wanted, dict) and isinstance(actual, dict):
        for key, value in wanted.items():
            yield from differences(value, actual.get(key), f"{path}.{key}" if path else key)
    elif isinstance(wanted, list) and isinstance(actual, list) and len(wanted) == len(actual):
        for place, (one, other) in enumerate(zip(wanted, actual, strict=True)):
            yield from differences(one, other, f"{path}[{place}]")
    elif wanted != actual:
        yield f"{path}: {_brief(actual)} there, {_brief(wanted)} asked for"


def _brief(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def seconds_between(earlier: str, later: str) -> float:
    """Seconds from one of the server's times to another."""
    return (_time(later) - _time(earlier)).total_seconds()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
