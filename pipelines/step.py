"""The pod of each step: how large it is, how long it may run, what keeps it from being disturbed.

A step that launches a job only waits for it, and needs little; with ``launcher=local`` it trains in
its own pod, which is to be sized for it. KFP can express neither ephemeral storage nor a priority
class of a step's pod (docs/operators.md has what does instead).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from percmae.errors import ConfigError
from percmae.jobs.names import UNDISTURBED

Labels = tuple[tuple[str, str], ...]

START_SECONDS = 600
"""Seconds after which a step that does little is ended: its pod has a node, but cannot start."""
_RETRYING_SECONDS = 365 * 24 * 3600


@dataclass(frozen=True)
class StepSettings:
    """Of one step's pod.

    cpu, memory: what it is promised; cpu_limit, memory_limit: the most it may take (quantities as
    KFP takes them). gpus, gpu_resource: devices for a step that trains itself, and the name under
    which the cluster offers them. timeout: seconds the pod may run; None for no limit. retries: how
    often KFP makes a pod anew, by its manifests one that was deleted or whose node was lost; None
    leaves it at their 2. labels, annotations: further ones of the pod.
    """

    cpu: str = "100m"
    cpu_limit: str = "1"
    memory: str = "256Mi"
    memory_limit: str = "1Gi"
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    timeout: int | None = None
    retries: int | None = None
    labels: Labels = ()
    annotations: Labels = ()


STEP_KEYS = tuple(field.name for field in dataclasses.fields(StepSettings))
Steps = tuple[tuple[str, StepSettings], ...]

# Measured: a step that launches and waits takes 110 MiB at most, the report 140, ingest 250 on
# shards of 128 MiB with 32 threads that look at images; KFP's launcher takes some of each pod.
_SHORT = StepSettings(timeout=START_SECONDS)
_LAUNCHES = StepSettings(annotations=tuple(UNDISTURBED.items()))
_INGESTS = replace(_LAUNCHES, cpu="1", cpu_limit="8", memory="1Gi", memory_limit="2Gi")
STEPS: Steps = (
    ("check", _SHORT),
    ("ingest", _INGESTS),
    ("look", _INGESTS),
    ("pretrain", _LAUNCHES),
    ("finetune", _LAUNCHES),
    ("probe", _LAUNCHES),
    ("evaluate", _LAUNCHES),
    ("reconstruct", _LAUNCHES),
    ("judge", _LAUNCHES),
    ("report", StepSettings()),
    ("clean", _SHORT),
)
"""Each step by the name of its component, and what its pod has where nothing is said."""
ABSENT = {"train": ("look", "judge"), "retrain": ("ingest", "probe", "reconstruct", "report")}
"""Steps that a pipeline (of pipelines.PIPELINES) does not have."""


def apply(task: Any, step: StepSettings) -> None:
    """Give a step's task these settings."""
    import kfp.kubernetes as kubernetes

    task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu_limit)
    task.set_memory_request(step.memory).set_memory_limit(step.memory_limit)
    if step.gpus:
        task.set_accelerator_type(step.gpu_resource).set_accelerator_limit(step.gpus)
    if step.timeout is not None:
        kubernetes.set_timeout(task, step.timeout)
    if step.retries is not None:
        # Without it, nothing would be tried again an hour after a step has begun.
        task.set_retry(step.retries, backoff_max_duration=f"{_RETRYING_SECONDS}s")
    for key, value in step.labels:
        kubernetes.add_pod_label(task, key, value)
    for key, value in step.annotations:
        kubernetes.add_pod_annotation(task, key, value)


def steps_of(pipeline: dict[str, Any], kubernetes: dict[str, Any]) -> Steps:
    """The settings that a compiled pipeline was made with: its spec, its part for Kubernetes.

    A step that says no size is none of ours, or an older one, and has the defaults.
    """
    components = pipeline.get("components", {})
    containers = pipeline.get("deploymentSpec", {}).get("executors", {})
    pods = kubernetes.get("deploymentSpec", {}).get("executors", {})
    retries = {
        task["componentRef"]["name"]: int(task["retryPolicy"].get("maxRetryCount", 0))
        for task in tasks(pipeline)
        if "retryPolicy" in task
    }
    found = []
    for name, default in STEPS:
        label = components.get(f"comp-{name}", {}).get("executorLabel", "")
        sizes = containers.get(label, {}).get("container", {}).get("resources")
        made = default
        if sizes is not None:
            made = _made_with(sizes, pods.get(label, {}), retries.get(f"comp-{name}"))
        found.append((name, made))
    return tuple(found)


def _made_with(sizes: dict[str, Any], pod: dict[str, Any], retries: int | None) -> StepSettings:
    devices, metadata = sizes.get("accelerator", {}), pod.get("podMetadata", {})
    deadline = pod.get("activeDeadlineSeconds")
    return StepSettings(
        cpu=sizes["resourceCpuRequest"],
        cpu_limit=sizes["resourceCpuLimit"],
        memory=sizes["resourceMemoryRequest"],
        memory_limit=sizes["resourceMemoryLimit"],
        gpus=int(devices.get("resourceCount", 0)),
        gpu_resource=devices.get("resourceType", StepSettings.gpu_resource),
        timeout=None if deadline is None else int(deadline),
        retries=retries,
        labels=tuple(sorted(metadata.get("labels", {}).items())),
        annotations=tuple(sorted(metadata.get("annotations", {}).items())),
    )


