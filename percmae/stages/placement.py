"""Where the steps of a pipeline are carried out: from its parameters to the settings of a job."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from percmae.errors import ConfigError
from percmae.jobs.names import (
    PULL_SECRETS_VARIABLE,
    SESSION_TOKEN_VARIABLE,
    STEP_SIZED_VARIABLE,
    Object,
    Objects,
)
from percmae.storage.outage import OUTAGE_VARIABLE

if TYPE_CHECKING:
    from percmae.jobs.schema import JobSettings

LOCAL = "local"


class TaskConfig(Protocol):
    """What a pipeline's author has set on a task (kfp.dsl.TaskConfig): parts of a pod's spec."""

    affinity: Object | None
    tolerations: Objects | None
    node_selector: dict[str, str] | None
    env: Objects | None
    volumes: Objects | None
    volume_mounts: Objects | None
    resources: Object | None


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the steps of a pipeline are carried out, as its parameters say.

    launcher: ``local`` (in the step itself), ``pytorchjob``, ``trainjob`` or ``job``; image: of the
    jobs, empty for percmae's own; nodes, gpus: pods of a training, and GPUs of each; job: further
    job settings as :mod:`percmae.stages.scope` reads them; task: what was set on the task, passed
    on to the job; pipeline_run: id of the run, to clean up after it.
    """

    launcher: str = LOCAL
    image: str = ""
    nodes: int = 1
    gpus: int = 0
    job: Sequence[str] = ()
    task: TaskConfig | None = None
    pipeline_run: str = ""

    def settings(self, stage: str) -> JobSettings | None:
        """Of a stage's job; None where the step does the work itself. Raises ConfigError."""
        if self.launcher == LOCAL:
            return None
        # Here, so that a command line shows the defaults above without them.
        from percmae.config.load import nearest
        from percmae.jobs.schema import KINDS
        from percmae.jobs.settings import job_settings
        from percmae.stages.scope import job_settings_for

        if self.launcher not in KINDS:
            known = (LOCAL, *KINDS)
            raise ConfigError(
                f"launcher {self.launcher!r}{nearest(self.launcher, known)}; one of: "
                + ", ".join(known)
            )
        values: dict[str, Any] = {"kind": self.launcher, "nodes": self.nodes, "gpus": self.gpus}
        if self.image:
            values["image"] = self.image
        # Those that pulled this step's image: KFP hands no task its own.
        if secrets := os.environ.get(PULL_SECRETS_VARIABLE):
            values["image_pull_secrets"] = secrets.split(",")
        return job_settings(
            job_settings_for(stage, self.job), stage, **(values | _of_task(self.task))
        )


def _of_task(task: TaskConfig | None) -> dict[str, Any]:
    """Job settings from what a pipeline's author has set on the task."""
    if task is None:
        return {}
    from percmae.jobs.parts import OWN_VARIABLES, OWN_VOLUMES  # as above

    values: dict[str, Any] = {
        "affinity": task.affinity,
        "tolerations": task.tolerations,
        "node_selector": task.node_selector,
    }
    # The job has keys, homes and shared memory of its own: of the same secret and ConfigMap.
    env = {entry["name"]: entry for entry in task.env or []}
    if STEP_SIZED_VARIABLE not in env:
        values |= _sizes(task.resources or {})
    for name, source, settings in _STORE:
        reference = (env.get(name) or {}).get("valueFrom", {}).get(source) or {}
        values |= {setting: reference.get(part) for setting, part in settings.items()}
    taken = {*OWN_VARIABLES, *(name for name, *_ in _STORE), *_STORE_TOO}
    taken |= {PULL_SECRETS_VARIABLE, STEP_SIZED_VARIABLE}
    # The token of the same secret; one from elsewhere is the job's to have as it is.
    token = (env.get(SESSION_TOKEN_VARIABLE) or {}).get("valueFrom", {}).get("secretKeyRef") or {}
    if token and token.get("name") == values["store_secret"]:
        values["store_session_token"] = token.get("key")
        taken.add(SESSION_TOKEN_VARIABLE)
    values["env"] = [entry for name, entry in env.items() if name not in taken]
    own = OWN_VOLUMES.values()
    mounts = [mount for mount in task.volume_mounts or [] if mount["mountPath"] not in own]
    named = {mount["name"] for mount in mounts}
    values["volume_mounts"] = mounts
    values["volumes"] = [v for v in task.volumes or [] if v["name"] in named]
    return {key: value for key, value in values.items() if value}


def _sizes(resources: Object) -> dict[str, Any]:
    """Job settings from a container's resources."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    values: dict[str, Any] = {
        "cpu": requests.get("cpu") or limits.get("cpu"),
        "cpu_limit": limits.get("cpu"),
        "memory": limits.get("memory") or requests.get("memory"),
    }
    # A name with a domain is a device: nvidia.com/gpu, amd.com/gpu.
    for name, count in {**requests, **limits}.items():
        if "/" in name:
            values |= {"gpu_resource": name, "gpus": int(count)}
    return values


# Which variables of a step say where the store's keys and address are kept, and in what.
_STORE = (
    ("AWS_ACCESS_KEY_ID", "secretKeyRef", {"store_secret": "name", "store_access_key": "key"}),
    ("AWS_SECRET_ACCESS_KEY", "secretKeyRef", {"store_secret": "name", "store_secret_key": "key"}),
    ("AWS_ENDPOINT_URL", "configMapKeyRef", {"store_config": "name"}),
)
_STORE_TOO = ("AWS_REGION", OUTAGE_VARIABLE)  # from the same ConfigMap
