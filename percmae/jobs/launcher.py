"""The launcher: has work done by a job, which it creates or finds again and follows to its end.

It may die and be started again at any time; the job is found by its name (percmae.jobs.work) and
known by the digest of what it was made of (percmae.jobs.spec):

- a job that is under way and was made of the same: followed;
- under way, made of something else: an error that says what differs;
- ended: removed and started anew. (Whoever launches looks in the store first; a job that ended
  well but whose result is not there is of no use.)

Two clocks: a job may wait as long as its queue takes (``queue_deadline``), and run as long as
``deadline`` allows, which the job's own object says too. Told to stop by SIGTERM or SIGINT, the
launcher removes the job, unless others follow it (percmae.jobs.claims), or its own pod is only
being moved: the launcher in the next one finds the job. Trainings of several pods make room for
each other (percmae.jobs.turns).
"""

from __future__ import annotations

import time
from contextlib import closing

from percmae.errors import Interrupted, PercmaeError, UserError
from percmae.jobs import claims, state
from percmae.jobs.advice import advise
from percmae.jobs.claims import Claim
from percmae.jobs.client import Client, ClusterError, Refused, Unreachable
from percmae.jobs.logs import Follower, last_lines
from percmae.jobs.names import (
    DIGEST_ANNOTATION,
    EVENT,
    INSTANCE_LABEL,
    JOBS,
    Object,
)
from percmae.jobs.pods import Pods
from percmae.jobs.schema import JobSettings
from percmae.jobs.spec import job_object
from percmae.jobs.turns import Turns
from percmae.jobs.work import Work
from percmae.progress import note, relay
from percmae.signals import Signals

PATIENCE = 600.0
"""Seconds to bear an API server that does not answer: the job goes on meanwhile."""
INTERVAL = 2.0
"""Seconds between two looks at a job."""
TAIL = 20
"""Lines shown of each pod that failed."""


class JobFailed(PercmaeError):
    """The job ended without a result."""


class JobRefused(JobFailed, UserError):
    """The job ended because its input was bad: the same again would end the same."""

    exit_code = 2


def launch(work: Work, settings: JobSettings, pipeline_run: str = "") -> None:
    """Create or find the job that carries out ``work``, show its log, and return when it is done.

    pipeline_run: id of the pipeline's run it belongs to, for :func:`clean`.
    Raises ConfigError for settings that no job could have, UserError when another job has the
    name, JobFailed (JobRefused for bad input) with the reason when it fails, Interrupted after
    SIGTERM or SIGINT, ClusterError when the API server refuses or stays silent.
    """
    with _signals() as stop, closing(_Launcher(work, settings, stop, pipeline_run)) as launcher:
        launcher.run()


def submit(work: Work, settings: JobSettings, pipeline_run: str = "") -> str:
    """Create or find the job and return its name at once; see :func:`launch`."""
    with _signals() as stop, closing(_Launcher(work, settings, stop, pipeline_run)) as launcher:
        return launcher.begin()


def clean(pipeline_run: str, namespace: str | None) -> list[str]:
    """Give up what a pipeline's run has left under way: :func:`percmae.jobs.claims.clean`."""
    return claims.clean(pipeline_run, namespace, PATIENCE)


def _signals() -> Signals:
    return Signals(again="stopped at once; the job may go on in the cluster")


