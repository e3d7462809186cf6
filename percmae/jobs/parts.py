"""What is given as in a pod: environment, volumes, mounts, tolerations, affinity.

Checked for shape (percmae.jobs.shapes), then for what the API server would refuse beyond it and for
what would get in the way of what every job has of its own. All raise ConfigError, naming the
setting and the entry.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any

from percmae.errors import ConfigError
from percmae.ingest.cores import SCRATCH_SIZE
from percmae.jobs.names import IMAGE_VARIABLE, METRICS_VARIABLE, SHUTDOWN_TIMEOUT, Object, Objects
from percmae.jobs.shapes import check_shape
from percmae.jobs.syntax import dns_label, env_name, label_value, qualified_name

EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
"""Of a node's taint."""
_INSTEAD = {
    "AWS_ACCESS_KEY_ID": "; the store's keys come from store_secret",
    "AWS_SECRET_ACCESS_KEY": "; the store's keys come from store_secret",
    "HOME": " to /tmp, which can be written to",
    SHUTDOWN_TIMEOUT: "; it follows from grace",
    SCRATCH_SIZE: "; it follows from scratch",
    METRICS_VARIABLE: "; it follows from metrics_port",
    IMAGE_VARIABLE: "; it follows from image",
}
OWN_VARIABLES = tuple(_INSTEAD)
"""Variables that every job sets."""
OWN_VOLUMES = {"shm": "/dev/shm", "scratch": "/tmp"}
"""Volumes of every job and where they are mounted."""
# What the operator or torchrun sets in the pods or in their processes.
_OPERATOR_VARIABLE = re.compile(
    r"(PET_)?MASTER_(ADDR|PORT)|WORLD_SIZE|RANK|(LOCAL|GROUP|ROLE)_(RANK|WORLD_SIZE)|PET_STANDALONE|"
    r"PET_(NNODES|NODE_RANK|NPROC_PER_NODE|RDZV_BACKEND|RDZV_ENDPOINT|RDZV_ID|MAX_RESTARTS)"
)
_SECRET_WORD = re.compile(
    r"(^|_)(SECRETS?|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(API)?KEY)(_|$)", re.IGNORECASE
)
_LOGIN = re.compile(r"://[^/@\s:]*:[^/@\s]+@")
# Clusters set these in every pod, with the password, and stores are reached by nothing else then.
_PROXY = re.compile(r"(HTTPS?|ALL)_PROXY", re.IGNORECASE)


def check_env(env: Objects) -> None:
    """Variables: names, one value each, not ours, no secret written out."""
    check_shape(env, "list[V1EnvVar]", "job setting env")
    seen: set[str] = set()
    for entry in env:
        name = entry["name"]
        env_name(name, "job setting env")
        where = f"job setting env, {name}"
        if name in OWN_VARIABLES:
            raise ConfigError(f"{where}: every job sets it{_INSTEAD.get(name, '')}")
        if _OPERATOR_VARIABLE.fullmatch(name):
            raise ConfigError(f"{where}: the operator or torchrun sets it; leave it out")
        if name in seen:
            raise ConfigError(f"{where}: given twice")
        seen.add(name)
        _check_value(entry, where)


def _check_value(entry: Object, where: str) -> None:
    value, source = entry.get("value"), entry.get("valueFrom")
    if source is not None:
        if value is not None:
            raise ConfigError(f"{where}: value or valueFrom, not both")
        if len(source) != 1:
            raise ConfigError(
                f"{where}: valueFrom names one source, such as secretKeyRef or configMapKeyRef"
            )
    elif value and _looks_secret(entry["name"], value):
        # A job can be read by far more people than a Secret, and lies in manifests and logs.
        raise ConfigError(
            f"{where}: looks like a secret, written out; put it into a Secret and give "
            "valueFrom: {secretKeyRef: {name: …, key: …}}"
        )


def _looks_secret(name: str, value: str) -> bool:
    """A password in a URL, or a variable named like one that is neither a path nor a reference."""
    if has_login(value):
        return not _PROXY.fullmatch(name)
    if value.startswith(("/", "$(")) or name.upper().endswith(("_FILE", "_PATH")):
        return False
    return _SECRET_WORD.search(name) is not None


def has_login(value: str) -> bool:
    """Whether a URL in it has a password."""
    return _LOGIN.search(value) is not None


def check_volumes(volumes: Objects, mounts: Objects) -> None:
    """Volumes have one source and a name of their own, mounts a volume and a place of their own."""
    check_shape(volumes, "list[V1Volume]", "job setting volumes")
    check_shape(mounts, "list[V1VolumeMount]", "job setting volume_mounts")
    names = set(OWN_VOLUMES)
    for volume in volumes:
        name = volume["name"]
        dns_label(name, "job setting volumes, name")
        if name in names:
            why = "every job has one of this name" if name in OWN_VOLUMES else "given twice"
            raise ConfigError(f"job setting volumes, {name}: {why}")
        names.add(name)
        sources = [key for key in volume if key != "name"]
        if len(sources) != 1:
            raise ConfigError(
                f"job setting volumes, {name}: needs one source, such as persistentVolumeClaim; "
                f"it has {', '.join(sources) or 'none'}"
            )
    places = set(OWN_VOLUMES.values())
    for mount in mounts:
        name, path = mount["name"], mount["mountPath"]
        where = f"job setting volume_mounts, {path or name}"
        if name not in names:
            raise ConfigError(f"{where}: there is no volume {name!r}; add it to volumes")
        if not path.startswith("/") or ":" in path:
            raise ConfigError(f"{where}: mountPath is an absolute path without ':'")
        place = posixpath.normpath(path)
        covered = [own for own in OWN_VOLUMES.values() if _covers(place, own)]
        if covered:
            raise ConfigError(f"{where}: would lie over {covered[0]}, which every job needs")
        if place in places:
            raise ConfigError(f"{where}: something is mounted there already")
        places.add(place)
    _check_all_mounted(volumes, mounts)


