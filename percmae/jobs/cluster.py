"""The few calls to a Kubernetes API server that following a job takes, patient with its absences.

Objects are plain dictionaries as the server sends them, the same for built-in kinds and custom
ones. What may pass (a refused or broken connection, 429, 5xx) is tried again until the server has
been silent for ``silence`` seconds; what a person must mend is one line.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from percmae.errors import PercmaeError
from percmae.jobs.api import ACCOUNT, connect, said
from percmae.jobs.names import Object
from percmae.progress import note

# A connection that gives nothing for so long is opened anew: a dead one looks like a quiet one.
_QUIET = 60
_TIMEOUT = (5, 30)
SILENCE = 600.0


class Kind(NamedTuple):
    """Where the API server keeps objects of a kind."""

    api: str
    plural: str


KINDS = {
    "PyTorchJob": Kind("/apis/kubeflow.org/v1", "pytorchjobs"),
    "TrainJob": Kind("/apis/trainer.kubeflow.org/v1alpha1", "trainjobs"),
    "Job": Kind("/apis/batch/v1", "jobs"),
    "Pod": Kind("/api/v1", "pods"),
    "Event": Kind("/api/v1", "events"),
}


class ClusterError(PercmaeError):
    """The API server could not be reached, or refused."""


class Conflict(ClusterError):
    """There is an object of that name already."""


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, namespace: str | None = None, silence: float = SILENCE) -> None:
        """Connects as the pod's service account, or as the kubeconfig's context says.

        Raises UserError when there is neither, or no kubernetes package.
        """
        self._api, found = connect()
        self.namespace = namespace or found
        self._silence = silence
        self.inside = ACCOUNT.exists()

    def get(self, kind: str, name: str) -> Object | None:
        """The object, or None when there is none."""
        return self._request("GET", self._path(kind, name))

    def select(self, kind: str, **query: str) -> tuple[list[Object], str]:
        """Objects that fit labelSelector and fieldSelector, and the version to watch from."""
        answer = self._request("GET", self._path(kind), query)
        if answer is None:
            raise ClusterError(self._absent(kind))
        return list(answer["items"]), str(answer["metadata"].get("resourceVersion", ""))

    def create(self, kind: str, made: Object) -> Object:
        """Create it and return it as the server completed it. Raises Conflict, ClusterError."""
        answer = self._request("POST", self._path(kind), body=made)
        if answer is None:
            raise ClusterError(self._absent(kind))
        return answer

    def own(self, kind: str, name: str, owners: list[Object]) -> None:
        """Set an object's owners."""
        body = {"metadata": {"ownerReferences": owners}}
        self._request("PATCH", self._path(kind, name), body=body)

    def delete(self, kind: str, name: str, uid: str | None = None) -> None:
        """Delete it with all it owns, pods first; only the one with this uid, where given."""
        body: Object = {"propagationPolicy": "Foreground"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            self._request("DELETE", self._path(kind, name), body=body)
        except Conflict:
            return  # another object has the name by now

    def log(
        self, pod: str, container: str, since: str | None = None, tail: int | None = None
    ) -> str:
        """What a container has printed, each line behind its time; empty when it cannot be had."""
        query = {"container": container, "timestamps": "true"}
        query |= {"sinceTime": since} if since else {}
        query |= {"tailLines": str(tail)} if tail is not None else {}
        try:
            answer = self._request("GET", self._path("Pod", pod) + "/log", query, raw=True)
        except ClusterError:
            return ""  # the pod is still starting, or its node has gone
        return answer or ""

    def follow(
        self, pod: str, container: str, since: str | None, stop: threading.Event
    ) -> Iterator[str]:
        """Lines that a container prints, each behind its time, until the connection ends."""
        query = {"container": container, "timestamps": "true", "follow": "true"}
        query |= {"sinceTime": since} if since else {}
        return self._lines(self._path("Pod", pod) + "/log", query, stop)

    def watch(self, kind: str, stop: threading.Event, **query: str) -> Iterator[str]:
        """Watch events as JSON texts, until the connection ends."""
        return self._lines(self._path(kind), {"watch": "true", **query}, stop)

    def _lines(self, path: str, query: dict[str, str], stop: threading.Event) -> Iterator[str]:
        """Lines of an answer that goes on; the caller takes up again where it ends."""
        import urllib3

        try:
            response = self._send("GET", path, query, None, (_TIMEOUT[0], _QUIET))
        except (urllib3.exceptions.HTTPError, OSError):
            return
        rest = b""
        try:
            while response.status == 200 and not stop.is_set():
                data = response.read1()
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        except (urllib3.exceptions.HTTPError, OSError):
            rest = b""  # half a line is read again whole
        finally:
            response.close()
        if rest:
            yield rest.decode(errors="replace")

    def owner(self) -> Object | None:
        """An ownerReferences entry for the pod this process runs in; None outside a cluster.

        KFP tells a step its pod's name; elsewhere a pod's host name is its name.
        """
        if not self.inside:
            return None
        name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME", "")
        pod = self.get("Pod", name) if name else None
        if pod is None:
            note(f"pod {name!r} is not in namespace {self.namespace}: the job will have no owner")
            return None
        return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"]}

    def _path(self, kind: str, name: str = "") -> str:
        api, plural = KINDS[kind]
        return f"{api}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def _absent(self, kind: str) -> str:
        api, plural = KINDS[kind]
        return (
            f"the cluster has no {plural} of {api.removeprefix('/apis/')} or no namespace "
            f"{self.namespace}; `percmae doctor --cluster` says what is missing"
        )

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        raw: bool = False,
    ) -> Any:
        """The answer, or None for 404; tried again while the server is away."""
        deadline, told, pause = time.monotonic() + self._silence, False, 0.5
        while True:
            reason = self._attempt(method, path, query, body)
            if not isinstance(reason, str):
                data = reason.data
                if reason.status == 404:
                    return None
                return data.decode(errors="replace") if raw else json.loads(data)
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the Kubernetes API server has not answered for {self._silence:.0f} s "
                    f"({reason}); the job goes on without this launcher, start it again to follow"
                )
            if not told:
                note(f"the Kubernetes API server does not answer ({reason}); trying again")
                told = True
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    def _attempt(
        self, method: str, path: str, query: dict[str, str] | None, body: Object | None
    ) -> Any:
        """The response, or the reason to try again as text. Raises what is final."""
        import urllib3

        try:
            response = self._send(method, path, query, body, _TIMEOUT)
            response.data  # noqa: B018 (reads it)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return _short(error)
        if response.status < 400 or response.status == 404:
            return response
        message = said(response.data)
        if response.status == 409:
            raise Conflict(message)
        if response.status == 429 or response.status >= 500:
            return f"{response.status}: {message}"
        if response.status in (401, 403):
            # As the server says it: who may not do what, where.
            raise ClusterError(f"{message}; `percmae doctor --cluster` says what is missing")
        raise ClusterError(f"{method} {path}: {response.status}: {message}")

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: Object | None,
        timeout: tuple[int, int],
    ) -> Any:
        import urllib3

        api = self._api
        headers = {"Accept": "application/json, */*"}
        queries: list[tuple[str, str]] = list((query or {}).items())
        # Refreshes an expiring token, as of a service account or a cloud's login.
        api.update_params_for_auth(headers, queries, ["BearerToken"])
        if body is not None:
            patch = "application/merge-patch+json"
            headers["Content-Type"] = patch if method == "PATCH" else "application/json"
        return api.rest_client.pool_manager.request(
            method,
            api.configuration.host + path,
            fields=queries if body is None else None,
            body=None if body is None else json.dumps(body),
            headers=headers,
            timeout=urllib3.Timeout(*timeout),
            retries=False,
            preload_content=False,
        )


def _short(error: BaseException) -> str:
    """The cause of a broken connection without addresses of objects in memory."""
    text = " ".join(str(error).split())
    return text.rpartition(">: ")[2] or type(error).__name__
