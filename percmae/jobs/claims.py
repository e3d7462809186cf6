"""Who follows a job. It lives as long as one of them does, and no one ends it for the others.

A claim is a label of the job: the pipeline's run it is followed for, or ``submit`` for everyone
outside a pipeline. Whoever gives up takes its claim away; the last one removes the job.

In a cluster a claim has an owner too, for launchers that are killed without a word: what made the
launcher's pod and makes another in its place (Argo's Workflow, a Job), else the pod itself. So a
job outlives its launcher's pod, and goes with the workflow. A job that someone outside the cluster
follows gets no owner: it would go with a workflow although it is still followed.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Any

from percmae.jobs import state
from percmae.jobs.client import Client, ClusterError, Refused
from percmae.jobs.names import (
    CLAIMS,
    JOB,
    JOBS,
    OUTSIDE,
    PART_OF_LABEL,
    POD,
    TTL_ANNOTATION,
    Object,
    Resource,
)
from percmae.progress import note, warn

_SETTLING = 1.0
"""Seconds that a Job's own status may come behind the deletion of its pods."""


class Claim:
    """What one launcher, or all those of a pipeline's run, have in a job."""

    def __init__(self, client: Client, pipeline_run: str) -> None:
        """pipeline_run: its id; empty outside a pipeline."""
        self._client = client
        self.label = f"{CLAIMS}{pipeline_run or OUTSIDE}"
        self._pod = _own_pod(client)
        self.owner = _owner(self._pod) if self._pod is not None else None

    def mark(self, wanted: Object) -> None:
        """Put the claim on a job that is to be created."""
        wanted["metadata"]["labels"][self.label] = ""

    def add(self, path: str, job: Object) -> Object | None:
        """The job at ``path`` with this claim on it; None when it has just gone."""
        while True:
            metadata = job["metadata"]
            owners = metadata.get("ownerReferences", [])
            new = self.owner is not None and self.owner["uid"] not in _uids(owners)
            changes: Object = {}
            if self.label not in claims_of(job):
                changes["labels"] = {self.label: ""}
            if new and (owners or not claims_of(job)):
                changes["ownerReferences"] = [*owners, self.owner]
            if not changes:
                return job
            # Owners are a list, which two could write at once.
            changes["resourceVersion"] = metadata.get("resourceVersion")
            try:
                return self._client.request("PATCH", path, {"metadata": changes})
            except Refused as error:
                if error.status not in (404, 409):
                    raise
            found = self._client.get(path)
            if found is None or found["metadata"]["uid"] != metadata["uid"]:
                return None
            job = found

    def give_up(self, path: str, job: Object) -> list[str]:
        """Remove the job, or the claim alone where there are others; theirs.

        job: as it was last seen. That nobody has claimed it since is left to the server, so that
        the first request removes it.
        """
        uid = job["metadata"]["uid"]
        found: Object | None = job
        while found is not None and found["metadata"]["uid"] == uid:
            others = [claim for claim in claims_of(found) if claim != self.label]
            if self._take_away(path, found) if others else self._remove(path, found):
                return [claim.removeprefix(CLAIMS) for claim in others]
            found = self._client.get(path)
        return []

    def _remove(self, path: str, job: Object) -> bool:
        metadata = job["metadata"]
        return self._client.delete(path, metadata["uid"], metadata.get("resourceVersion"))

    def _take_away(self, path: str, job: Object) -> bool:
        """Take the claim from the job; whether it was as it was seen."""
        owners = job["metadata"].get("ownerReferences", [])
        mine = self.owner["uid"] if self.owner is not None else None
        changes = {
            "labels": {self.label: None},
            "ownerReferences": [each for each in owners if each["uid"] != mine],
            "resourceVersion": job["metadata"].get("resourceVersion"),
        }
        try:
            self._client.request("PATCH", path, {"metadata": changes})
        except Refused as error:
            if error.status not in (404, 409):
                raise
            return False
        return True

    def moved(self) -> bool:
        """Whether this process is told to stop because its pod is taken away, and its owner stays.

        A pipeline that is terminated has its containers told to stop; a pod that is drained,
        preempted or deleted is being deleted itself, or says that it is disrupted.
        """
        if self._pod is None or self.owner is None or self.owner["kind"] == POD.kind:
            return False
        metadata = self._pod["metadata"]
        pod = self._client.get(self._client.path(POD, metadata["name"]))
        if pod is not None and pod["metadata"]["uid"] == metadata["uid"] and not _leaving(pod):
            return False
        return not self._owner_ended()

    def _owner_ended(self) -> bool:
        """Whether a Job that owns this pod has ended: it deletes its pods then, at its deadline."""
        assert self.owner is not None
        if self.owner["kind"] != JOB.kind:
            return False
        time.sleep(_SETTLING)
        job = self._client.get(self._client.path(JOB, self.owner["name"]))
        return job is None or "deletionTimestamp" in job["metadata"] or state.failing(job)


