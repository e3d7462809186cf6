"""What only a try tells about a cluster: a suspended training, a short pod, both cleared away."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from percmae.doctor.finding import Finding
from percmae.errors import ConfigError, Interrupted, PercmaeError
from percmae.jobs.api import Refused
from percmae.jobs.names import Object
from percmae.jobs.spec import job_object, pod_template
from percmae.jobs.work import Work, command

if TYPE_CHECKING:
    from percmae.doctor.cluster import Look

_OPERATOR_SECONDS = 20.0
_POLL_SECONDS = 1.0
# A container in one of these states does not leave it by waiting.
_NO_IMAGE = {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_NO_START = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_STORE_RETRY_SECONDS = "15"


class _End(NamedTuple):
    """How the pod ended: ``stage`` (image, start, store, done) is how far it did not get past."""

    stage: str
    reason: str


def try_operator(look: Look, mend: str) -> Finding:
    """Whether an operator takes up a training: a suspended one, for which no pod is made."""
    what = "operator"
    name = f"percmae-doctor-{secrets.token_hex(4)}"
    work = Work("doctor", ("--version",), "doctor", secrets.token_hex(16), trains=True)
    settings = replace(look.settings, namespace=look.namespace, nodes=1, min_nodes=None, queue=None)
    try:
        made = job_object(work, settings)
    except ConfigError as error:
        return Finding(False, what, str(error))
    made["metadata"]["name"] = name
    spec = made["spec"]
    spec.get("runPolicy", spec)["suspend"] = True
    group, plural = made["apiVersion"], f"{made['kind'].lower()}s"
    try:
        with _created(look, look.path(plural, group), made) as path:
            begun = time.monotonic()
            while time.monotonic() - begun < min(_OPERATOR_SECONDS, look.timeout):
                status = (look.api.get(path) or {}).get("status") or {}
                if status.get("conditions"):
                    took = time.monotonic() - begun
                    return Finding(True, what, f"took up a {made['kind']} within {took:.0f} s")
                time.sleep(_POLL_SECONDS)
    except Refused as error:
        if error.status == 403:
            raise
        # Its webhook among others, which nobody answers while it is down.
        return Finding(False, what, f"a {made['kind']} is refused: {error}", mend)
    found = f"nobody took up a {made['kind']} within {min(_OPERATOR_SECONDS, look.timeout):.0f} s"
    return Finding(False, what, found, mend)


def try_pod(look: Look) -> Iterator[Finding]:
    """Whether a pod gets the image, and reaches the bucket with the keys it is given."""
    image = look.settings.image
    end = _run(look, _pod(look))
    if end.stage == "image":
        mend = (
            f"make images, then bring it to the nodes (kind load docker-image {image}), or name "
            "one that they can pull: image=registry/name@sha256:…, image_pull_secrets=[name]"
        )
        yield Finding(False, f"image {image}", end.reason, mend)
        return
    if end.stage == "start":
        mend = "mend what it says; `kubectl get events` has more"
        yield Finding(False, "a pod", end.reason, mend)
        return
    yield Finding(True, f"image {image}", "starts in a pod")
    mend = f"{look.kubectl} get pods,services,jobs -l app.kubernetes.io/part-of=percmae"
    if "bucket" in end.reason and "does not exist" in end.reason:
        again = f"{look.kubectl} delete job percmae-bucket --ignore-not-found"
        mend = f"{again}; {look.apply('bucket')}"
    fine = end.stage == "done"
    found = "a pod writes, reads and deletes there" if fine else end.reason
    yield Finding(fine, f"bucket {look.store}", found, mend)


def _pod(look: Look) -> Object:
    work = command("doctor", "doctor", look.store)
    settings = replace(
        look.settings,
        gpus=0,
        cpu="50m",
        memory="256Mi",
        shm="16Mi",
        scratch="64Mi",
        grace=1,
        env=[
            *look.settings.env,
            {"name": "PERCMAE_STORE_RETRY_SECONDS", "value": _STORE_RETRY_SECONDS},
        ],
    )
    run = ["python", "-m", "percmae.storage.bucket", "check", look.store]
    template = pod_template(work, settings, run, "percmae")
    template["metadata"]["name"] = f"percmae-doctor-{secrets.token_hex(4)}"
    # Should nobody be left to delete it.
    template["spec"] |= {"restartPolicy": "Never", "activeDeadlineSeconds": int(look.timeout) + 60}
    return {"apiVersion": "v1", "kind": "Pod", **template}


def _run(look: Look, pod: Object) -> _End:
    """Run the pod to its end, or to a state that it will not leave; then delete it."""
    try:
        with _created(look, look.path("pods"), pod) as path:
            deadline = time.monotonic() + look.timeout
            seen: Object = {}
            while time.monotonic() < deadline:
                found = look.api.get(path)
                if found is None:
                    return _End("start", "it was deleted by somebody else")
                seen = found.get("status") or {}
                end = _ended(look, path, seen)
                if end is not None:
                    return end
                time.sleep(_POLL_SECONDS)
            return _late(look.timeout, seen)
    except Refused as error:
        if error.status == 403 and "cannot create" in str(error):
            raise  # about who asks; other refusals are about the pod: a quota, no such account
        return _End("start", f"is refused: {error}")


def _ended(look: Look, path: str, status: Object) -> _End | None:
    state = _state(status)
    waiting, ended = state.get("waiting"), state.get("terminated")
    if waiting is not None:
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _NO_IMAGE | _NO_START:
            text = f"{reason}: {message}".strip(": ")
            return _End("image" if reason in _NO_IMAGE else "start", text)
    if ended is not None:
        if ended["exitCode"] == 0:
            return _End("done", "")
        if ended.get("reason") in ("StartError", "ContainerCannotRun"):  # no tini, no python
            return _End("image", f"does not start: {ended.get('message', '')}".strip(": "))
        return _End("store", _last_line(look, path) or f"the pod ended with {ended['exitCode']}")
    if status.get("phase") == "Failed":
        return _End("start", status.get("message") or status.get("reason") or "it failed")
    return None


def _late(timeout: float, status: Object) -> _End:
    """Why the pod has not come to an end, as far as it says."""
    waiting = _state(status).get("waiting")
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return _End("start", f"not scheduled within {timeout:.0f} s: {scheduled.get('message')}")
    if waiting is not None:
        reason = f"{waiting.get('reason')}: {waiting.get('message', '')}".strip(": ")
        stage = "image" if waiting.get("reason") == "ErrImagePull" else "start"
        return _End(stage, f"not started within {timeout:.0f} s: {reason}")
    return _End("store", f"no answer within {timeout:.0f} s")


def _state(status: Object) -> dict[str, Any]:
    containers = status.get("containerStatuses") or [{}]
    return containers[0].get("state") or {}


def _last_line(look: Look, path: str) -> str:
    """The error a container ended with."""
    with suppress(Refused):
        lines = look.api.text(f"{path}/log?tailLines=5").strip().splitlines()
        return lines[-1].removeprefix("percmae: error: ") if lines else ""
    return ""


@contextmanager
def _created(look: Look, folder: str, made: Object) -> Iterator[str]:
    """Create an object and delete it in the end, also when this process is told to stop."""
    path = f"{folder}/{made['metadata']['name']}"
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        look.api.request("POST", folder, made)
        yield path
    finally:
        with suppress(PercmaeError):
            body = {"propagationPolicy": "Background", "gracePeriodSeconds": 0}
            look.api.request("DELETE", path, body)
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number, "what was tried in the cluster is deleted")
