"""What is scheduled in KFP beside what is wanted: the differences, and a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from percmae.errors import ConfigError, UserError
from percmae.jobs.crontab import Cron, from_kfp, parse_cron
from pipelines import EXPERIMENT, PIPELINES
from pipelines.pod import PodSettings, pod_of, with_given
from pipelines.server.api import Connection, Kfp, connect
from pipelines.server.package import Change, Package, changes, compiled, fits, parameters
from pipelines.server.submit import Uploaded, version_title

SCHEDULE = "schedule"
"""A parameter that a schedule fills in with itself."""


@dataclass(frozen=True)
class WantedSchedule:
    """What a schedule should be.

    pinned: it runs the version that is the repo's now; otherwise always the latest in KFP.
    defaults: of the parameters, which a value may as well be given as.
    """

    name: str
    cron: Cron
    parameters: dict[str, Any]
    pinned: bool
    experiment: str = EXPERIMENT
    service_account: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DeployedSchedule:
    """A deployed schedule, for people; cron in five fields if it can be said so."""

    name: str
    cron: str
    next: str
    enabled: bool
    version: str
    drift: str


def wanted_schedule(
    name: str,
    cron: str,
    given: Iterable[str],
    package: Package,
    *,
    pinned: bool = True,
    experiment: str = EXPERIMENT,
    service_account: str | None = None,
) -> WantedSchedule:
    """A schedule from words; raises ConfigError for what does not fit the pipeline."""
    if not name.strip():
        raise ConfigError("schedule name: is empty")
    values = parameters(package, given)
    if SCHEDULE in package.inputs:
        values.setdefault(SCHEDULE, parse_cron(cron).standard)
    defaults = {key: of.get("defaultValue", _DEFAULT) for key, of in package.inputs.items()}
    return WantedSchedule(
        name, parse_cron(cron), values, pinned, experiment, service_account, defaults
    )


def diff(
    where: Connection,
    name: str,
    cron: str,
    given: Iterable[str],
    image: str,
    pod: PodSettings,
    which: str = "train",
    **options: Any,
) -> list[Change]:
    """What ``schedule`` with the same arguments would change, field by field; changes nothing."""
    _, package = compiled(image, pod, which)
    want = wanted_schedule(name, cron, given, package, **options)
    with connect(where) as kfp:
        pipeline_id = kfp.pipeline(package.name)
        runs = schedules_named(kfp, want.name, pipeline_id) if pipeline_id else []
        if not pipeline_id or not runs:
            return [Change("schedule", "(absent)", want.name)]
        run, told = runs[0], []
        experiment = kfp.experiment_name(run.experiment_id)
        if experiment != want.experiment:
            told.append(Change("experiment", experiment, want.experiment))
        told += differences(run, want, run.experiment_id, None)
        if not enabled(run):
            told.append(Change("enabled", "no", "yes"))
        version = _version_of(run, kfp.versions(pipeline_id))
        if version is None:
            return [*told, Change("version", "(gone)", "the repo's")]
        return told + changes(Package.from_api(version.pipeline_spec), package)


def deployed_schedules(
    where: Connection,
    image: str | None,
    pod: Mapping[str, Any],
    default: str,
    which: str = "train",
) -> list[DeployedSchedule]:
    """The schedules in KFP of a pipeline, one of pipelines.PIPELINES.

    image: what the repo's pipeline would run in; pod: as pipelines.pod.pod_settings gives it. What
    is not given is as it is deployed, so that only other differences are drift. default: the image
    where nothing is deployed.
    """
    with connect(where) as kfp:
        pipeline_id = kfp.pipeline(PIPELINES[which])
        if pipeline_id is None:
            return []
        versions = kfp.versions(pipeline_id)
        found = []
        for run in kfp.recurring_runs():
            if pipeline_of(run) == pipeline_id:
                version = _version_of(run, versions)
                deployed = Package.from_api(version.pipeline_spec if version else None)
                with_image = image or next(iter(deployed.images), default)
                settings = with_given(pod_of(deployed.pipeline, deployed.platform), pod)
                _, package = compiled(with_image, settings, which)
                found.append(_row(run, version, deployed, package))
        return found


def table(schedules: Sequence[DeployedSchedule]) -> str:
    """The rows with a head, for a terminal."""
    head = ("NAME", "CRON", "NEXT (UTC)", "ENABLED", "VERSION", "DRIFT")
    lines = [head] + [
        (row.name, row.cron, row.next, "yes" if row.enabled else "no", row.version, row.drift)
        for row in schedules
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def schedules_named(kfp: Kfp, name: str, pipeline_id: str) -> list[Any]:
    """The recurring runs of this name; KFP allows several."""
    found = [run for run in kfp.recurring_runs() if run.display_name == name]
    if any(pipeline_of(run) != pipeline_id for run in found):
        raise UserError(
            f"schedule {name!r} in KFP belongs to another pipeline; choose another --name"
        )
    # The one that is enabled first: it is what runs now.
    return sorted(found, key=lambda run: not enabled(run))


def enabled(run: Any) -> bool:
    """Whether a recurring run starts runs."""
    return run.status == "ENABLED"


def pipeline_of(run: Any) -> str | None:
    """Id of the pipeline that a recurring run starts."""
    reference = run.pipeline_version_reference
    return reference.pipeline_id if reference else None


def _pinned_to(run: Any) -> str | None:
    return run.pipeline_version_reference.pipeline_version_id or None


def _version_of(run: Any, versions: Sequence[Any]) -> Any:
    """The version (of those, newest first) that a recurring run starts; None if it is gone."""
    pin = _pinned_to(run)
    if pin is None:
        return versions[0] if versions else None
    return next((v for v in versions if v.pipeline_version_id == pin), None)


def _cron_of(run: Any) -> str:
    """A deployed schedule in five fields, or as KFP has it."""
    trigger = run.trigger
    if trigger and trigger.cron_schedule:
        cron = from_kfp(trigger.cron_schedule.cron)
        return cron.standard if cron else str(trigger.cron_schedule.cron)
    if trigger and trigger.periodic_schedule:
        return f"every {trigger.periodic_schedule.interval_second} s"
    return "(none)"


def differences(
    run: Any, want: WantedSchedule, experiment: str, version: Uploaded | None
) -> list[Change]:
    """What a recurring run has that is not as wanted, but for being enabled.

    version: what a pinned one should run; None leaves it out.
    """
    told: list[Change] = []

    def compare(field: str, deployed: Any, wanted: Any, show: Any = str) -> None:
        if deployed != wanted:
            told.append(Change(field, show(deployed), show(wanted)))

    trigger = run.trigger.cron_schedule if run.trigger else None
    if trigger is None or from_kfp(trigger.cron) != want.cron:
        told.append(Change("cron", _cron_of(run), want.cron.standard))
    elif trigger.start_time or trigger.end_time:
        told.append(Change("period", f"{trigger.start_time} to {trigger.end_time}", "always"))
    parameters = _parameters_of(run)
    for name in sorted({*parameters, *want.parameters}):
        default = want.defaults.get(name, _DEFAULT)
        if parameters.get(name, default) != want.parameters.get(name, default):
            old, new = parameters.get(name, _DEFAULT), want.parameters.get(name, _DEFAULT)
            told.append(Change(f"parameter {name}", str(old), str(new)))
    pin = _pinned_to(run)
    if version is not None and want.pinned:
        compare("version", pin or "latest", version.version_id)
    else:
        compare("version", "pinned" if pin else "latest", "pinned" if want.pinned else "latest")
    compare("experiment", run.experiment_id, experiment)
    if want.service_account is not None:  # else whatever KFP has put there
        compare("service account", run.service_account, want.service_account)
    compare("max concurrency", int(run.max_concurrency or 0), 1)
    compare("catch up", not run.no_catchup, False, lambda value: "yes" if value else "no")
    return told


def _parameters_of(run: Any) -> dict[str, Any]:
    """What a recurring run gives to the runs it starts."""
    return dict((run.runtime_config.parameters if run.runtime_config else None) or {})


class _Default:
    def __str__(self) -> str:
        return "(the default)"


_DEFAULT = _Default()


def _row(run: Any, version: Any, deployed: Package, package: Package) -> DeployedSchedule:
    cron = _cron_of(run)
    known = from_kfp(run.trigger.cron_schedule.cron) if _has_cron(run) else None
    coming = known.after(datetime.now(UTC)) if known and enabled(run) else None
    title = version_title(version) if version else "(gone)"
    return DeployedSchedule(
        str(run.display_name),
        cron,
        f"{coming:%a %Y-%m-%d %H:%M}" if coming else "-",
        enabled(run),
        title if _pinned_to(run) else f"latest ({title})",
        _drift(run, version, deployed, package),
    )


def _has_cron(run: Any) -> bool:
    return bool(run.trigger and run.trigger.cron_schedule)


def _drift(run: Any, version: Any, deployed: Package, package: Package) -> str:
    """In a few words how far a deployed schedule is from the repo."""
    if version is None:
        return "its version is gone: no run will start"
    words = []
    count = len(changes(deployed, package))
    if count:
        words.append(f"pipeline ({count} field{'' if count == 1 else 's'})")
    for name, value in _parameters_of(run).items():
        if name not in package.inputs:
            words.append(f"parameter {name} (unknown)")
        elif not fits(value, package.inputs[name]["parameterType"]):
            words.append(f"parameter {name} (type)")
    return ", ".join(words) or "none"
