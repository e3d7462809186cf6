"""Settings that are one flat dataclass, from ``key=value``: of a job, of a rule."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from percmae.config.load import explain, nearest, parse_override
from percmae.errors import ConfigError

T = TypeVar("T")


def merged(cls: type, what: str, overrides: Iterable[str], **values: Any) -> dict[str, Any]:
    """Keyword values and, stronger, ``key=value`` texts, whose values are read as YAML.

    Raises ConfigError naming the key, and the nearest valid one, for one that ``cls`` has not.
    """
    found = dict(values)
    for override in overrides:
        found |= parse_override(override)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in found:
        if key not in names:
            raise ConfigError(
                f"unknown {what} {key!r}{nearest(key, names)}; `percmae config show --docs` "
                "lists them"
            )
    return found


def checked(cls: type[T], what: str, values: Mapping[str, Any]) -> T:
    """The settings of these values. Raises ConfigError for a wrong type or value."""
    try:
        return TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(explain(error, what)) from None


def docs(cls: Any) -> Iterator[tuple[str, str, str]]:
    """``(key, type, docstring)`` of every setting, in order."""
    for name, field in cls.__pydantic_fields__.items():
        annotation = field.annotation
        kind = getattr(annotation, "__name__", None) if not get_args(annotation) else None
        yield name, kind or str(annotation).replace("typing.", ""), field.description or ""
