"""Trainings of several pods that get in each other's way: each holds nodes that the other needs.

Kubernetes places pods one by one, so two trainings of two pods each, on room for two pods, may get
one each and wait for ever. Their launchers settle it where no queue does (Kueue and Volcano place
all pods of a job, or none): a job that has some of its pods, but not all, makes room for an older
one that has not got all of its own. It is suspended, which removes its pods, until the older ones
have theirs. The oldest never makes room, so one always goes on.

A setting of this namespace's own trainings: what else holds nodes is not asked.
"""

from __future__ import annotations

import time

from percmae.jobs import state
from percmae.jobs.client import Client, Refused
from percmae.jobs.names import (
    INSTANCE_LABEL,
    PART_OF_LABEL,
    POD,
    PYTORCH_JOB,
    QUEUE_LABEL,
    YIELDS_ANNOTATION,
    Object,
    Resource,
)
from percmae.progress import note

YIELD_AFTER = 60.0
"""Seconds a job holds some of its nodes before it makes room: mostly the rest comes by then."""
_OURS = f"{PART_OF_LABEL}=percmae"


class Turns:
    """Lets one job make room for older ones, and take its turn again."""

    def __init__(self, client: Client, resource: Resource, path: str) -> None:
        self._client, self._resource, self._path = client, resource, path
        self._since: float | None = None

    def look(self, job: Object, pods: list[Object]) -> bool:
        """Do what is due; whether the job begins anew, with new pods."""
        if YIELDS_ANNOTATION in job["metadata"].get("annotations", {}):
            if self._older(job):
                return False
            note(f"{self._what(job)}: its turn has come")
            self._suspend(False, None)
            return True
        if not 0 < state.placed(pods) < state.needed(job) or state.suspended(job):
            self._since = None
            return False
        now = time.monotonic()
        self._since = self._since or now
        older = self._older(job) if now - self._since > YIELD_AFTER else None
        if older:
            note(
                f"{self._what(job)} has {state.placed(pods)} of its {state.needed(job)} pods, and "
                f"makes room for {older}, which began before it"
            )
            self._suspend(True, older)
            self._since = None
        return False

    def _older(self, job: Object) -> str | None:
        """A job that began before this one, and has not got all its pods."""
        jobs, _ = self._client.select(self._resource, labelSelector=_OURS)
        older = [each for each in jobs if _age(each) < _age(job) and _takes_part(each)]
        if not older:
            return None
        pods, _ = self._client.select(POD, labelSelector=_OURS)
        for each in sorted(older, key=_age):
            name = str(each["metadata"]["name"])
            own = [pod for pod in pods if pod["metadata"]["labels"].get(INSTANCE_LABEL) == name]
            if state.placed(own) < state.needed(each):
                return name
        return None

    def _suspend(self, suspend: bool, older: str | None) -> None:
        spec: Object = {"suspend": suspend}
        if self._resource == PYTORCH_JOB:
            spec = {"runPolicy": spec}
        body = {"metadata": {"annotations": {YIELDS_ANNOTATION: older}}, "spec": spec}
        try:
            self._client.request("PATCH", self._path, body)
        except Refused as error:
            if error.status != 404:  # gone: the launcher sees it at its next look
                raise

    def _what(self, job: Object) -> str:
        return f"{self._resource.kind} {job['metadata']['name']}"


def _age(job: Object) -> tuple[str, str]:
    """In this order they are served."""
    return job["metadata"]["creationTimestamp"], job["metadata"]["name"]


def _takes_part(job: Object) -> bool:
    """Whether it takes nodes now: one that waits in a queue or has made room does not."""
    if QUEUE_LABEL in job["metadata"].get("labels", {}) or "deletionTimestamp" in job["metadata"]:
        return False
    return state.needed(job) > 1 and state.ending(job) is None and not state.suspended(job)
