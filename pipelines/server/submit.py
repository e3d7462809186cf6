"""Starting a run of the pipeline in KFP: upload what is not there yet, run it, follow it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from percmae.errors import Interrupted, PercmaeError
from percmae.jobs.check import warn_unpinned
from percmae.progress import note
from pipelines import EXPERIMENT
from pipelines.pod import PodSettings
from pipelines.server.api import Connection, Kfp, KfpError, KfpRefused, connect
from pipelines.server.package import Package, compiled, parameters, version_name

_POLL = 10.0
_SILENCE = 600.0
"""Seconds without an answer after which waiting is given up."""
_ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")


@dataclass(frozen=True)
class Uploaded:
    """A version of the pipeline in KFP; new: uploaded just now."""

    pipeline_id: str
    version_id: str
    name: str
    new: bool


@dataclass(frozen=True)
class Submitted:
    """A run that was started."""

    run_id: str
    link: str
    version: Uploaded


class RunFailed(PercmaeError):
    """A run in KFP that did not end well; names the failed steps."""


def submit(
    where: Connection,
    given: Iterable[str],
    image: str,
    pod: PodSettings,
    *,
    experiment: str = EXPERIMENT,
    name: str | None = None,
    service_account: str | None = None,
    wait: bool = False,
) -> Submitted:
    """Start a run; with ``wait`` return when it has ended well.

    given: the pipeline's parameters as ``key=value``; image: of all steps. name: of the run; by
    default the pipeline's, the version and the time. service_account: of the steps' pods; None is
    KFP's own.

    Raises ConfigError for parameters that do not fit before anything is sent, UserError and
    KfpError as :func:`pipelines.server.api.connect`, RunFailed, and Interrupted when waiting was
    interrupted (the run goes on).
    """
    text, package = compiled(image, pod)
    values = parameters(package, given)
    warn_unpinned(image)
    with connect(where) as kfp:
        version = upload(kfp, text, package)
        title = name or f"{package.name} {version.name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
        run = kfp.create_run(
            experiment_id=kfp.experiment(experiment),
            display_name=title,
            pipeline=(version.pipeline_id, version.version_id),
            parameters=values,
            service_account=service_account,
        )
        submitted = Submitted(str(run.run_id), kfp.run_link(run.run_id), version)
        note(f"run {title} started: {submitted.link}")
        if wait:
            _follow(kfp, submitted, package)
    return submitted


def upload(kfp: Kfp, text: str, package: Package, newest: bool = False) -> Uploaded:
    """The version with this content: one that is there, or a new one.

    newest: it must be the latest as well, because that is what will be run.
    """
    pipeline_id = kfp.pipeline(package.name)
    if pipeline_id is None:
        info = package.pipeline["pipelineInfo"]
        pipeline_id = _created(kfp, package.name, info)
    versions = kfp.versions(pipeline_id)
    # The oldest of several, so that a schedule pinned to it stays where it is.
    for version in versions[:1] if newest else reversed(versions):
        if Package.from_api(version.pipeline_spec).content == package.content:
            title = version_title(version)
            note(f"version {title} of {package.name} has this content already")
            return Uploaded(pipeline_id, str(version.pipeline_version_id), title, new=False)
    taken = {version.name for version in versions} | {v.display_name for v in versions}
    return _new_version(kfp, pipeline_id, text, package, taken)


def version_title(version: Any) -> str:
    """What a version is called in the UI."""
    return str(version.display_name or version.name)


def _created(kfp: Kfp, name: str, info: dict[str, Any]) -> str:
    try:
        return kfp.create_pipeline(name, info.get("displayName", name), info.get("description", ""))
    except KfpRefused as error:
        pipeline_id = kfp.pipeline(name) if error.status == 409 else None
        if pipeline_id is None:
            raise
        return pipeline_id  # someone else was quicker


def _new_version(
    kfp: Kfp, pipeline_id: str, text: str, package: Package, taken: set[str]
) -> Uploaded:
    stem, number = version_name(), 1
    while True:
        # Several contents can come from one commit: another image, another secret, dirty files.
        name = stem if number == 1 else f"{stem}-{number}"
        if name not in taken:
            try:
                images = ", ".join(package.images)
                version = kfp.upload_version(pipeline_id, name, text, f"image {images}")
            except KfpRefused as error:
                if error.status != 409:
                    raise
            else:
                note(f"version {name} of {package.name} uploaded")
                return Uploaded(pipeline_id, str(version.pipeline_version_id), name, new=True)
        number += 1


def _follow(kfp: Kfp, submitted: Submitted, package: Package) -> None:
    """Wait for the end of a run; raises RunFailed unless it ended well."""
    state, heard = "", time.monotonic()
    try:
        while True:
            try:
                run = kfp.get_run(submitted.run_id)
            except KfpError as error:
                if isinstance(error, KfpRefused) and error.status not in (401, 408, 429):
                    raise
                # A restart of the server, a token that is being renewed.
                if time.monotonic() - heard > _SILENCE:
                    message = f"{error}; the run may go on: {submitted.link}"
                    raise KfpError(message, error.status) from None
            else:
                heard = time.monotonic()
                if run.state != state:
                    state = str(run.state or "")
                    note(f"run is {state.lower() or 'being started'}")
                if state in _ENDED:
                    break
            time.sleep(_POLL)
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, f"the run goes on: {submitted.link}") from None
    if state != "SUCCEEDED":
        raise RunFailed(f"run {state.lower()}: {_why(run, package)}; {submitted.link}")


def _why(run: Any, package: Package) -> str:
    """The failed steps by the names of the UI, with what KFP says about each."""
    details = (run.run_details.task_details if run.run_details else None) or []
    failed = [task for task in details if task.state in ("FAILED", "CANCELED")]
    # Loops, conditions and the whole fail as well when one of their steps does, and a step is
    # reported together with its driver and its container.
    titles = package.titles()
    known = set(package.steps) | {titles[name] for name in package.steps}
    steps = [task for task in failed if task.display_name in known] or [
        task for task in failed if task.display_name not in ("root", package.name)
    ]
    reasons = []
    for task in steps:
        title = titles.get(task.display_name, task.display_name)
        reason = _error(task)
        reasons.append(f"{title} ({reason})" if reason else str(title))
    reason = _error(run)
    if not reasons:
        return reason or "KFP names no failed step"
    return "; ".join(dict.fromkeys(reasons)) + (f"; {reason}" if reason else "")


def _error(thing: Any) -> str:
    """What KFP says of a run or task: its own error, else that of its last state."""
    history = [entry.error for entry in thing.state_history or [] if entry.error]
    for error in [thing.error, *reversed(history)]:
        if error is not None and error.message:
            return " ".join(str(error.message).split())
    return ""
