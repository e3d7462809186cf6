"""What only a try tells about a cluster: a suspended training, a short pod, both cleared away."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Any, NamedTuple

from percmae.doctor.context import Context
from percmae.doctor.finding import Finding
from percmae.errors import ConfigError, Interrupted
from percmae.jobs import state
from percmae.jobs.client import ClusterError, Refused
from percmae.jobs.logs import last_lines
from percmae.jobs.names import PART_OF_LABEL, POD, Object, Resource
from percmae.jobs.pod import pod_template
from percmae.jobs.spec import job_object
from percmae.jobs.work import Work, command
from percmae.storage.settings import RETRY_VARIABLE

_OPERATOR_SECONDS = 20.0
_POLL_SECONDS = 1.0
_STORE_RETRY_SECONDS = "15"
_CONTAINER = "percmae"


class _End(NamedTuple):
    """How the pod ended: ``stage`` (image, start, store, done) is how far it did not get past."""

    stage: str
    reason: str


def try_operator(context: Context, resource: Resource, fix: str) -> Finding:
    """Whether an operator takes up a training: a suspended one, for which no pod is made."""
    what, kind = "operator", resource.kind
    seconds = min(_OPERATOR_SECONDS, context.timeout)
    try:
        job = _suspended(context)
    except ConfigError as error:
        return Finding(False, what, str(error))
    try:
        with _created(context, resource, job) as path:
            begun = time.monotonic()
            while time.monotonic() - begun < seconds:
                status = (context.client.get(path) or {}).get("status") or {}
                if status.get("conditions"):
                    took = time.monotonic() - begun
                    return Finding(True, what, f"took up a {kind} within {took:.0f} s")
                time.sleep(_POLL_SECONDS)
    except Refused as error:
        if error.status == 403:
            raise
        # Its webhook among others, which nobody answers while it is down.
        return Finding(False, what, f"a {kind} is refused: {error.message}", fix)
    return Finding(False, what, f"nobody took up a {kind} within {seconds:.0f} s", fix)


def _suspended(context: Context) -> Object:
    """A training that waits for somebody to let it begin. Raises ConfigError."""
    work = Work("doctor", ("--version",), "doctor", secrets.token_hex(16), trains=True)
    settings, namespace = context.settings, context.namespace
    settings = replace(settings, namespace=namespace, nodes=1, min_nodes=None, queue=None)
    job = job_object(work, settings)
    job["metadata"]["name"] = _name()
    job["spec"].get("runPolicy", job["spec"])["suspend"] = True
    return job


def _name() -> str:
    return f"percmae-doctor-{secrets.token_hex(4)}"


def try_pod(context: Context) -> Iterator[Finding]:
    """Whether a pod gets the image, and reaches the bucket with the keys it is given."""
    image = context.settings.image
    end = _run(context, _pod(context))
    if end.stage == "image":
        fix = (
            f"make images, then bring it to the nodes (kind load docker-image {image}), or name "
            "one that they can pull: image=registry/name@sha256:…, image_pull_secrets=[name]"
        )
        yield Finding(False, f"image {image}", end.reason, fix)
        return
    if end.stage == "start":
        fix = "fix what it says; `kubectl get events` has more"
        yield Finding(False, "a pod", end.reason, fix)
        return
    yield Finding(True, f"image {image}", "starts in a pod")
    fix = f"{context.kubectl} get pods,services,jobs -l {PART_OF_LABEL}=percmae"
    if "bucket" in end.reason and "does not exist" in end.reason:
        again = f"{context.kubectl} delete job percmae-bucket --ignore-not-found"
        fix = f"{again}; {context.apply('bucket')}"
    fine = end.stage == "done"
    found = "a pod writes, reads and deletes there" if fine else end.reason
    yield Finding(fine, f"bucket {context.store}", found, fix)


def _pod(context: Context) -> Object:
    work = command("doctor", "doctor", context.store)
    settings = replace(
        context.settings,
        gpus=0,
        cpu="50m",
        memory="256Mi",
        shm="16Mi",
        scratch="64Mi",
        grace=1,
        env=[
            *context.settings.env,
            {"name": RETRY_VARIABLE, "value": _STORE_RETRY_SECONDS},
        ],
    )
    run = ["python", "-m", "percmae.storage.bucket", "check", context.store]
    template = pod_template(work, settings, run, _CONTAINER)
    template["metadata"]["name"] = _name()
    # Should nobody be left to delete it.
    limit = int(context.timeout) + 60
    template["spec"] |= {"restartPolicy": "Never", "activeDeadlineSeconds": limit}
    return {"apiVersion": POD.api_version, "kind": POD.kind, **template}


def _run(context: Context, pod: Object) -> _End:
    """Run the pod to its end, or to a state that it will not leave; then delete it."""
    try:
        with _created(context, POD, pod) as path:
            deadline = time.monotonic() + context.timeout
            seen: Object = {}
            while time.monotonic() < deadline:
                now = context.client.get(path)
                if now is None:
                    return _End("start", "it was deleted by somebody else")
                seen = now.get("status") or {}
                end = _ended(context, pod["metadata"]["name"], seen)
                if end is not None:
                    return end
                time.sleep(_POLL_SECONDS)
            return _late(context.timeout, seen)
    except Refused as error:
        if error.status == 403 and "cannot create" in error.message:
            raise  # about who asks; other refusals are about the pod: a quota, no such account
        return _End("start", f"is refused: {error.message}")


def _ended(context: Context, pod: str, status: Object) -> _End | None:
    container = _container_state(status)
    waiting, ended = container.get("waiting"), container.get("terminated")
    if waiting is not None:
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in (*state.NO_IMAGE, *state.NO_START):
            text = f"{reason}: {message}".strip(": ")
            return _End("image" if reason in state.NO_IMAGE else "start", text)
    if ended is not None:
        if ended["exitCode"] == 0:
            return _End("done", "")
        if ended.get("reason") in ("StartError", "ContainerCannotRun"):  # no tini, no python
            return _End("image", f"does not start: {ended.get('message', '')}".strip(": "))
        lines = last_lines(context.client, pod, _CONTAINER, 5)
        said = lines[-1].removeprefix("percmae: error: ") if lines else ""
        return _End("store", said or f"the pod ended with {ended['exitCode']}")
    if status.get("phase") == "Failed":
        return _End("start", status.get("message") or status.get("reason") or "it failed")
    return None


def _late(timeout: float, status: Object) -> _End:
    """Why the pod has not come to an end, as far as it says."""
    waiting = _container_state(status).get("waiting")
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return _End("start", f"not scheduled within {timeout:.0f} s: {scheduled.get('message')}")
    if waiting is not None:
        reason = f"{waiting.get('reason')}: {waiting.get('message', '')}".strip(": ")
        stage = "image" if waiting.get("reason") == "ErrImagePull" else "start"
        return _End(stage, f"not started within {timeout:.0f} s: {reason}")
    return _End("store", f"no answer within {timeout:.0f} s")


def _container_state(status: Object) -> dict[str, Any]:
    containers = status.get("containerStatuses") or [{}]
    return containers[0].get("state") or {}


@contextmanager
def _created(context: Context, resource: Resource, wanted: Object) -> Iterator[str]:
    """Create an object and delete it in the end, also when this process is told to stop."""
    path = context.client.path(resource, wanted["metadata"]["name"])
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        context.client.create(resource, wanted)
        yield path
    finally:
        with suppress(ClusterError):
            body = {"propagationPolicy": "Background", "gracePeriodSeconds": 0}
            context.client.request("DELETE", path, body)
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number, "what was tried in the cluster is deleted")
