"""How the tasks of every pipeline of ours are made: their image, their pods, what comes last."""

from __future__ import annotations

from typing import Any

from kfp import dsl

from components.clean.component import clean
from components.launching import step_sized
from pipelines.pod import PodSettings, configure


def launching_with(
    launcher: Any, train_image: Any, nodes: Any, gpus: Any, job: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where trainings run, as parameters of a step that looks at them, and of one that launches."""
    where = {
        "launcher": launcher,
        "train_image": train_image,
        "nodes": nodes,
        "gpus": gpus,
        "job": job,
    }
    return where, {**where, "pipeline_run": dsl.PIPELINE_JOB_ID_PLACEHOLDER}


class Steps:
    """Makes the tasks of a pipeline, all of which run in ``image``.

    pod: what their pods need of a cluster; None for a run on this machine.
    """

    def __init__(self, image: str, pod: PodSettings | None) -> None:
        self.image, self.pod = image, pod
        self.limits = pod if pod is not None else PodSettings()

    @property
    def config(self) -> dsl.PipelineConfig:
        """How long a run may take, and what is left of it stays."""
        limits = self.limits
        return dsl.PipelineConfig(
            ttl_seconds_after_finished=limits.run_ttl, active_deadline_seconds=limits.run_deadline
        )

    def step(self, component: Any) -> Any:
        """A component that launches jobs, as one whose own pod is sized by its task."""
        # The size of a job is given by the pipeline's parameters, so that of a task is free.
        return component if self.pod is None else step_sized(component)

    def in_image(self, task: dsl.PipelineTask, title: str, store: bool = True) -> dsl.PipelineTask:
        """The task with its image, its title in the UI, and what its pod needs."""
        # KFP's cache is off: it would take a step as done for equal inputs, although the store has
        # lost its result, and not for the same archives under another address. The steps
        # look for themselves (percmae.stages) and end within seconds when nothing is to be done.
        task.set_container_image(self.image).set_caching_options(False).set_display_name(title)
        return configure(task, self.pod, store)

    def whatever_happens(self, launcher: Any, job: Any) -> dsl.ExitHandler:
        """The block around all other tasks, behind which jobs that are left over are removed."""
        last = clean(pipeline_run=dsl.PIPELINE_JOB_ID_PLACEHOLDER, launcher=launcher, job=job)
        self.in_image(last, "Clean up", store=False)
        return dsl.ExitHandler(last, name="Whatever happens")
