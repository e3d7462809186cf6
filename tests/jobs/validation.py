"""Strict validation of Kubernetes objects: unknown fields, wrong types, what is missing.

``validate(made)`` holds a core kind against the schemas of a Kubernetes that the package
kubernetes-validate carries, the newest or the oldest that we support, and a custom kind against its
CustomResourceDefinition, of which ``schemas/definitions.json`` has those that we create
(schemas/make.py).

Not evaluated: CEL rules (``x-kubernetes-validations``), which ``cel_rules`` lists, and what the API
server checks beyond its schemas; percmae.jobs.check knows those rules that matter here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate.utils as published
from jsonschema.validators import Draft202012Validator, extend
from referencing import Registry, Resource

from percmae.doctor.cluster import OLDEST_KUBERNETES

from .schemas.make import Schema, load

NEWEST = published.latest_version()
OLDEST = ".".join(map(str, (*OLDEST_KUBERNETES, 0)))
_BASE = "https://kubernetes.io/api/"  # of the published schemas' addresses of each other
_META = f"{_BASE}_definitions.json#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_INTEGERS = {"int32": 2**31, "int64": 2**63}


class Invalid(AssertionError):
    """What the API server would not take, a line for each fault."""


def validate(made: Schema, kubernetes: str = NEWEST) -> None:
    """Raises Invalid naming every fault of ``made``, as an object for that ``kubernetes``."""
    for key in ("apiVersion", "kind", "metadata"):
        if not made.get(key):
            raise Invalid(f"{key} is missing")
    name = made["metadata"].get("name") or made["metadata"].get("generateName")
    if not name:
        raise Invalid("metadata.name is missing")
    validator = _validator(made["apiVersion"], made["kind"], kubernetes)
    faults = sorted(_faults(validator.iter_errors(made)))
    if faults:
        raise Invalid("\n".join(f"{made['kind']} {name}: {fault}" for fault in faults))


def cel_rules(api_version: str, kind: str) -> list[str]:
    """The definition's rules that are not evaluated, as ``path: rule``."""
    definition = _definition(api_version, kind)
    assert definition is not None, f"no definition of {kind}"
    return list(_rules(definition, kind))


def _faults(errors: Any) -> Iterator[str]:
    for error in errors:
        # One of several shapes: the nearest miss says more than "is not valid under any".
        best = jsonschema.exceptions.best_match([error]) if error.context else error
        path = ".".join(str(part) for part in best.absolute_path)
        yield f"{path}: {best.message[:300]}"


@cache
def _validator(api_version: str, kind: str, kubernetes: str) -> Any:
    schema = _core(api_version, kind, kubernetes)
    if schema is None:
        definition = _definition(api_version, kind)
        if definition is None:
            raise Invalid(f"neither Kubernetes {kubernetes} nor a definition knows {kind}")
        schema = strict(definition)
        schema["properties"]["apiVersion"] = {"const": api_version}
        schema["properties"]["kind"] = {"const": kind}
        schema["properties"]["metadata"] = {"$ref": _META}
        schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"})
    return _Strict(schema, registry=_registry(kubernetes))


@cache
def _registry(kubernetes: str) -> Registry:
    contents = _published("_definitions", kubernetes)
    assert contents["$id"] == f"{_BASE}_definitions.json", contents["$id"]
    return Resource.from_contents(contents) @ Registry()


def _core(api_version: str, kind: str, kubernetes: str) -> Schema | None:
    group, _, version = api_version.rpartition("/")
    stem = f"{group.partition('.')[0]}-{version}" if group else version
    try:
        return _published(f"{kind.lower()}-{stem}", kubernetes)
    except FileNotFoundError:
        return None


def _published(name: str, kubernetes: str) -> Schema:
    path = f"kubernetes-json-schema/v{kubernetes}-local-strict/{name}.json"
    found: Schema = published.schema_contents(path, kubernetes)
    return found


_definitions = cache(load)


def _definition(api_version: str, kind: str) -> Schema | None:
    group, _, version = api_version.rpartition("/")
    spec = _definitions().get(kind, {}).get("spec", {})
    if spec.get("group") != group:
        return None
    found = [v["schema"]["openAPIV3Schema"] for v in spec["versions"] if v["name"] == version]
    return found[0] if found else None


def strict(schema: Schema) -> Schema:
    """A definition's openAPIV3Schema as a JSON schema under which unknown fields are errors."""
    made: Schema = {
        key: value
        for key, value in schema.items()
        if not key.startswith(("x-", "description", "default", "format", "nullable", "title"))
    }
    if "properties" in made:
        made["properties"] = {k: strict(v) for k, v in made["properties"].items()}
    if isinstance(made.get("items"), dict):
        made["items"] = strict(made["items"])
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(made["additionalProperties"])
    elif made.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("properties", {})
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if "x-kubernetes-list-map-keys" in schema:
        made["uniqueBy"] = schema["x-kubernetes-list-map-keys"]
    elif schema.get("x-kubernetes-list-type") == "set":
        made["uniqueItems"] = True
    if bound := _INTEGERS.get(schema.get("format", "")):
        made = {"minimum": -bound, "maximum": bound - 1, **made}
    return {"anyOf": [made, {"type": "null"}]} if schema.get("nullable") else made


def _unique_by(validator: Any, keys: list[str], value: Any, schema: Schema) -> Iterator[Any]:
    """A list that is a map: no two entries agree in their keys."""
    seen = set()
    for entry in value if isinstance(value, list) else ():
        identity = tuple(str(entry.get(key)) for key in keys) if isinstance(entry, dict) else entry
        if identity in seen:
            yield jsonschema.ValidationError(f"two entries with {keys} = {identity}")
        seen.add(identity)


_Strict = extend(Draft202012Validator, {"uniqueBy": _unique_by})


def _rules(schema: Schema, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"{path}: {' '.join(rule['rule'].split())}"
    for key, inner in schema.get("properties", {}).items():
        yield from _rules(inner, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _rules(schema[key], f"{path}[]")
