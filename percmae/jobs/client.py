"""A few plain requests to a Kubernetes API server, patient with its absences as far as one wants.

Objects are plain dictionaries as the server sends them, the same for built-in kinds and custom
ones. What may pass (a refused or broken connection, 429, 5xx) is tried again until the server has
been silent for ``patience`` seconds; what a person has to put right is one line.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from percmae.errors import PercmaeError, UserError, one_line
from percmae.jobs.names import Object, Resource
from percmae.progress import note

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its service account's token and its namespace."""
# Seconds until a request is tried again, doubled each time up to ten.
_PAUSE = 0.5
_TIMEOUT = urllib3.Timeout(connect=5, read=30)
# A stream that gives nothing for so long is opened anew: a dead connection looks like a quiet one.
_QUIET = urllib3.Timeout(connect=5, read=60)


class ClusterError(PercmaeError):
    """The API server could not be reached, or refused; ``reason`` is why, in few words."""

    reason = ""


class Unreachable(ClusterError):
    """No API server answers at that address."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Refused(ClusterError):
    """The API server said no.

    status: the HTTP code; message: the server's own words. The error's text adds what to do.
    """

    def __init__(self, status: int, message: str, request: str) -> None:
        self.status, self.message = status, message
        self.reason = f"{status}: {message}"
        if status == 401:
            text = (
                f"{message}: the Kubernetes API server does not know who asks; log in again, or "
                "name another kubeconfig (KUBECONFIG)"
            )
        elif status in (403, 404):
            # As the server says it: who may not do what, where.
            text = f"{message}; `percmae doctor --cluster` says what is missing"
        else:
            text = f"{request}: {self.reason}"
        super().__init__(text)


class Client:
    """An API server, asked as a pod's service account or as the kubeconfig's context says.

    namespace: that of every :meth:`path`; by default the pod's own, or the context's. host: the
    server's address. inside: whether this process runs in a pod of the cluster.
    """

    def __init__(self, namespace: str | None = None, patience: float = 0) -> None:
        """patience: seconds for which a request is tried again; 0: every failure is final.

        Raises UserError when there is neither pod nor kubeconfig, or no kubernetes package.
        """
        self.inside = (ACCOUNT / "token").exists()
        self._api, default = _connection(self.inside)
        self.namespace = namespace or default
        self.host: str = self._api.configuration.host
        self._patience = patience

    def path(self, resource: Resource, name: str = "") -> str:
        """Where the namespace's objects of a kind are, or the one of that name."""
        version = resource.api_version
        root = f"/apis/{version}" if resource.group else f"/api/{version}"
        folder = f"{root}/namespaces/{self.namespace}/{resource.plural}"
        return f"{folder}/{name}" if name else folder

    def get(self, path: str) -> Object | None:
        """The object at ``path``; None when there is none. Raises as :meth:`request`."""
        try:
            return self.request("GET", path)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def request(self, method: str, path: str, body: Object | None = None, **query: str) -> Object:
        """The answer as an object. Raises Refused for any HTTP error, Unreachable."""
        answer: Object = json.loads(self._answer(method, path, body, query))
        return answer

    def text(self, path: str, **query: str) -> str:
        """The answer as it is. Raises Refused, Unreachable."""
        return self._answer("GET", path, None, query).decode(errors="replace")

    def select(self, resource: Resource, **query: str) -> tuple[list[Object], str]:
        """Objects that fit labelSelector and fieldSelector, and the version to watch from."""
        answer = self._collection("GET", resource, None, query)
        return list(answer["items"]), str(answer["metadata"].get("resourceVersion", ""))

    def create(self, resource: Resource, wanted: Object) -> Object:
        """Create an object and return it as the server completed it.

        Every field counts: an older definition of a custom kind would drop what it does not know,
        and carry out something else. Raises UserError for such a field, Refused (409: there is one
        of that name), Unreachable.
        """
        try:
            return self._collection("POST", resource, wanted, {"fieldValidation": "Strict"})
        except Refused as error:
            if error.status != 400 or "unknown field" not in error.message:
                raise
            newer = f"; percmae needs {resource.since} or newer" if resource.since else ""
            raise UserError(
                f"the cluster's {resource.kind} is an older one: {error.message}{newer}"
            ) from None

    def delete(self, path: str, uid: str, version: str | None = None) -> bool:
        """Delete the object with this uid and all it owns, pods first; nothing if it has gone.

        version: only as it was then. Whether it was: False when it has changed since, or another
        object has the name by now.
        """
        wanted = {"uid": uid} if version is None else {"uid": uid, "resourceVersion": version}
        body = {"propagationPolicy": "Foreground", "preconditions": wanted}
        try:
            self.request("DELETE", path, body)
        except Refused as error:
            if error.status not in (404, 409):
                raise
            return error.status == 404
        return True

    def stream(self, path: str, stop: threading.Event, **query: str) -> Iterator[str]:
        """Lines of an answer that goes on, until the connection ends or ``stop`` is set.

        Never tried again: the caller takes up again where it ends.
        """
        try:
            response = self._send("GET", path, None, query, _QUIET)
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

    def _collection(
        self, method: str, resource: Resource, body: Object | None, query: dict[str, str]
    ) -> Object:
        path = self.path(resource)
        try:
            return self.request(method, path, body, **query)
        except Refused as error:
            if error.status != 404:
                raise
            absent = (
                f"the cluster has no {resource.plural} of {resource.api_version} or no namespace "
                f"{self.namespace}"
            )
            raise Refused(404, absent, f"{method} {path}") from None

    def _answer(self, method: str, path: str, body: Object | None, query: dict[str, str]) -> bytes:
        """The answer's content; asked for again while the server is away."""
        deadline, told, pause = time.monotonic() + self._patience, False, _PAUSE
        while True:
            try:
                return self._attempt(method, path, body, query)
            except ClusterError as error:
                if not self._patience or not _may_pass(error):
                    raise
                reason = error.reason
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"the Kubernetes API server at {self.host} has not answered for "
                    f"{self._patience:.0f} s: {reason}",
                    reason,
                )
            if not told:
                note(f"the Kubernetes API server does not answer ({reason}); trying again")
                told = True
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    def _attempt(self, method: str, path: str, body: Object | None, query: dict[str, str]) -> bytes:
        try:
            response = self._send(method, path, body, query, _TIMEOUT)
            data: bytes = response.data
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = _reason(error)
            raise Unreachable(
                f"no Kubernetes API server answers at {self.host}: {reason}", reason
            ) from None
        if response.status >= 400:
            message = _message(data) or f"HTTP {response.status} {response.reason}"
            raise Refused(response.status, message, f"{method} {path}")
        return data

    def _send(
        self,
        method: str,
        path: str,
        body: Object | None,
        query: dict[str, str],
        timeout: urllib3.Timeout,
    ) -> Any:
        headers = {"Accept": "application/json, */*"}
        fields = list(query.items())
        # Refreshes an expiring token, as of a service account or a cloud's login.
        self._api.update_params_for_auth(headers, fields, ["BearerToken"])
        if body is not None:
            patch = "application/merge-patch+json"
            headers["Content-Type"] = patch if method == "PATCH" else "application/json"
        return self._api.rest_client.pool_manager.request(
            method,
            self.host + path + (f"?{urlencode(fields)}" if fields else ""),
            body=None if body is None else json.dumps(body),
            headers=headers,
            timeout=timeout,
            retries=False,
            preload_content=False,
        )


