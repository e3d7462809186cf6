"""Components whose work a job may do: what they share beside the parameters themselves.

KFP runs a component's source alone, so each function has to spell out its parameters; what they
mean is said here.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from kfp import dsl
from kfp.dsl import TaskConfigField, TaskConfigPassthrough

from components import IMAGE
from percmae.jobs.names import STEP_SIZED_VARIABLE

TEXTS = {
    "pretrained": "The pretraining run; sizes, recipe, tag and seed are taken from it.",
    "overrides": "Settings as key=value; one with a stage in front is for that stage alone.",
    "launcher": "Where to train: local (in this step), pytorchjob, trainjob or job.",
    "train_image": "Image of the job; empty for percmae's own.",
    "nodes": "Pods that train together.",
    "gpus": "GPUs a pod.",
    "job": "Further settings of the job as key=value; one with a stage in front is for that stage.",
    "pipeline_run": "Id of the pipeline's run.",
    "task_config": "What is set on the task (resources, tolerations, env …) goes to the job.",
}
"""What KFP shows of parameters that several components have."""

# Devices and memory are for the job alone: the step itself only waits. What the step may need as
# well, to reach the store, goes to both.
PASSED_ON = [
    TaskConfigField.RESOURCES,
    TaskConfigField.KUBERNETES_TOLERATIONS,
    TaskConfigField.KUBERNETES_NODE_SELECTOR,
    TaskConfigField.KUBERNETES_AFFINITY,
    TaskConfigPassthrough(field=TaskConfigField.ENV, apply_to_task=True),
    TaskConfigPassthrough(field=TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
]


def launching(function: Callable[..., None]) -> Any:
    """The KFP component of a function with the parameters of ``percmae.stages.placement``.

    Its docstring ends with the section ``Args``, which is completed from ``TEXTS``.
    """
    texts = [
        f"    {name}: {TEXTS[name]}"
        for name in inspect.signature(function).parameters
        if name in TEXTS
    ]
    function.__doc__ = "\n".join([inspect.getdoc(function) or "", *texts])
    return dsl.component(
        function,
        base_image=IMAGE,
        install_kfp_package=False,
        task_config_passthroughs=PASSED_ON,
    )


def step_sized(component: Any) -> Any:
    """A copy of such a component whose tasks' resources are for the step's own pod.

    The component itself stays as it is, for pipelines that size the job by its task. What is passed
    on, KFP gives to the job alone or to both, so the copy tells its step to leave them to itself.
    """
    spec = component.component_spec
    passed = [
        dataclasses.replace(each, apply_to_task=True)
        if each.field is TaskConfigField.RESOURCES
        else each
        for each in spec.task_config_passthroughs
    ]
    container = spec.implementation.container
    own = dataclasses.replace(container, env={**(container.env or {}), STEP_SIZED_VARIABLE: "true"})
    sized = copy.copy(component)
    sized.component_spec = dataclasses.replace(
        spec,
        task_config_passthroughs=passed,
        implementation=dataclasses.replace(spec.implementation, container=own),
    )
    return sized
