"""The pipeline on a schedule in KFP: one recurring run a name, brought to what is wanted.

KFP cannot change a recurring run, so one that differs is replaced: the new one is created disabled
(whatever KFP refuses, it refuses here, and the old one has not been touched), the old one is
disabled, the new one enabled, the old one deleted. Two are never enabled at once. None is for the
moment between two calls, and a start that falls into it is not lost: KFP counts from the moment a
recurring run was created, and starts what is due when it is enabled. If enabling fails, the old one
is enabled again; if this process dies in between, the same command finishes the work. Runs that are
going on are left alone throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from percmae.config.load import nearest
from percmae.errors import Interrupted, UserError
from percmae.jobs.check import warn_unpinned
from pipelines.pod import PodSettings
from pipelines.server.api import Connection, Kfp, KfpError, connect
from pipelines.server.cluster import Cluster
from pipelines.server.drift import (
    WantedSchedule,
    differences,
    enabled,
    pipeline_of,
    schedules_named,
    wanted_schedule,
)
from pipelines.server.package import Change, compiled
from pipelines.server.submit import Uploaded, upload, version_title


@dataclass(frozen=True)
class ScheduleOutcome:
    """What ``schedule`` did.

    did: created, replaced, enabled (it was paused), updated (the latest version is another one
    now), tidied up (after an interruption), or unchanged. changes: why it was replaced.
    """

    did: str
    changes: list[Change]
    link: str


def schedule(
    where: Connection,
    name: str,
    cron: str,
    given: Iterable[str],
    image: str,
    pod: PodSettings,
    which: str = "train",
    **options: Any,
) -> ScheduleOutcome:
    """Create the schedule, or change the one of this name to what is wanted.

    given: parameters as ``key=value``; which: of pipelines.PIPELINES; options as for
    :func:`pipelines.server.drift.wanted_schedule`. Raises ConfigError before anything is sent,
    UserError and KfpError as :func:`pipelines.server.api.connect`.
    """
    text, package = compiled(image, pod, which)
    want = wanted_schedule(name, cron, given, package, **options)
    warn_unpinned(image)
    with connect(where) as kfp:
        Cluster(where, package).check(pod)
        version = upload(kfp, text, package, newest=not want.pinned)
        experiment = kfp.experiment(want.experiment)
        deployed = schedules_named(kfp, want.name, version.pipeline_id)
        changes = [differences(run, want, experiment, version) for run in deployed]
        if [] in changes:
            keep = deployed.pop(changes.index([]))
            did = "updated" if version.new and not want.pinned else "unchanged"
            if deployed or not enabled(keep):
                did = "tidied up" if deployed else "enabled"
                _switch(kfp, keep, deployed, new=False)
            return ScheduleOutcome(did, [], kfp.recurring_link(keep.recurring_run_id))
        new = _create(kfp, want, version, experiment, active=not deployed)
        if deployed:
            _switch(kfp, new, deployed, new=True)
        did, why = ("replaced", changes[0]) if deployed else ("created", [])
        return ScheduleOutcome(
            did, _named_versions(kfp, why, version), kfp.recurring_link(new.recurring_run_id)
        )


def delete(where: Connection, name: str, package_name: str) -> int:
    """Delete the schedule of this name; the number of recurring runs that were.

    Runs that it started stay. Raises UserError, with the nearest name, when there is none.
    """
    with connect(where) as kfp:
        pipeline_id = kfp.pipeline(package_name)
        every = [r for r in kfp.recurring_runs() if pipeline_id and pipeline_of(r) == pipeline_id]
        runs = [run for run in every if run.display_name == name]
        if not runs:
            hint = nearest(name, [run.display_name for run in every])
            raise UserError(f"no schedule {name!r} of {package_name} in KFP{hint}")
        for run in runs:
            kfp.delete(run.recurring_run_id)
        return len(runs)


def _create(
    kfp: Kfp, want: WantedSchedule, version: Uploaded, experiment: str, active: bool
) -> Any:
    return kfp.create_recurring_run(
        want.cron.kfp,
        display_name=want.name,
        description=f"python -m pipelines schedule; {want.cron.standard}",
        experiment_id=experiment,
        pipeline=(version.pipeline_id, version.version_id if want.pinned else None),
        parameters=want.parameters,
        service_account=want.service_account,
        mode="ENABLE" if active else "DISABLE",
        # A cluster that was down for a week must not train seven times.
        no_catchup=True,
        max_concurrency="1",
    )


def _switch(kfp: Kfp, keep: Any, others: Sequence[Any], new: bool) -> None:
    """Have ``keep`` enabled and the others gone; the order is explained at the top."""
    stopped: list[Any] = []
    try:
        for run in others:
            if enabled(run):
                kfp.disable(run.recurring_run_id)
                stopped.append(run)
        if new or not enabled(keep):
            kfp.enable(keep.recurring_run_id)
    except (KfpError, Interrupted, KeyboardInterrupt) as error:
        _undo(kfp, stopped, keep if new else None, error)
        raise
    try:
        for run in others:
            kfp.delete(run.recurring_run_id)
    except KfpError as error:
        raise KfpError(
            f"{error}; the new schedule is enabled and the old one disabled: the same command "
            "removes what is left",
            error.status,
        ) from None


def _undo(kfp: Kfp, stopped: Sequence[Any], created: Any, reason: BaseException) -> None:
    try:
        # First the new one: it may have been enabled although the answer was lost.
        if created is not None:
            kfp.delete(created.recurring_run_id)
        for run in stopped[:1]:
            kfp.enable(run.recurring_run_id)
    except KfpError:
        raise KfpError(
            f"{reason}; undoing it failed too: perhaps no schedule is enabled now, the same "
            "command puts it right"
        ) from None


def _named_versions(kfp: Kfp, changes: list[Change], version: Uploaded) -> list[Change]:
    """The same changes with versions by name instead of id."""
    if not any(change.field == "version" for change in changes):
        return changes
    names = {v.pipeline_version_id: version_title(v) for v in kfp.versions(version.pipeline_id)}
    return [Change(field, names.get(old, old), names.get(new, new)) for field, old, new in changes]
