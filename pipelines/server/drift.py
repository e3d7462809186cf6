"""What is scheduled in KFP beside what is wanted: the differences, and a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from percmae.errors import ConfigError, UserError
from percmae.jobs.crontab import Cron, from_kfp, parse_cron
from pipelines.pod import PodSettings
from pipelines.server.api import Connection, Kfp, connect
from pipelines.server.package import Change, Package, changes, compiled, fits, parameters
from pipelines.server.submit import EXPERIMENT, Uploaded, label


@dataclass(frozen=True)
class Wanted:
    """What a schedule should be.

    pinned: it runs the version that is the repo's now; otherwise always the latest in KFP.
    """

    name: str
    cron: Cron
    parameters: dict[str, Any]
    pinned: bool
    experiment: str = EXPERIMENT
    service_account: str | None = None


@dataclass(frozen=True)
class Row:
    """A deployed schedule, for people; cron in five fields if it can be said so."""

    name: str
    cron: str
    next: str
    enabled: bool
    version: str
    drift: str


def wanted(
    name: str,
    cron: str,
    given: Iterable[str],
    package: Package,
    *,
    pinned: bool = True,
    experiment: str = EXPERIMENT,
    service_account: str | None = None,
) -> Wanted:
    """A schedule from words; raises ConfigError for what does not fit the pipeline."""
    if not name.strip():
        raise ConfigError("schedule name: is empty")
    values = parameters(package, given)
    return Wanted(name, parse_cron(cron), values, pinned, experiment, service_account)


def diff(
    where: Connection,
    name: str,
    cron: str,
    given: Iterable[str],
    image: str,
    pod: PodSettings,
    **options: Any,
) -> list[Change]:
    """What ``schedule`` with the same arguments would change, field by field; changes nothing."""
    _, package = compiled(image, pod)
    want = wanted(name, cron, given, package, **options)
    with connect(where) as kfp:
        pipeline_id = kfp.pipeline(package.name)
        there = named(kfp, want.name, pipeline_id) if pipeline_id else []
        if not pipeline_id or not there:
            return [("schedule", "(absent)", want.name)]
        experiment = kfp.experiment_name(there[0].experiment_id)
        found = (
            [] if experiment == want.experiment else [("experiment", experiment, want.experiment)]
        )
        found += differences(there[0], want, there[0].experiment_id, None)
        if not enabled(there[0]):
            found.append(("enabled", "no", "yes"))
        runs = _version_of(there[0], kfp.versions(pipeline_id))
        if runs is None:
            return [*found, ("version", "(gone)", "the repo's")]
        return found + changes(Package.from_api(runs.pipeline_spec), package)


def rows(where: Connection, image: str | None, pod: PodSettings, default: str) -> list[Row]:
    """The pipeline's schedules in KFP.

    image: what the repo's pipeline would run in; None takes what the deployed one has, so that only
    other differences are drift. default: the image where nothing is deployed.
    """
    _, package = compiled(image or default, pod)
    with connect(where) as kfp:
        pipeline_id = kfp.pipeline(package.name)
        if pipeline_id is None:
            return []
        versions = kfp.versions(pipeline_id)
        made = []
        for run in kfp.recurring_runs():
            if pipeline_of(run) == pipeline_id:
                version = _version_of(run, versions)
                there = Package.from_api(version.pipeline_spec if version else None)
                with_image = image or next(iter(there.images), default)
                made.append(_row(run, version, there, compiled(with_image, pod)[1]))
        return made


def table(made: Sequence[Row]) -> str:
    """The rows with a head, for a terminal."""
    head = ("NAME", "CRON", "NEXT (UTC)", "ENABLED", "VERSION", "DRIFT")
    lines = [head] + [
        (row.name, row.cron, row.next, "yes" if row.enabled else "no", row.version, row.drift)
        for row in made
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def named(kfp: Kfp, name: str, pipeline_id: str) -> list[Any]:
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


def differences(run: Any, want: Wanted, experiment: str, version: Uploaded | None) -> list[Change]:
    """What a recurring run has that is not as wanted, but for being enabled.

    version: what a pinned one should run; None leaves it out.
    """
    found: list[Change] = []

    def compare(field: str, there: Any, here: Any, show: Any = str) -> None:
        if there != here:
            found.append((field, show(there), show(here)))

    deployed = run.trigger.cron_schedule if run.trigger else None
    if deployed is None or from_kfp(deployed.cron) != want.cron:
        found.append(("cron", _cron_of(run), want.cron.standard))
    elif deployed.start_time or deployed.end_time:
        found.append(("period", f"{deployed.start_time} to {deployed.end_time}", "always"))
    there = dict((run.runtime_config.parameters if run.runtime_config else None) or {})
    for name in sorted({*there, *want.parameters}):
        old, new = there.get(name, _DEFAULT), want.parameters.get(name, _DEFAULT)
        compare(f"parameter {name}", old, new)
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
    return found


class _Default:
    def __str__(self) -> str:
        return "(the default)"


_DEFAULT = _Default()


def _row(run: Any, version: Any, there: Package, package: Package) -> Row:
    cron = _cron_of(run)
    known = from_kfp(run.trigger.cron_schedule.cron) if _has_cron(run) else None
    coming = known.after(datetime.now(UTC)) if known and enabled(run) else None
    title = label(version) if version else "(gone)"
    return Row(
        str(run.display_name),
        cron,
        f"{coming:%a %Y-%m-%d %H:%M}" if coming else "-",
        enabled(run),
        title if _pinned_to(run) else f"latest ({title})",
        _drift(run, version, there, package),
    )


def _has_cron(run: Any) -> bool:
    return bool(run.trigger and run.trigger.cron_schedule)


def _drift(run: Any, version: Any, there: Package, package: Package) -> str:
    """In a few words how far a deployed schedule is from the repo."""
    if version is None:
        return "its version is gone: no run will start"
    words = []
    found = len(changes(there, package))
    if found:
        words.append(f"pipeline ({found} field{'' if found == 1 else 's'})")
    given = (run.runtime_config.parameters if run.runtime_config else None) or {}
    for name, value in given.items():
        if name not in package.inputs:
            words.append(f"parameter {name} (unknown)")
        elif not fits(value, package.inputs[name]["parameterType"]):
            words.append(f"parameter {name} (type)")
    return ", ".join(words) or "none"