def _connection(inside: bool) -> tuple[Any, str]:
    """The kubernetes package's client of the API, and the namespace that goes with it."""
    try:  # an optional package
        from kubernetes import client, config
    except ImportError:
        raise UserError(
            "a cluster takes the kubernetes package: pip install 'percmae[pipelines]'"
        ) from None
    settings = client.Configuration()
    # The package itself looks at KUBECONFIG once, when it is imported.
    named = os.environ.get("KUBECONFIG") or None
    try:
        if inside:
            config.load_incluster_config(client_configuration=settings)
            return client.ApiClient(settings), (ACCOUNT / "namespace").read_text().strip()
        config.load_kube_config(named, client_configuration=settings)
        _, active = config.list_kube_config_contexts(named)
    except Exception as error:  # of a damaged file: whatever it makes the package stumble over
        raise UserError(
            f"no cluster to use: {one_line(error)}; set KUBECONFIG to a kubeconfig"
        ) from None
    return client.ApiClient(settings), active["context"].get("namespace", "default")


def _may_pass(error: ClusterError) -> bool:
    """Whether the same request may be answered later."""
    return not isinstance(error, Refused) or error.status == 429 or error.status >= 500


def _message(body: bytes) -> str:
    """What a Status object, or whatever else an HTTP server answers, says."""
    text = body.decode(errors="replace")
    try:
        return " ".join(str(json.loads(text)["message"]).split())
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:300]


def _reason(error: BaseException) -> str:
    """The cause of a broken connection, without the name of the connection before it."""
    if error.args and isinstance(error.args[-1], BaseException):
        error = error.args[-1]
    text = one_line(error)
    return re.sub(r"^(<.*?>|\w+\(.*?\)): ", "", text) or type(error).__name__
