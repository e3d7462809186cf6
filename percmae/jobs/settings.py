"""Job settings from ``key=value``, checked.

Given like the settings of a training: on the command line (``--job``), as the parameter ``job`` of
a pipeline, and in ``make manifests``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from percmae.config.load import TRAININGS, explain, nearest, parse_override
from percmae.errors import ConfigError
from percmae.jobs.check import check_settings
from percmae.jobs.schema import JobSettings

_QUANTITIES = ("cpu", "cpu_limit", "memory", "shm", "scratch")


def job_settings(
    overrides: Iterable[str] = (), stage: str | None = None, **values: Any
) -> JobSettings:
    """Settings from keyword values and, stronger, ``key=value`` strings (values read as YAML).

    stage: whose job they are for, which may take less of them (:meth:`JobSettings.for_stage`).

    Raises ConfigError naming the key (and the nearest valid one) for an unknown key or a wrong
    type, and for combinations that no kind of job can carry out.
    """
    merged = dict(values)
    for override in overrides:
        merged |= parse_override(override)
    names = [field.name for field in dataclasses.fields(JobSettings)]
    for key in merged:
        if key not in names:
            raise ConfigError(
                f"unknown job setting {key!r}{nearest(key, names)}; `percmae config show --docs` "
                "lists them"
            )
    for key in _QUANTITIES:  # cpu=4 is a number to YAML, and a quantity to Kubernetes
        merged |= {key: _quantity(merged[key])} if key in merged else {}
    if isinstance(resources := merged.get("resources"), dict):
        merged["resources"] = {name: _quantity(count) for name, count in resources.items()}
    try:
        settings = _adapter().validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        raise ConfigError(explain(error, "job setting")) from None
    if stage is not None:
        settings = settings.for_stage(stage, stage in TRAININGS)
    check_settings(settings, stage)
    return settings


def _quantity(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else value


@cache
def _adapter() -> TypeAdapter[JobSettings]:
    return TypeAdapter(JobSettings)
