"""Job settings from ``key=value``, checked.

Given like the settings of a training: on the command line (``--job``), as the parameter ``job`` of
a pipeline, and in ``make manifests``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from percmae.config.flat import checked, merged
from percmae.config.load import TRAININGS
from percmae.jobs.check import check_settings
from percmae.jobs.schema import JobSettings

_QUANTITIES = ("cpu", "cpu_limit", "memory", "shm", "scratch")
_WHAT = "job setting"


def job_settings(
    overrides: Iterable[str] = (), stage: str | None = None, **values: Any
) -> JobSettings:
    """Settings from keyword values and, stronger, ``key=value`` strings (values read as YAML).

    stage: whose job they are for, which may take less of them (:meth:`JobSettings.for_stage`).

    Raises ConfigError naming the key (and the nearest valid one) for an unknown key or a wrong
    type, and for combinations that no kind of job can carry out.
    """
    given = merged(JobSettings, _WHAT, overrides, **values)
    for key in _QUANTITIES:  # cpu=4 is a number to YAML, and a quantity to Kubernetes
        given |= {key: _quantity(given[key])} if key in given else {}
    if isinstance(resources := given.get("resources"), dict):
        given["resources"] = {name: _quantity(count) for name, count in resources.items()}
    settings = checked(JobSettings, _WHAT, given)
    if stage is not None:
        settings = settings.for_stage(stage, stage in TRAININGS)
    check_settings(settings, stage)
    return settings


def _quantity(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else value
