"""Objects given as in a pod (affinity, volumes …), held against Kubernetes' own field lists.

The lists are those of the ``kubernetes`` package's models, which are generated from the API:
unknown fields, wrong types and missing fields are refused, each with its place. What a model does
not say (which values a string may have) is in ``percmae.jobs.parts``.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from percmae.config.load import nearest
from percmae.errors import ConfigError, UserError

_LIST = re.compile(r"list\[(.*)\]")
_MAP = re.compile(r"dict\(str, (.*)\)")
_SCALARS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "a string (in quotes, if it looks like a number)"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "datetime": (str, "a time"),
}


def check_shape(value: Any, kind: str, where: str) -> None:
    """``value`` is what ``kind`` wants: ``V1Volume``, ``list[V1Toleration]``, ``str`` …

    Raises ConfigError naming the place below ``where``; UserError without the kubernetes package.
    """
    if inner := _LIST.fullmatch(kind):
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        for number, item in enumerate(value):
            check_shape(item, inner[1], f"{where}[{number}]")
    elif inner := _MAP.fullmatch(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        for key, item in value.items():
            check_shape(item, inner[1], f"{where}.{key}")
    elif kind in _SCALARS:
        types, text = _SCALARS[kind]
        if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
            raise ConfigError(f"{where}: expected {text}, got {value!r}")
    elif kind != "object":  # object: anything, a number or a string mostly
        _check_model(value, kind, where)


def _check_model(value: Any, kind: str, where: str) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping of fields, got {value!r}")
    fields, required = _fields(kind)
    for key, item in value.items():
        if key not in fields:
            raise ConfigError(f"{where}: unknown field {key!r}{nearest(str(key), fields)}")
        check_shape(item, fields[key], f"{where}.{key}")
    for key in required:
        if key not in value:
            raise ConfigError(f"{where}: {key} is missing")


@cache
def _fields(kind: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """A model's fields as JSON writes them, with their kinds; and those that must be given."""
    try:
        from kubernetes import client
    except ImportError:
        raise UserError(
            "checking affinity, tolerations, env and volumes of a job needs the package "
            "kubernetes: pip install 'percmae[pipelines]'"
        ) from None
    model = getattr(client, kind)
    names: dict[str, str] = model.attribute_map
    fields = {names[name]: kind for name, kind in model.openapi_types.items()}
    # A model does not list what it requires; its constructor refuses to go without, field by field.
    given: dict[str, Any] = {}
    settings = client.Configuration()
    while True:
        try:
            model(**given, local_vars_configuration=settings)
        except ValueError as error:
            missing = re.search(r"Invalid value for `(\w+)`", str(error))
            if missing is None or missing[1] not in names:
                raise
            given[missing[1]] = object()
        else:
            return fields, tuple(names[name] for name in given)
