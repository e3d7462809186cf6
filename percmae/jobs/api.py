"""A few plain requests to a Kubernetes API server: what looking at a cluster takes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from percmae.errors import PercmaeError, UserError

Object = dict[str, Any]
_TIMEOUT = (5, 30)
_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Unreachable(PercmaeError):
    """No API server answers at that address."""


class Refused(PercmaeError):
    """The API server said no; ``status`` is the HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """The cluster that the kubeconfig's context, or the pod this runs in, is about.

    Raises UserError when there is neither.
    """

    def __init__(self) -> None:
        try:
            from kubernetes import client, config
            from kubernetes.config.config_exception import ConfigException
        except ImportError:
            raise UserError(
                "looking at a cluster needs the kubernetes package: pip install "
                "'percmae[pipelines]'"
            ) from None
        settings = client.Configuration()
        try:
            if _TOKEN.exists():
                config.load_incluster_config(client_configuration=settings)
            else:
                # The package itself looks at KUBECONFIG once, when it is imported.
                named = os.environ.get("KUBECONFIG") or None
                config.load_kube_config(named, client_configuration=settings)
        except (ConfigException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"no cluster to look at: {reason}; set KUBECONFIG to a kubeconfig"
            ) from None
        settings.retries = False
        self.host = settings.host
        self._client = client.ApiClient(settings)

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
    """What the server's Status object says."""
    body = error.body
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        return " ".join(str(json.loads(text)["message"]).split())
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:300] or f"HTTP {error.status} {error.reason}"