def _check_all_mounted(volumes: Objects, mounts: Objects) -> None:
    """A volume that nothing mounts is a slip of the pen: Kubernetes would wait for it, unused."""
    used = {mount["name"] for mount in mounts}
    for volume in volumes:
        if volume["name"] not in used:
            raise ConfigError(
                f"job setting volumes, {volume['name']}: is mounted nowhere; add it to "
                "volume_mounts"
            )


def _covers(place: str, own: str) -> bool:
    return place == own or own.startswith(place.rstrip("/") + "/")


def check_tolerations(tolerations: Objects) -> None:
    """Tolerations: operators and effects that exist, and go together."""
    check_shape(tolerations, "list[V1Toleration]", "job setting tolerations")
    for number, entry in enumerate(tolerations):
        where = f"job setting tolerations[{number}]"
        key, operator = entry.get("key", ""), entry.get("operator", "Equal")
        _one_of(operator, ("Exists", "Equal"), f"{where}.operator")
        if "effect" in entry:
            _one_of(entry["effect"], EFFECTS, where)
        if key:
            qualified_name(key, f"{where}.key")
        elif operator != "Exists":
            raise ConfigError(f"{where}: without a key the operator is Exists")
        if operator == "Exists" and entry.get("value"):
            raise ConfigError(f"{where}: operator Exists takes no value; use Equal")
        label_value(entry.get("value", ""), f"{where}.value")
        if "tolerationSeconds" in entry and entry.get("effect") != "NoExecute":
            raise ConfigError(f"{where}: tolerationSeconds needs effect: NoExecute")


def check_topology_spread(constraints: Objects) -> None:
    """Topology spread constraints: names, and numbers that Kubernetes knows."""
    check_shape(constraints, "list[V1TopologySpreadConstraint]", "job setting topology_spread")
    for number, entry in enumerate(constraints):
        where = f"job setting topology_spread[{number}]"
        qualified_name(entry["topologyKey"], f"{where}.topologyKey")
        _one_of(
            entry["whenUnsatisfiable"],
            ("DoNotSchedule", "ScheduleAnyway"),
            f"{where}.whenUnsatisfiable",
        )
        if entry["maxSkew"] < 1:
            raise ConfigError(f"{where}.maxSkew={entry['maxSkew']}: 1 or more")


def check_affinity(affinity: Object) -> None:
    """Affinity: operators that exist, with or without values as each wants them, weights."""
    if not affinity:
        return
    check_shape(affinity, "V1Affinity", "job setting affinity")
    for where, part in _walk(affinity, "job setting affinity"):
        if "operator" in part and "key" in part:
            _check_requirement(part, where)
        if "weight" in part and not 1 <= part["weight"] <= 100:
            raise ConfigError(f"{where}.weight={part['weight']}: from 1 to 100")
        if part.get("nodeSelectorTerms") == []:
            raise ConfigError(f"{where}.nodeSelectorTerms: needs at least one")
        if "topologyKey" in part:
            qualified_name(part["topologyKey"], f"{where}.topologyKey")
        for key, value in (part.get("matchLabels") or {}).items():
            qualified_name(key, f"{where}.matchLabels")
            label_value(value, f"{where}.matchLabels, {key}")


def _check_requirement(part: Object, where: str) -> None:
    operator, values = part["operator"], part.get("values") or []
    allowed = ["In", "NotIn", "Exists", "DoesNotExist"]
    if ".nodeAffinity." in where:
        allowed += ["Gt", "Lt"]
    _one_of(operator, allowed, f"{where}.operator")
    if not where.rpartition(".")[2].startswith("matchFields"):
        qualified_name(part["key"], f"{where}.key")
    if operator in ("In", "NotIn") and not values:
        raise ConfigError(f"{where}: operator {operator} needs values")
    if operator in ("Exists", "DoesNotExist") and values:
        raise ConfigError(f"{where}: operator {operator} takes no values")
    if operator in ("Gt", "Lt") and not (len(values) == 1 and re.fullmatch(r"-?\d+", values[0])):
        raise ConfigError(f"{where}: operator {operator} needs one whole number, as a string")


def _walk(value: Any, where: str) -> Iterator[tuple[str, Object]]:
    """Every mapping in a value, with its place."""
    if isinstance(value, dict):
        yield where, value
        for key, item in value.items():
            yield from _walk(item, f"{where}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _walk(item, f"{where}[{number}]")


def _one_of(value: Any, allowed: list[str] | tuple[str, ...], where: str) -> None:
    if value not in allowed:
        raise ConfigError(f"{where}: {value!r} is not one of {', '.join(allowed)}")
