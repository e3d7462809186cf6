"""A small real HTTP server that answers the API paths which ``percmae doctor --cluster`` asks."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from percmae.jobs.names import Object

REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class KubeServer:
    """What a cluster holds, by path; tests take away and change what they are about.

    objects: answers to GET; statuses: what objects below a path say from look to look, the last
    one for good; forbidden: beginnings of paths that may not be looked at; denied: (account, verb,
    resource) that a review does not allow; refused: answers to what is posted to a path; logs: of
    any pod. posted, patched and deleted: what was asked for.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.forbidden: list[str] = []
        self.denied: set[tuple[str, str, str]] = set()
        self.statuses: dict[str, list[Object]] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        self.logs = ""
        self.posted: list[tuple[str, Object]] = []
        self.patched: list[tuple[str, Object]] = []
        self.deleted: list[str] = []
        self.token: str | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True  # or head and body come 40 ms apart

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self._answer(*server.get(urlsplit(self.path).path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*server.post(urlsplit(self.path).path, body))

            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*server.patch(urlsplit(self.path).path, body))

            def do_DELETE(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*server.delete(urlsplit(self.path).path, body))

            def _answer(self, status: int, answer: Object | str) -> None:
                if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
                    status, answer = 401, {"message": "Unauthorized"}
                data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def get(self, path: str) -> tuple[int, Object | str]:
        if any(path.startswith(start) for start in self.forbidden):
            return 403, {"message": f'"{path}" is forbidden: User "me" cannot get it'}
        if path.endswith("/log"):
            return 200, self.logs
        found = self.objects.get(path)
        if found is None:
            return 404, {"message": f"{path} not found"}
        steps = self.statuses.get(path.rpartition("/")[0])
        if steps:
            found["status"] = steps.pop(0) if len(steps) > 1 else steps[0]
        return 200, found

    def post(self, path: str, body: Object) -> tuple[int, Object]:
        if path in self.refused:
            status, message = self.refused[path]
            return status, {"message": message}
        if path == REVIEWS:
            asked = body["spec"]["resourceAttributes"]
            account = body["spec"]["user"].rpartition(":")[2]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            denied = (account, asked["verb"], resource) in self.denied
            return 201, body | {"status": {"allowed": not denied}}
        self.posted.append((path, deepcopy(body)))
        self.objects[f"{path}/{body['metadata']['name']}"] = body
        return 201, body

    def patch(self, path: str, body: Object) -> tuple[int, Object]:
        self.patched.append((path, deepcopy(body)))
        found = self.objects.get(path)
        if found is None:
            return 404, {"message": f"{path} not found"}
        return 200, _merge(found, body)

    def delete(self, path: str, body: Object) -> tuple[int, Object]:
        self.deleted.append(path)
        return (200 if self.objects.pop(path, None) else 404), {}

    def kubeconfig(self, path: Path) -> Path:
        user = {"token": self.token} if self.token else {}
        made = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": user}],
        }
        path.write_text(json.dumps(made))
        return path

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @contextmanager
    def running(self) -> Iterator[KubeServer]:
        self._thread.start()
        try:
            yield self
        finally:
            self.stop()


def _merge(found: Object, patch: Object) -> Object:
    """A JSON merge patch (RFC 7396), in place."""
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict):
            _merge(found.setdefault(key, {}), value)
        else:
            found[key] = value
    return found


NS = "/api/v1/namespaces/percmae"
PODS, TRAININGS = f"{NS}/pods", "/apis/kubeflow.org/v1/namespaces/percmae/pytorchjobs"
RUNNING = {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}
DONE = {
    "phase": "Succeeded",
    "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}],
}


def secret(**values: str) -> dict[str, Any]:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"data": data}


def healthy() -> KubeServer:
    server = KubeServer()
    kinds = {"resources": [{"name": "pytorchjobs"}]}
    group = {"versions": [{"version": "v1"}]}
    node = {"metadata": {"name": "n", "labels": {}}, "status": {"allocatable": {"cpu": "2"}}}
    notes = {"storageclass.kubernetes.io/is-default-class": "true"}
    server.objects = {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.1"},
        "/apis/kubeflow.org": group,
        "/apis/kubeflow.org/v1": kinds,
        NS: {},
        f"{NS}/serviceaccounts/percmae-train": {},
        f"{NS}/serviceaccounts/percmae-launcher": {},
        f"{NS}/configmaps/percmae-store": {"data": {"AWS_ENDPOINT_URL": "http://minio:9000"}},
        f"{NS}/secrets/percmae-store": secret(accesskey="percmae", secretkey="hush-hush"),
        f"{NS}/persistentvolumeclaims/minio": {"spec": {}, "status": {"phase": "Bound"}},
        "/apis/storage.k8s.io/v1/storageclasses": {
            "items": [{"metadata": {"name": "standard", "annotations": notes}}]
        },
        "/api/v1/nodes": {"items": [node]},
    }
    server.statuses = {
        TRAININGS: [{}, {"conditions": [{"type": "Suspended"}]}],
        PODS: [{"phase": "Pending"}, RUNNING, DONE],
    }
    return server


def lines(capsys: pytest.CaptureFixture[str], mark: str) -> list[str]:
    out = capsys.readouterr().out
    return [line[8:] for line in out.splitlines() if line.startswith(mark)]