def tasks(pipeline: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every task of a compiled pipeline, those inside loops and conditions too."""
    for component in (pipeline.get("root", {}), *pipeline.get("components", {}).values()):
        yield from component.get("dag", {}).get("tasks", {}).values()


def with_words(steps: Steps, words: Iterable[str]) -> Steps:
    """These settings, changed by ``key=value`` for every step, ``step.key=value`` for one.

    The latter are stronger. Labels and annotations are added to those that are there; ``null`` as a
    value takes one away. A request above its limit raises it where no limit is given, and a limit
    below the request lowers that. Raises ConfigError for what Kubernetes or KFP would refuse.
    """
    names = [name for name, _ in steps]
    for_all: dict[str, str] = {}
    for_one: dict[str, dict[str, str]] = {name: {} for name in names}
    for word in words:
        key, equals, value = word.partition("=")
        step, dot, setting = key.strip().rpartition(".")
        if not equals:
            raise ConfigError(f"step setting {word!r}: give key=value or step.key=value")
        if dot:
            _known("step", step, names, word)
        _known("setting", setting, STEP_KEYS, word)
        (for_one[step] if dot else for_all)[setting] = value.strip()
    return tuple((name, _changed(name, made, for_all | for_one[name])) for name, made in steps)


def check_steps(pipeline: str, words: Iterable[str]) -> None:
    """Raise ConfigError for words about a step of another pipeline: they would have no effect."""
    for word in words:
        step = word.partition("=")[0].strip().rpartition(".")[0]
        if step in ABSENT[pipeline]:
            has = ", ".join(name for name, _ in STEPS if name not in ABSENT[pipeline])
            raise ConfigError(
                f"step setting {word!r}: the {pipeline} pipeline has no step {step!r}; it has {has}"
            )


def _known(what: str, name: str, names: Iterable[str], word: str) -> None:
    from percmae.config.load import nearest  # not for --help

    if name not in names:
        raise ConfigError(
            f"step setting {word!r}: no {what} {name!r}{nearest(name, names)}; one of: "
            + ", ".join(names)
        )


def _changed(name: str, made: StepSettings, given: dict[str, str]) -> StepSettings:
    values: dict[str, Any] = {}
    for key, text in given.items():
        what = f"step setting {name}.{key}"
        if key in ("gpus", "timeout", "retries"):
            values[key] = _count(key, text, what)
        elif key in ("labels", "annotations"):
            values[key] = _labels(getattr(made, key), text, what, key == "labels")
        else:
            _check_text(key, text, what)
            values[key] = text
    for request, limit in (("cpu", "cpu_limit"), ("memory", "memory_limit")):
        values |= _fitting(name, made, values, request, limit)
    return replace(made, **values)


def _fitting(
    name: str, made: StepSettings, values: dict[str, Any], request: str, limit: str
) -> dict[str, str]:
    """Request and limit so that the one that is not given makes room for the other."""
    from percmae.jobs.syntax import quantity

    low, high = (values.get(key, getattr(made, key)) for key in (request, limit))
    if quantity(low, request) <= quantity(high, limit):
        return {}
    if request in values and limit in values:
        raise ConfigError(
            f"step setting {name}.{request}={low}: more than {limit}={high}, the most it may take"
        )
    return {limit: low} if request in values else {request: high}


def _count(key: str, text: str, what: str) -> int | None:
    least = {"gpus": 0, "timeout": 1, "retries": 0}[key]
    if text == "null" and key != "gpus":
        return None
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) < least:
        none = "" if key == "gpus" else ", or null"
        raise ConfigError(f"{what}={text}: should be a whole number of at least {least}{none}")
    return int(text)


def _check_text(key: str, text: str, what: str) -> None:
    from percmae.jobs.syntax import cores, memory, qualified_name

    if key == "gpu_resource":
        qualified_name(text, what)
    elif key.startswith("cpu"):
        cores(text, what)
        if not re.fullmatch(r"\d*\.?\d+m?", text, re.ASCII):
            raise ConfigError(f"{what}={text!r}: KFP takes cores such as 2, 0.5 or 500m")
    else:
        memory(text, what)
        if not re.fullmatch(r"\d+([MGTPE]i?)?", text, re.ASCII):
            raise ConfigError(f"{what}={text!r}: KFP takes whole numbers such as 1536Mi or 2Gi")


def _labels(made: Labels, text: str, what: str, labels: bool) -> Labels:
    from percmae.jobs.syntax import label_value, qualified_name
    from percmae.plain import read_yaml

    given = read_yaml(text, what)
    if not isinstance(given, dict):
        raise ConfigError(f"{what}={text}: should be a mapping such as {{team: vision}}")
    for key, value in given.items():
        if not isinstance(key, str) or not isinstance(value, str | None):
            raise ConfigError(f"{what}: {key}: {value!r}: should be texts; put them in quotes")
        qualified_name(key, what)
        if labels and value is not None:
            label_value(value, f"{what}, {key}")
    both = {**dict(made), **given}
    return tuple((key, value) for key, value in sorted(both.items()) if value is not None)
