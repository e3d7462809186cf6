"""The compiled pipeline as a thing to compare: with a version in KFP, with parameters given for it.

A package is YAML of one or two documents: the pipeline spec, and what only Kubernetes understands
(the platform spec). KFP hands both back as JSON, with fields in another order and defaults left out
or written out, so two are the same when they parse to the same protobuf messages.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from percmae import __version__
from percmae.config.load import nearest
from percmae.errors import ConfigError
from percmae.jobs.names import PIPELINE_IMAGE
from percmae.jobs.schema import TRAIN_IMAGE
from percmae.plain import documents, read_yaml
from percmae.progress import warn
from percmae.stages.check import check_placement, check_training
from percmae.stages.placement import LOCAL, Placement
from percmae.stages.retrain import check_retrain
from pipelines import RETRAIN
from pipelines.pod import PodSettings, pod_of
from pipelines.step import StepSettings

OURS = tuple(image.partition(":")[0] for image in (PIPELINE_IMAGE, TRAIN_IMAGE))
"""Names of our images, without a registry."""


class Change(NamedTuple):
    """A field that differs: as it is deployed, as it is wanted."""

    field: str
    deployed: str
    wanted: str


@dataclass(frozen=True)
class Package:
    """A pipeline's spec and platform spec, as dictionaries, however they were written."""

    pipeline: dict[str, Any]
    platform: dict[str, Any]

    @classmethod
    def from_yaml(cls, text: str) -> Package:
        """What a compiled file holds."""
        pipeline, *platform = documents(text)
        return cls(pipeline, platform[0] if platform else {})

    @classmethod
    def from_api(cls, spec: dict[str, Any] | None) -> Package:
        """``pipeline_spec`` of a version in KFP."""
        spec = spec or {}
        if "pipeline_spec" in spec:
            return cls(spec["pipeline_spec"], spec.get("platform_spec") or {})
        return cls(spec, {})

    @cached_property
    def content(self) -> dict[str, Any]:
        """Both in the form they have after a round through protobuf."""
        from google.protobuf import json_format
        from kfp.pipeline_spec import pipeline_spec_pb2 as messages

        def normal(given: dict[str, Any], message: Any) -> dict[str, Any]:
            json_format.ParseDict(given, message, ignore_unknown_fields=True)
            return dict(json_format.MessageToDict(message))

        return {
            **normal(self.pipeline, messages.PipelineSpec()),
            "platform": normal(self.platform, messages.PlatformSpec()),
        }

    @property
    def name(self) -> str:
        """Name of the pipeline."""
        return str(self.pipeline["pipelineInfo"]["name"])

    @property
    def images(self) -> list[str]:
        """The container images of the steps, each once."""
        executors = self.pipeline.get("deploymentSpec", {}).get("executors", {}).values()
        return sorted({step["container"]["image"] for step in executors if "container" in step})

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """The pipeline's parameters: name to type, default and description as in the spec."""
        return dict(self.pipeline.get("root", {}).get("inputDefinitions", {}).get("parameters", {}))

    @property
    def steps(self) -> set[str]:
        """Names of all tasks that run a container, inside loops and conditions too."""
        components = self.pipeline["components"]

        def leaves(component: dict[str, Any]) -> Iterator[str]:
            for name, task in component.get("dag", {}).get("tasks", {}).items():
                inner = components[task["componentRef"]["name"]]
                if "executorLabel" in inner:
                    yield name
                yield from leaves(inner)

        return set(leaves(self.pipeline["root"]))

    def titles(self) -> dict[str, str]:
        """Name of a task to the name shown in the UI."""
        components = [self.pipeline["root"], *self.pipeline["components"].values()]
        return {
            name: task.get("taskInfo", {}).get("name", name)
            for component in components
            for name, task in component.get("dag", {}).get("tasks", {}).items()
        }


@lru_cache(maxsize=4)
def compiled(image: str, pod: PodSettings, which: str = "train") -> tuple[str, Package]:
    """The YAML of a pipeline (of pipelines.PIPELINES), and what is in it."""
    from pipelines.which import compile_pipeline  # imports kfp: not for --help

    with tempfile.TemporaryDirectory(prefix="percmae-") as folder:
        file = Path(folder) / "pipeline.yaml"
        compile_pipeline(which, str(file), image, pod)
        text = file.read_text(encoding="utf-8")
    return text, Package.from_yaml(text)


def version_name() -> str:
    """Name for a version: the short commit, with -dirty for changed files; else percmae's version.

    Outside a git checkout, or where this file is none of the checkout's own.
    """
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name],
            check=True,
            capture_output=True,
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return described.stdout.strip()