def claims_of(job: Object) -> list[str]:
    """The labels that are claims on a job."""
    return [label for label in job["metadata"].get("labels", {}) if label.startswith(CLAIMS)]


def clean(pipeline_run: str, namespace: str | None, patience: float) -> list[str]:
    """Give up the jobs that a pipeline's run has left under way; the names of those removed.

    What the run's steps do themselves when they are told to stop, for steps that were not asked.
    """
    client, removed = Client(namespace, patience), []
    claim = Claim(client, pipeline_run)
    for resource in JOBS.values():
        try:
            jobs, _ = client.select(resource, labelSelector=claim.label)
            sweep(client, resource)
        except ClusterError as error:
            if not isinstance(error, Refused) or error.status != 404:
                warn(f"{resource.kind}s not looked for: {error}")
            continue  # a kind that the cluster does not have is none of the run's
        for job in jobs:
            if state.ending(job) is None and "deletionTimestamp" not in job["metadata"]:
                name = job["metadata"]["name"]
                others = claim.give_up(client.path(resource, name), job)
                if others:
                    note(f"{resource.kind} {name} goes on: {', '.join(others)} follows it too")
                else:
                    removed.append(f"{resource.kind} {name}")
    return removed


def sweep(client: Client, resource: Resource) -> None:
    """Remove our jobs of a kind that ended longer ago than their time to live.

    Jobs of Kubernetes go by themselves. The training operator forgets those whose failure was
    final: it counts from a completionTime that they never get. A TrainJob has no field for it.
    """
    if resource == JOB:
        return
    for job in client.select(resource, labelSelector=f"{PART_OF_LABEL}=percmae")[0]:
        ended, ttl = state.ended_at(job), _time_to_live(job)
        if ended is None or ttl is None:
            continue
        if (datetime.now(UTC) - ended).total_seconds() > ttl:
            name = job["metadata"]["name"]
            client.delete(client.path(resource, name), job["metadata"]["uid"])
            note(f"{resource.kind} {name} ended more than {ttl} s ago: removed")


def _time_to_live(job: Object) -> int | None:
    own = job["spec"].get("runPolicy", {}).get("ttlSecondsAfterFinished")
    given = own if own is not None else job["metadata"].get("annotations", {}).get(TTL_ANNOTATION)
    return None if given is None else int(given)


def _own_pod(client: Client) -> Object | None:
    """The pod this process runs in; None outside a cluster.

    KFP tells a step its pod's name; elsewhere a pod's host name is its name.
    """
    if not client.inside:
        return None
    name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME", "")
    pod = client.get(client.path(POD, name)) if name else None
    if pod is None:
        warn(f"pod {name!r} is not in namespace {client.namespace}: the job will have no owner")
    return pod


def _owner(pod: Object) -> Object:
    """An ownerReferences entry for what made the pod, else for the pod itself."""
    owners: list[Any] = pod["metadata"].get("ownerReferences", [])
    for each in owners:
        if each.get("controller"):
            return {key: each[key] for key in ("apiVersion", "kind", "name", "uid")}
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    return {"apiVersion": POD.api_version, "kind": POD.kind, "name": name, "uid": uid}


def _leaving(pod: Object) -> bool:
    """Whether a pod is being deleted, or its node lets go of it."""
    conditions = pod.get("status", {}).get("conditions", [])
    disrupted = any(c["type"] == "DisruptionTarget" and c["status"] == "True" for c in conditions)
    return disrupted or "deletionTimestamp" in pod["metadata"]


def _uids(owners: list[Object]) -> set[str]:
    return {each["uid"] for each in owners}
