"""The files under k8s/, as they stand there and as kubectl builds them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from percmae.jobs.manifests import FOLDERS, Folder
from percmae.jobs.names import (
    Object,
)
from percmae.plain import documents

K8S = Path(__file__).parents[2] / "k8s"
NAMESPACES = {
    "overlays/kfp": "kubeflow",
    "overlays/kfp-minio": "kubeflow",
    "overlays/kfp-s3": "kubeflow",
    "overlays/kfp-profile": "my-profile",
}
OVERLAYS = ("base", *(f"overlays/{path.name}" for path in sorted((K8S / "overlays").iterdir())))
# Several, such as the oldest that we support and one of today: PERCMAE_KUBECTL=/path/one:/path/two
GIVEN = os.environ.get("PERCMAE_KUBECTL", "").split(os.pathsep)
KUBECTLS = [path for path in GIVEN if path] or [shutil.which("kubectl")]
PLACE = {place.folder: place for place in FOLDERS}


def build(overlay: str, kubectl: str | None) -> list[Object]:
    if kubectl is None:
        pytest.skip("kubectl is not on PATH")
    return deepcopy(_built(overlay, kubectl))


@cache
def _built(overlay: str, kubectl: str) -> list[Object]:
    done = subprocess.run(
        [kubectl, "kustomize", str(K8S / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing deprecated"
    return [each for each in documents(done.stdout) if each]


def with_components(base: str, components: list[str], folder: Path) -> list[Object]:
    """An overlay of one's own upon one of ours."""
    parts = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(K8S / base, folder)],
        "components": [os.path.relpath(K8S / each, folder) for each in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(parts))
    return build(str(folder), KUBECTLS[0])


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def committed(place: Folder) -> dict[str, Object]:
    return deepcopy(_committed(place.folder))


@cache
def _committed(folder: str) -> dict[str, Object]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in (K8S / folder).iterdir()}


def pods(objects: list[Object]) -> Iterator[Object]:
    for template in templates(objects):
        yield template["spec"]


def templates(objects: list[Object]) -> Iterator[Object]:
    """Of the pods that objects make."""
    for each in objects:
        spec = each.get("spec") or {}
        for owner in (spec, *(spec.get("pytorchReplicaSpecs") or {}).values()):
            if "template" in owner:
                yield owner["template"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def unordered(value: Any) -> Any:
    """Lists of named things by name: patched variables come first or last as kubectl likes."""
    if isinstance(value, dict):
        return {key: unordered(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return sorted((unordered(inner) for inner in value), key=_name)
    return value


def _name(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    return f"{value.get('kind')} {value.get('name') or value.get('metadata', {}).get('name')}"


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a pod selector takes a pod (of operators only In, the only one used)."""
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


def pod_labels(objects: list[Object]) -> Iterator[dict[str, str]]:
    """Of the pods that objects make."""
    for template in templates(objects):
        yield template["metadata"]["labels"]
