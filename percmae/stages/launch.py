"""Steps whose work is done by a job in the cluster: look in the store, launch, read the result.

The other side of what ``percmae.stages.steps`` does in its own process; needs no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from percmae.config import Config
from percmae.config.load import nearest
from percmae.errors import ConfigError, PercmaeError
from percmae.progress import note
from percmae.stages.scope import job_settings_for

if TYPE_CHECKING:
    from percmae.jobs.settings import JobSettings
    from percmae.runs.evaluation import EvaluationResult
    from percmae.runs.record import Run, RunResult

LOCAL = "local"


class TaskConfig(Protocol):
    """What a pipeline's author has set on a task (kfp.dsl.TaskConfig): parts of a pod's spec."""

    affinity: dict[str, Any] | None
    tolerations: list[dict[str, Any]] | None
    node_selector: dict[str, str] | None
    env: list[dict[str, Any]] | None
    volumes: list[dict[str, Any]] | None
    volume_mounts: list[dict[str, Any]] | None
    resources: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Launch:
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
        from percmae.jobs.settings import KINDS, job_settings

        if self.launcher == LOCAL:
            return None
        if self.launcher not in KINDS:
            known = (LOCAL, *KINDS)
            raise ConfigError(
                f"launcher {self.launcher!r}{nearest(self.launcher, known)}; one of: "
                + ", ".join(known)
            )
        values: dict[str, Any] = {"kind": self.launcher, "nodes": self.nodes, "gpus": self.gpus}
        if stage == "evaluate":
            values |= {"kind": "job", "nodes": 1, "gpus": min(1, self.gpus)}
        if self.image:
            values["image"] = self.image
        return job_settings(job_settings_for(stage, self.job), **(values | _of_task(self.task)))


def _of_task(task: TaskConfig | None) -> dict[str, Any]:
    """Job settings from what a pipeline's author has set on the task."""
    from percmae.jobs.parts import OWN_VARIABLES
    from percmae.jobs.spec import OWN_MOUNTS

    if task is None:
        return {}
    found: dict[str, Any] = {
        "affinity": task.affinity,
        "tolerations": task.tolerations,
        "node_selector": task.node_selector,
    }
    resources = task.resources or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    # A name with a domain is a device: nvidia.com/gpu, amd.com/gpu.
    for name, count in {**requests, **limits}.items():
        if "/" in name:
            found |= {"gpu_resource": name, "gpus": int(count)}
    # The job has keys, homes and shared memory of its own: of the same secret and ConfigMap.
    env = {entry["name"]: entry for entry in task.env or []}
    for name, source, settings in _STORE:
        reference = (env.get(name) or {}).get("valueFrom", {}).get(source) or {}
        found |= {setting: reference.get(part) for setting, part in settings.items()}
    taken = {*OWN_VARIABLES, *(name for name, *_ in _STORE), *_STORE_TOO}
    found["env"] = [entry for name, entry in env.items() if name not in taken]
    mounts = [m for m in task.volume_mounts or [] if m["mountPath"] not in OWN_MOUNTS]
    named = {mount["name"] for mount in mounts}
    found["volume_mounts"] = mounts
    found["volumes"] = [v for v in task.volumes or [] if v["name"] in named]
    found["cpu"] = requests.get("cpu") or limits.get("cpu")
    found["cpu_limit"] = limits.get("cpu")
    found["memory"] = limits.get("memory") or requests.get("memory")
    return {key: value for key, value in found.items() if value}


# Which variables of a step say where the store's keys and address are kept, and in what.
_STORE = (
    ("AWS_ACCESS_KEY_ID", "secretKeyRef", {"store_secret": "name", "store_access_key": "key"}),
    ("AWS_SECRET_ACCESS_KEY", "secretKeyRef", {"store_secret": "name", "store_secret_key": "key"}),
    ("AWS_ENDPOINT_URL", "configMapKeyRef", {"store_config": "name"}),
)
_STORE_TOO = ("AWS_REGION",)  # from the same ConfigMap


def train(
    config: Config, data: str, to: str, parent: Run | None, untrained: bool, launch: Launch
) -> RunResult:
    """One training by a job; a finished run of the same config, data and parent is reused.

    Raises what :func:`percmae.jobs.launch.launch` raises, and UserError when the run's name is
    taken by another config.
    """
    from percmae.data.shards import Dataset
    from percmae.jobs.launch import launch as start
    from percmae.jobs.work import training
    from percmae.runs.downstream import downstream_config
    from percmae.runs.record import Run, RunResult, existing_run, identity_of

    settings = launch.settings(config.stage)
    assert settings is not None, "only called for a launcher"
    identity = identity_of(config, Dataset.open(data), parent, untrained)
    found = existing_run(to, identity, "auto")
    if found is not None and found.complete:
        note(f"{found.uri}: unchanged, reused")
        return RunResult(found, reused=True)
    if parent is None:
        work = training(config, data, to)
    else:
        base = downstream_config(parent, config.stage, config.recipe)
        work = training(config, data, to, parent.uri, untrained, base)
    start(work, settings, launch.pipeline_run)
    made = Run.find(to, identity)
    if made is None or not made.complete:
        raise PercmaeError(
            f"the job ended well, but there is no finished run {identity.name} below {to}: do the "
            "job and this step use the same store?"
        )
    return RunResult(made, reused=False)


def evaluate(run: str, data: str, launch: Launch) -> EvaluationResult:
    """A run's figures on the test set by a job; those of the same weights and data are reused.

    Raises what :func:`percmae.jobs.launch.launch` raises, and UserError for a run that is not
    complete.
    """
    from percmae.data.shards import Dataset
    from percmae.jobs.launch import launch as start
    from percmae.jobs.work import command
    from percmae.runs.evaluation import EvaluationResult, stored_evaluation
    from percmae.runs.record import Run

    settings = launch.settings("evaluate")
    assert settings is not None, "only called for a launcher"
    opened, dataset = Run.open(run), Dataset.open(data)
    found = stored_evaluation(opened, dataset)
    if found is not None:
        return EvaluationResult(found, reused=True)
    name = run.rstrip("/").rpartition("/")[2]
    start(command("evaluate", name, "--run", run, "--data", data), settings, launch.pipeline_run)
    made = stored_evaluation(opened, dataset)
    if made is None:
        raise PercmaeError(
            f"the job ended well, but run {run} has no evaluation: do the job and this step use "
            "the same store?"
        )
    return EvaluationResult(made, reused=False)