def parameters(package: Package, given: Iterable[str]) -> dict[str, Any]:
    """Values for a run from ``key=value`` words, of the types that the pipeline wants.

    Text is taken as it stands; numbers, true/false, lists and objects are read as YAML. Raises
    ConfigError for an unknown name (with the nearest one), a wrong type, and for settings that no
    training can be started with.
    """
    values: dict[str, Any] = {}
    for word in given:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"parameter {word!r}: give name=value")
        if name not in package.inputs:
            raise ConfigError(
                f"the pipeline has no parameter {name!r}{nearest(name, package.inputs)}; it has "
                f"{', '.join(package.inputs)}"
            )
        if name in values:
            raise ConfigError(f"parameter {name!r} is given twice")
        values[name] = _value(name, text, package.inputs[name]["parameterType"])
    required = [name for name, of in package.inputs.items() if "defaultValue" not in of]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{package.name} needs {' and '.join(missing)}: give --param name=value")
    _check_training(package, values)
    return values


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "NUMBER_INTEGER": ((int,), "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": ((bool,), "true or false"),
    "LIST": ((list,), "a list such as [0, 1]"),
    "STRUCT": ((dict,), "an object such as {cpu: 4}"),
}


def fits(value: Any, kind: str) -> bool:
    """Whether KFP takes this value for a parameter of this type."""
    if kind == "STRING":
        return isinstance(value, str)
    types, _ = _KINDS[kind]
    if kind == "NUMBER_INTEGER" and isinstance(value, float):
        return value.is_integer()  # JSON has one kind of number
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _value(name: str, text: str, kind: str) -> Any:
    if kind == "STRING":
        return text
    try:
        value = read_yaml(text, name)
    except ConfigError:
        value = None
    if not fits(value, kind):
        raise ConfigError(f"parameter {name}={text}: should be {_KINDS[kind][1]}")
    return value


def _check_training(package: Package, values: dict[str, Any]) -> None:
    """Refuse now what the first training would refuse hours later."""
    whole: dict[str, Any] = {
        name: values.get(name, given.get("defaultValue")) for name, given in package.inputs.items()
    }
    nodes, gpus = int(whole["nodes"]), int(whole["gpus"])
    placement = Placement(whole["launcher"], whole["train_image"], nodes, gpus, whole["job"])
    check_placement(placement, whole["store"])
    if placement.launcher == LOCAL:
        _check_local(package)
    names = ("variant", "tag", "recipe", "size", "overrides")
    what = {name: whole[name] for name in names}
    if package.name == RETRAIN:
        what |= {name: whole[name] for name in ("model", "start", "rule", "schedule")}
        check_retrain(**what, seed=int(whole["seed"]))
        return
    fractions = whole.get("label_fractions", (1.0,))
    check_training(**what, seeds=whole["seeds"], label_fractions=fractions)


def _check_local(package: Package) -> None:
    """Steps that train themselves need both torch and KFP, which no image of ours has, and room."""
    for image in package.images:
        name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
        if name in OURS:
            lacks = "torch" if name == OURS[0] else "KFP"
            raise ConfigError(
                f"launcher=local: steps would train in {image}, which lacks {lacks}; choose "
                "launcher=job (no operator needed), pytorchjob or trainjob, or give an --image of "
                "your own with both"
            )
    made = dict(pod_of(package.pipeline, package.platform).steps)
    if made["pretrain"].memory_limit == StepSettings.memory_limit:
        warn(
            f"launcher=local: steps train in their own pods, which get {StepSettings.memory_limit} "
            "of memory and no GPU, enough to wait for a job: say more with --step memory=…, "
            "--step pretrain.gpus=1 and the like"
        )


def changes(deployed: Package, wanted: Package) -> list[Change]:
    """What differs between two packages, field by field; nothing when they mean the same."""
    old, new = dict(_leaves(deployed.content)), dict(_leaves(wanted.content))
    each = [
        Change(path, _shown(old.get(path)), _shown(new.get(path)))
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path)
    ]
    return _together(each, deployed, wanted)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _together(each: list[Change], deployed: Package, wanted: Package) -> list[Change]:
    """One line for an image that all steps share, and short names for the steps' code."""
    told: list[Change] = []
    one_image = len(deployed.images) == len(wanted.images) == 1
    if one_image and deployed.images != wanted.images:
        told.append(Change("image", deployed.images[0], wanted.images[0]))
    for path, old, new in each:
        step = path.removeprefix("deploymentSpec.executors.exec-").partition(".container.")
        if not step[1]:
            told.append(Change(path, old, new))
        elif step[2] == "command":
            told.append(Change(f"code of {step[0]}", old, new))
        elif step[2] != "image" or not one_image:
            told.append(Change(f"{step[2]} of {step[0]}", old, new))
    return told


def _shown(value: Any) -> str:
    """A value for one line; long ones by their length and a mark that changes with them."""
    if value is None:
        return "(absent)"
    text = (
        value
        if isinstance(value, str) and value
        else yaml.safe_dump(value, default_flow_style=True, width=10**6)
        .removesuffix("\n...\n")
        .strip()
    )
    if len(text) <= 60 and "\n" not in text:
        return text
    return f"({len(text)} characters, {hashlib.sha256(text.encode()).hexdigest()[:8]})"
