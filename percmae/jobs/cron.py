"""The whole pipeline on a schedule in a cluster without KFP: a CronJob (``batch/v1``).

One pod runs the DAG and waits; the trainings are jobs of their own that it launches and follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from percmae.config.load import nearest
from percmae.errors import ConfigError
from percmae.jobs.crontab import Cron
from percmae.jobs.names import (
    INSTANCE_LABEL,
    LAUNCHER,
    LONGEST_CRONJOB_NAME,
    NAMESPACE,
    PIPELINE_IMAGE,
    PULL_SECRETS_VARIABLE,
    Object,
)
from percmae.jobs.schema import JobSettings
from percmae.jobs.settings import job_settings
from percmae.jobs.spec import job_object
from percmae.jobs.work import command

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def launcher_settings(overrides: Iterable[str] = (), **values: Any) -> JobSettings:
    """Settings of the pod that runs the DAG; the jobs it launches have their own.

    Raises ConfigError as :func:`percmae.jobs.settings.job_settings`.
    """
    pod: dict[str, Any] = {
        "image": PIPELINE_IMAGE,
        "service_account": LAUNCHER,
        "namespace": NAMESPACE,
        "cpu": "250m",
        "memory": "1Gi",
        "shm": "64Mi",
        "ttl": None,  # the CronJob keeps the last ones
    }
    return job_settings(overrides, "run", **(pod | values))


def cron_job(
    name: str,
    cron: Cron,
    arguments: Iterable[str],
    settings: JobSettings,
    time_zone: str | None = None,
) -> Object:
    """The CronJob that runs ``percmae <arguments>`` at the times of ``cron``.

    arguments: the verb first, such as ``["run", "--launcher", "pytorchjob", …]``. settings: of its
    pod (:func:`launcher_settings`). time_zone: such as Europe/Berlin; None is that of the cluster's
    controller, mostly UTC. A run that is still going on is never started a second time beside
    itself.

    Raises ConfigError for what the API server would refuse.
    """
    if len(name) > LONGEST_CRONJOB_NAME or not _NAME.fullmatch(name):
        raise ConfigError(
            f"schedule {name!r}: lower-case letters, digits and '-', a letter first, at most "
            f"{LONGEST_CRONJOB_NAME}"
        )
    if time_zone is not None:
        _check_time_zone(time_zone)
    words = list(arguments)
    job = job_object(command(words[0], name, *words[1:]), settings)
    labels = {**job["metadata"]["labels"], INSTANCE_LABEL: name}
    job["spec"]["template"]["metadata"]["labels"] = dict(labels)
    pod = job["spec"]["template"]["spec"]
    pod["automountServiceAccountToken"] = True  # to create jobs and follow them
    # Everything but /tmp is read-only, the working directory too.
    env = pod["containers"][0]["env"]
    env.append({"name": "PERCMAE_HOME", "value": "/tmp/percmae"})
    if settings.image_pull_secrets:  # for the jobs that it launches
        secrets = ",".join(settings.image_pull_secrets)
        env.append({"name": PULL_SECRETS_VARIABLE, "value": secrets})
    pod["containers"][0]["workingDir"] = "/tmp"
    spec: Object = {
        "schedule": cron.standard,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,  # a start that was missed for so long is given up
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"metadata": {"labels": dict(labels)}, "spec": job["spec"]},
    }
    if time_zone is not None:
        spec["timeZone"] = time_zone
    metadata: Object = {"name": name, "labels": labels}
    if settings.namespace is not None:
        metadata["namespace"] = settings.namespace
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata, "spec": spec}


def _check_time_zone(name: str) -> None:
    if name == "Local":
        raise ConfigError(
            "time zone 'Local': Kubernetes refuses it; name one such as Europe/Berlin"
        )
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ConfigError(
            f"unknown time zone {name!r}{nearest(name, sorted(available_timezones()))}"
        ) from None
