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
from pipelines.server.cluster import RUN_LABEL, Cluster
from pipelines.server.package import Package, compiled, parameters, version_name

_POLL = 10.0
_SILENCE = 600.0
"""Seconds without an answer after which waiting is given up."""
_STILL = 60.0
"""Seconds for which pods may wait to start before it is said."""
_ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
_TERMINATING = "CANCELING"
"""The state of a run that is to end because somebody wants it to; then it is one that failed."""


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
    which: str = "train",
) -> Submitted:
    """Start a run; with ``wait`` return when it has ended well.

    given: the pipeline's parameters as ``key=value``; image: of all steps. name: of the run; by
    default the pipeline's, the version and the time. service_account: of the steps' pods; None is
    KFP's own. which: of pipelines.PIPELINES.

    Raises ConfigError for parameters that do not fit before anything is sent, UserError and
    KfpError as :func:`pipelines.server.api.connect`, UserError for a secret that the cluster (where
    it can be asked) does not have, RunFailed, and Interrupted when waiting was interrupted (the run
    goes on).
    """
    text, package = compiled(image, pod, which)
    values = parameters(package, given)
    warn_unpinned(image)
    with connect(where) as kfp:
        cluster = Cluster(where, package)
        cluster.check(pod)
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
            _follow(kfp, submitted, package, cluster)
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


def _follow(kfp: Kfp, submitted: Submitted, package: Package, cluster: Cluster) -> None:
    """Wait for the end of a run; raises RunFailed unless it ended well."""
    progress = _Progress(submitted, cluster)
    state, heard, told_to_end = "", time.monotonic(), False
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
                told_to_end |= state == _TERMINATING
                if state in _ENDED:
                    break
                progress.look(run)
            time.sleep(_POLL)
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, f"the run goes on: {submitted.link}") from None
    if state == "SUCCEEDED":
        return
    if told_to_end or _was_terminated(run) or cluster.terminated(submitted.run_id):
        raise RunFailed(f"run terminated: somebody has told KFP to end it; {submitted.link}")
    raise RunFailed(f"run {state.lower()}: {_why(run, package, submitted, cluster)}")


class _Progress:
    """Says why a run stands still while it does."""

    def __init__(self, submitted: Submitted, cluster: Cluster) -> None:
        self._run_id, self._cluster = submitted.run_id, cluster
        self._said: list[str] = []
        self._still_since: float | None = None

    def look(self, run: Any) -> None:
        if self._cluster.reachable:
            waiting = self._cluster.waiting(self._run_id)
            for words in waiting:
                if words not in self._said:
                    note(f"waiting: {words}")
            self._said = waiting
            return
        if not _stands_still(run):
            self._still_since = None
            return
        now = time.monotonic()
        if self._still_since is None:
            self._still_since = now
        elif now - self._still_since > _STILL and not self._said:
            self._said = [
                f"nothing of the run has started for {_STILL:.0f} s, perhaps for want of CPU: "
                f"kubectl -n {self._cluster.namespace} describe pods -l {RUN_LABEL}={self._run_id}"
            ]
            note(self._said[0])


def _stands_still(run: Any) -> bool:
    """Whether pods of the run wait to start and none is at work, as far as KFP's API tells."""
    tasks = _tasks(run)
    pods = [t for t in tasks if t.display_name == "executor" or t.display_name.endswith("-driver")]
    return any(t.state == "PENDING" for t in pods) and not any(t.state == "RUNNING" for t in pods)


def _tasks(run: Any) -> list[Any]:
    return list((run.run_details.task_details if run.run_details else None) or [])


def _was_terminated(run: Any) -> bool:
    return any(entry.state == _TERMINATING for entry in run.state_history or [])


def _why(run: Any, package: Package, submitted: Submitted, cluster: Cluster) -> str:
    """The failed steps by the names of the UI, what each said last, and where to see more."""
    failed = [task for task in _tasks(run) if task.state in ("FAILED", "CANCELED")]
    # Loops, conditions and the whole fail as well when one of their steps does, and a step is
    # reported together with its driver and its container.
    titles = package.titles()
    known = set(package.steps) | {titles[name] for name in package.steps}
    steps = [task for task in failed if task.display_name in known] or [
        task for task in failed if task.display_name not in ("root", package.name)
    ]
    reasons = cluster.reasons(submitted.run_id)
    names = [titles.get(task.display_name, task.display_name) for task in steps]
    told = [
        f"{name} ({reasons[name]})" if name in reasons else str(name)
        for name in dict.fromkeys([*names, *reasons])
    ]
    what = "; ".join(told) or "KFP names no failed step"
    if not reasons:
        what += f"; its log says why: {cluster.logs_command(submitted.run_id)}"
    return f"{what}; {submitted.link}"
