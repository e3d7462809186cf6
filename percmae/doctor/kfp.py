"""What ``percmae doctor --cluster --kfp`` looks at: Kubeflow Pipelines and its store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from percmae.doctor.context import Context
from percmae.doctor.finding import Finding
from percmae.jobs.client import Refused
from percmae.jobs.names import KFP_NAMESPACE, Object

OLDEST_KFP = (2, 15)
"""The first whose driver hands what is set on a task on to the job that the task launches."""
_API = "ml-pipeline"


def pipelines(context: Context) -> Iterator[tuple[bool, Finding]]:
    """Whether Kubeflow Pipelines is there, in the namespace or for it, and new enough."""
    if not context.kfp:
        return
    places = dict.fromkeys((context.namespace, KFP_NAMESPACE))
    where = next((place for place in places if context.has_service(_API, place)), None)
    fix = "install Kubeflow Pipelines, or give the namespace it is in (--namespace)"
    if where is None:
        found = f"no Service {_API} in {' or '.join(places)}"
        yield True, Finding(False, "Kubeflow Pipelines", found, fix)
        return
    api = context.client.get(f"/apis/apps/v1/namespaces/{where}/deployments/{_API}")
    version = _version(api or {})
    oldest = ".".join(map(str, OLDEST_KFP))
    if version is None:
        found = f"there, in {where}; its image does not say whether it is {oldest} or newer"
        yield True, Finding(True, "Kubeflow Pipelines", found)
        return
    found = f"{'.'.join(map(str, version))} in {where}"
    fix = f"bring it to {oldest} or newer"
    yield True, Finding(version >= OLDEST_KFP, "Kubeflow Pipelines", found, fix)


def _version(deployment: Object) -> tuple[int, ...] | None:
    """Of the API server, by the tag of its image; None where that is no version."""
    pod = deployment.get("spec", {}).get("template", {}).get("spec", {})
    for container in pod.get("containers", []):
        tag = re.search(r":v?(\d+)\.(\d+)\.(\d+)", container.get("image", ""))
        if tag and "api-server" in container["image"]:
            return tuple(map(int, tag.groups()))
    return None


def absent_service(context: Context, endpoint: str) -> str | None:
    """What is wrong with the address of a Service: that it is not there.

    None for one that is, that may not be looked at, or for an address that is none of a Service.
    """
    name, _, rest = (urlsplit(endpoint).hostname or "").partition(".")
    namespace, _, domain = rest.partition(".")
    if not namespace or domain.split(".")[0] not in ("", "svc"):
        return None
    path = f"/api/v1/namespaces/{namespace}"
    try:
        if context.client.get(path) is None:
            return None  # minio.lan and the like
        there = context.client.get(f"{path}/services/{name}") is not None
    except Refused as error:
        if error.status != 403:
            raise
        return None
    return None if there else f"there is no Service {name} in namespace {namespace}"