class _Launcher:
    """Has one job in the cluster, from its creation to its end."""

    def __init__(self, work: Work, settings: JobSettings, stop: Signals, pipeline_run: str) -> None:
        self.settings, self.stop = settings.for_stage(work.stage, work.trains), stop
        self.client = client = Client(settings.namespace, PATIENCE)
        self.claim = Claim(client, pipeline_run)
        self.wanted = job_object(work, settings, self.claim.owner)
        self.claim.mark(self.wanted)  # not part of the digest: others may follow the same job
        self.name = self.wanted["metadata"]["name"]
        self.resource = JOBS[self.wanted["kind"]]
        self.path = client.path(self.resource, self.name)
        self.job: Object = {}  # as it was last seen
        self.uid = ""
        self.follower: Follower | None = None
        self.pods = Pods(client, f"{INSTANCE_LABEL}={self.name}", stop.wake)
        queued = settings.queue is not None or settings.volcano_queue is not None
        alone = state.needed(self.wanted) < 2
        self.turns = None if alone or queued else Turns(client, self.resource, self.path)
        self._shown: set[str] = set()  # pods whose log was
        self._said = ""
        self._stuck_since: float | None = None

    def close(self) -> None:
        """Stop watching; the job goes on."""
        self.pods.close()

    # Begin -----------------------------------------------------------------------------------

    def begin(self) -> str:
        """Have the job in the cluster; its name."""
        advise(self.settings)
        self._sweep()
        job: Object | None = None
        while job is None:
            try:
                job = self.client.create(self.resource, self.wanted)
                note(f"{self._what()} created in namespace {self.client.namespace}")
            except Refused as error:
                if error.status != 409:
                    raise
                job = self._adopt()
        self.job, self.uid = job, job["metadata"]["uid"]
        return self.name

    def _adopt(self) -> Object | None:
        """The job that has the name already, if it is ours; None when the name is free again."""
        job = self.client.get(self.path)
        if job is None:
            return None
        metadata = job["metadata"]
        if "deletionTimestamp" in metadata:
            note(f"{self._what()}: waiting for an earlier one to be gone")
            self._wait_gone(metadata["uid"])
            return None
        ended = state.ending(job)
        if ended is not None:
            how = "well" if ended.succeeded else f"badly ({ended.message})"
            note(f"{self._what()} ended {how} earlier, without a result that can be used: anew")
            self.client.delete(self.path, metadata["uid"])
            self._wait_gone(metadata["uid"])
            return None
        if metadata.get("annotations", {}).get(DIGEST_ANNOTATION) != self._digest():
            self._refuse(job)
        note(f"{self._what()} is under way: following it")
        return self.claim.add(self.path, job)

    def _sweep(self) -> None:
        """Remove what earlier launchers could not: see :func:`percmae.jobs.claims.sweep`."""
        try:
            claims.sweep(self.client, self.resource)
        except Refused as error:  # no right to list is no reason not to launch
            note(f"no look for {self.resource.kind}s that have ended long ago: {error}")

    def _digest(self) -> str:
        return str(self.wanted["metadata"]["annotations"][DIGEST_ANNOTATION])

    def _refuse(self, job: Object) -> None:
        labels = dict(self.wanted["metadata"]["labels"])
        labels.pop(self.claim.label)
        wanted = {"spec": self.wanted["spec"], "metadata": {"labels": labels}}
        differs = list(state.differences(wanted, job))[:4] or ["made by another version of percmae"]
        raise UserError(
            f"{self._what()} is under way with other settings ({'; '.join(differs)}); wait for it, "
            f"give the same settings, or remove it: kubectl delete {self.resource.kind.lower()} "
            f"{self.name} -n {self.client.namespace}"
        )

    def _wait_gone(self, uid: str) -> None:
        """Until the job with this uid and all its pods are gone."""
        deadline = time.monotonic() + self.settings.grace + 120
        while True:
            job = self.client.get(self.path)
            if (job is None or job["metadata"]["uid"] != uid) and not self.pods.look():
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"{self._what()} is being removed, but does not go")
            if self.stop.wait(0.5):
                time.sleep(0.5)  # asked to stop already: the waiting is part of it

    # Follow ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Have the job done."""
        self.begin()
        try:
            self._follow()
        except Unreachable as error:
            raise Unreachable(
                f"{error}; {self._what()} goes on without this launcher, start it again to follow",
                error.reason,
            ) from None

    def _follow(self) -> None:
        self.pods.watch()
        since, running = time.monotonic(), False
        while True:
            job = self._look()
            pods = self.pods.look()
            self._check_restarts()
            first = state.rank_zero(job, pods)
            if first is not None:
                self._show_log(first)
            ended = state.ending(job)
            if ended is not None:
                self._finish(ended)
                return
            if self.turns is not None and self.turns.look(job, pods):
                self.pods.forget()
            began = first is not None and state.begun(job, pods)
            if began and not running:
                self._say(f"{self._what()} is running, {len(pods)} pod(s)")
                since, running = time.monotonic(), True
            elif not began:
                self._waiting(job, pods)
            self._check_clocks(running, time.monotonic() - since)
            if self.stop.wait(INTERVAL):
                self._cancel()

    def _look(self) -> Object:
        job = self.client.get(self.path)
        if job is None or job["metadata"]["uid"] != self.uid or self._leaving(job):
            self._end_log()
            raise JobFailed(
                f"{self._what()} was removed from the cluster by someone else; what it had saved "
                "is in the store"
            )
        self.job = job
        return job

    def _leaving(self, job: Object) -> bool:
        return "deletionTimestamp" in job["metadata"] and state.ending(job) is None

    def _show_log(self, pod: Object) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        if state.phase(pod) == "Pending" or (self.follower and self.follower.uid == uid):
            return
        if self.follower is not None:
            self._end_log()
            note(f"pod {name} was replaced; its log begins again")
        container = pod["spec"]["containers"][0]["name"]
        self.follower = Follower(self.client, name, uid, container, relay)
        self._shown.add(name)

    def _end_log(self) -> None:
        if self.follower is not None:
            self.follower.finish()
            self.follower = None

    def _waiting(self, job: Object, pods: list[Object]) -> None:
        """Say why, once for each reason; a pod that cannot start is not waited for endlessly."""
        events = [] if pods else self._events()
        self._say(f"{self._what()} is waiting: {state.waits_for(job, pods, events)}")
        reasons = [reason for pod in pods if (reason := state.stuck(pod))]
        if not reasons:
            self._stuck_since = None
            return
        self._stuck_since = self._stuck_since or time.monotonic()
        hopeless = reasons[0].startswith(state.HOPELESS)
        if hopeless or time.monotonic() - self._stuck_since > self.settings.stuck_deadline:
            self._remove(f"cannot start: {reasons[0]}")

    def _events(self) -> list[Object]:
        selector = f"involvedObject.name={self.name},involvedObject.uid={self.uid}"
        return self.client.select(EVENT, fieldSelector=selector)[0]

    def _say(self, message: str) -> None:
        if message != self._said:
            self._said = message
            note(message)

    def _check_clocks(self, running: bool, seconds: float) -> None:
        limit = self.settings.deadline if running else self.settings.queue_deadline
        if limit is not None and seconds > limit:
            waited = f"has waited to begin for {limit} s, the job setting queue_deadline"
            self._remove(self._overran(limit) if running else waited)

    def _check_restarts(self) -> None:
        for message in self.pods.replaced():
            note(message)
        looping = self.pods.crash_loop(self.settings.backoff_limit)
        if looping:
            self._remove(f"failed: {looping}")

    # End -------------------------------------------------------------------------------------

    def _finish(self, ended: state.Ending) -> None:
        self._end_log()
        if ended.succeeded:
            note(f"{self._what()} is done")
            return
        if state.OVERRAN in ended.message:  # its pods ended with 143, which says less
            raise JobFailed(f"{self._what()} {self._overran(self.settings.deadline)}")
        self.pods.look()
        raise self._failure(ended.message)

    @staticmethod
    def _overran(seconds: int | None) -> str:
        return f"has run for {seconds} s, the job setting deadline"

    def _failure(self, message: str) -> JobFailed:
        """What went wrong, after the last lines of the pods whose log is not shown."""
        reason, code = message, None
        for place, failure in enumerate(self.pods.failures()):
            lines = last_lines(self.client, failure.pod, failure.container, TAIL)
            if lines and failure.pod not in self._shown:
                note(f"last lines of pod {failure.pod}:")
                for line in lines:
                    relay(f"  {line}")
            if place == 0:
                code = failure.code
                said = _said_last(lines)
                reason = f"{failure}{f': {said}' if said else ''}"
        text = f"{self._what()} failed: {reason}"
        return JobRefused(text) if code == UserError.exit_code else JobFailed(text)

    def _remove(self, reason: str) -> None:
        """Give up: raise JobFailed, and leave no pod behind."""
        self._end_log()
        self.client.delete(self.path, self.uid)
        raise JobFailed(f"{self._what()} {reason}; it was removed")

    def _cancel(self) -> None:
        """Told to stop. KFP leaves a step little more than half a second: the request first."""
        assert self.stop.received is not None
        if self.claim.moved():
            raise Interrupted(
                self.stop.received,
                f"this pod is being moved; {self._what()} goes on, the next launcher follows it",
            )
        others = self.claim.give_up(self.path, self.job)
        if others:
            raise Interrupted(
                self.stop.received, f"{self._what()} goes on: {', '.join(others)} follows it too"
            )
        note(f"stopping {self._what()}: its pods save their work (again: leave at once)")
        self._end_log()
        self._wait_gone(self.uid)
        raise Interrupted(
            self.stop.received,
            f"{self._what()} was removed; the same command goes on from its last checkpoint",
        )

    def _what(self) -> str:
        return f"{self.resource.kind} {self.name}"


def _said_last(lines: list[str]) -> str:
    """The line that says what failed: our own, else the last one."""
    ours = [line for line in lines if line.startswith(("percmae: error:", "percmae: stopped:"))]
    if ours:
        return ours[0].partition(": ")[2].partition(": ")[2]
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
