"""A few plain requests to a Kubernetes API server: what looking at a cluster takes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from percmae.errors import PercmaeError, UserError
from percmae.jobs.names import Object

_TIMEOUT = (5, 30)
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its service account's token and its namespace."""


class Unreachable(PercmaeError):
    """No API server answers at that address."""


class Refused(PercmaeError):
    """The API server said no; ``status`` is the HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def connect() -> tuple[Any, str]:
    """A client of the cluster that this pod runs in, or that the kubeconfig's context names.

    With it the namespace that is meant unless another is named. Raises UserError when there is no
    cluster to be found.
    """
    try:
        from kubernetes import client, config
    except ImportError:
        raise UserError(
            "a cluster takes the kubernetes package: pip install 'percmae[pipelines]'"
        ) from None
    settings = client.Configuration()
    settings.retries = False
    # The package itself looks at KUBECONFIG once, when it is imported.
    named = os.environ.get("KUBECONFIG") or None
    try:
        if (ACCOUNT / "token").exists():
            config.load_incluster_config(client_configuration=settings)
            return client.ApiClient(settings), (ACCOUNT / "namespace").read_text().strip()
        config.load_kube_config(named, client_configuration=settings)
        _, active = config.list_kube_config_contexts(named)
    except Exception as error:  # of a damaged file: whatever it makes the package stumble over
        raise UserError(
            f"no cluster to use: {' '.join(str(error).split())}; set KUBECONFIG to a kubeconfig"
        ) from None
    return client.ApiClient(settings), active["context"].get("namespace", "default")


def said(body: Any) -> str:
    """What a Status object, or whatever else an HTTP server answers, says."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        return " ".join(str(json.loads(text)["message"]).split())
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:300]


class Api:
    """The cluster that the kubeconfig's context, or the pod this runs in, is about.

    Raises UserError when there is neither.
    """

    def __init__(self) -> None:
        self._client, _ = connect()
        self.host = self._client.configuration.host

    def get(self, path: str) -> Object | None:
        """The object at ``path``; None for 404. Raises Refused, Unreachable."""
        try:
            return self.request("GET", path)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def request(self, method: str, path: str, body: Object | None = None) -> Object:
        """The answer as an object. Raises Refused for any HTTP error, Unreachable."""
        answer: Object = json.loads(self._send(method, path, body))
        return answer

    def text(self, path: str) -> str:
        """The answer as it is. Raises Refused, Unreachable."""
        return self._send("GET", path, None).decode(errors="replace")

    def _send(self, method: str, path: str, body: Object | None) -> bytes:
        import urllib3
        from kubernetes.client.exceptions import ApiException

        headers = {"Accept": "application/json, */*", "Content-Type": "application/json"}
        try:
            response = self._client.call_api(
                path,
                method,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=_TIMEOUT,
            )
            data: bytes = response.data
            return data
        except ApiException as error:
            raise Refused(int(error.status or 0), _message(error)) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = " ".join(str(error).split()).rpartition("): ")[2]
            raise Unreachable(
                f"no Kubernetes API server answers at {self.host}: {reason or type(error).__name__}"
            ) from None


def _message(error: Any) -> str:
    """What the server says in an error's body."""
    return said(error.body) or f"HTTP {error.status} {error.reason}"
