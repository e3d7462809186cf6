"""Has work done by a job in a cluster: creates it or finds it again, and follows it to its end.

The process that launches may die and be started again at any time; the job is found by its name
(percmae.jobs.work) and known by the digest of what it was made of (percmae.jobs.spec):

- a job that is under way and was made of the same: followed;
- under way, made of something else: an error that says what differs;
- ended: removed and started anew. (Whoever launches looks in the store first; a job that ended
  well but whose result is not there is of no use.)

Two clocks: a job may wait as long as its queue takes (``queue_deadline``), and run as long as
``deadline`` allows, which the job's own object says too. Told to stop by SIGTERM or SIGINT, the
launcher removes the job; killed outright in a cluster, its pod owns the job and takes it along.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from percmae.errors import Interrupted, PercmaeError, UserError
from percmae.jobs import state
from percmae.jobs.check import warnings
from percmae.jobs.cluster import Cluster, ClusterError, Conflict
from percmae.jobs.logs import Follower
from percmae.jobs.names import Object
from percmae.jobs.pods import Pods
from percmae.jobs.settings import JobSettings
from percmae.jobs.spec import DIGEST, job_object
from percmae.jobs.work import Work
from percmae.progress import note, relay, warn

INTERVAL = 2.0
"""Seconds between two looks at a job."""
RUN_OF_PIPELINE = "percmae.dev/pipeline-run"
"""Label of a job: the pipeline's run that made it."""
TAIL = 20
"""Lines shown of each pod that failed."""


class JobFailed(PercmaeError):
    """The job ended without a result."""


class JobRefused(JobFailed, UserError):
    """The job ended because its input was bad: the same again would end the same."""

    exit_code = 2


def launch(
    work: Work, settings: JobSettings, pipeline_run: str = "", cluster: Cluster | None = None
) -> None:
    """Create or find the job that carries out ``work``, show its log, and return when it is done.

    pipeline_run: id of the pipeline's run it belongs to, for :func:`clean`.
    Raises ConfigError for settings that no job could have, UserError when another job has the
    name, JobFailed (JobRefused for bad input) with the reason when it fails, Interrupted after
    SIGTERM or SIGINT, ClusterError when the API server refuses or stays silent.
    """
    cluster = cluster or Cluster(settings.namespace)
    with stop_signals() as stop:
        launched = _Launch(work, settings, cluster, stop, pipeline_run)
        with closing(launched):
            launched.run()


def submit(
    work: Work, settings: JobSettings, pipeline_run: str = "", cluster: Cluster | None = None
) -> str:
    """Create or find the job and return its name at once; see :func:`launch`."""
    cluster = cluster or Cluster(settings.namespace)
    with stop_signals() as stop:
        return _Launch(work, settings, cluster, stop, pipeline_run).begin()


def clean(pipeline_run: str, cluster: Cluster) -> list[str]:
    """Remove the jobs that a pipeline's run has left under way; their names.

    What the run's steps do themselves when they are told to stop, for steps that were not asked.
    """
    removed = []
    for kind in ("PyTorchJob", "TrainJob", "Job"):
        try:
            jobs, _ = cluster.select(kind, labelSelector=f"{RUN_OF_PIPELINE}={pipeline_run}")
        except ClusterError as error:
            note(f"{kind}s not looked for: {error}")
            continue
        for job in jobs:
            if state.ending(job) is None:
                metadata = job["metadata"]
                cluster.delete(kind, metadata["name"], metadata["uid"])
                removed.append(f"{kind} {metadata['name']}")
    return removed


class StopSignals:
    """Which signal has asked to stop, and a way to wait for one."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._event = threading.Event()

    def wake(self) -> None:
        """End a wait early: there is something to look at."""
        self._event.set()

    def receive(self, number: int, frame: object) -> None:
        """Signal handler; the second signal ends at once."""
        if self.received is not None:
            raise Interrupted(number, "stopped at once; the job may go on in the cluster")
        self.received = number
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until a signal or :meth:`wake`; whether to stop."""
        self._event.wait(seconds)
        if self.received is None:
            self._event.clear()
        return self.received is not None


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """SIGTERM and SIGINT as a request to stop, where this is the main thread."""
    stop = StopSignals()
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, stop.receive)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Launch:
    def __init__(
        self,
        work: Work,
        settings: JobSettings,
        cluster: Cluster,
        stop: StopSignals,
        pipeline_run: str = "",
    ) -> None:
        self.settings, self.cluster, self.stop = settings, cluster, stop
        self.owner = cluster.owner()
        self.made = job_object(work, settings, self.owner)
        if pipeline_run:  # not part of the digest: another run may follow the same job
            self.made["metadata"]["labels"][RUN_OF_PIPELINE] = pipeline_run
        self.kind, self.name = self.made["kind"], self.made["metadata"]["name"]
        self.uid = ""
        self.follower: Follower | None = None
        self._said = ""
        self._stuck_since: float | None = None
        self.pods = Pods(cluster, f"{state.INSTANCE}={self.name}", stop.wake)

    def close(self) -> None:
        """Stop watching; the job goes on."""
        self.pods.close()

    # Begin -----------------------------------------------------------------------------------

    def begin(self) -> str:
        """Have the job in the cluster; its name."""
        for warning in warnings(self.settings):
            warn(warning)
        while True:
            try:
                job = self.cluster.create(self.kind, self.made)
                note(f"{self._what()} created in namespace {self.cluster.namespace}")
            except Conflict:
                found = self._adopt()
                if found is None:
                    continue  # it has gone in between
                job = found
            self.uid = job["metadata"]["uid"]
            return self.name

    def _adopt(self) -> Object | None:
        """The job that has the name already, if it is ours; None when the name is free again."""
        job = self.cluster.get(self.kind, self.name)
        if job is None:
            return None
        if "deletionTimestamp" in job["metadata"]:
            note(f"{self._what()}: waiting for an earlier one to be gone")
            self._wait_gone(job["metadata"]["uid"])
            return None
        ended = state.ending(job)
        if ended is not None:
            how = "well" if ended.succeeded else f"badly ({ended.message})"
            note(f"{self._what()} ended {how} earlier, without a result that can be used: anew")
            self.cluster.delete(self.kind, self.name, job["metadata"]["uid"])
            self._wait_gone(job["metadata"]["uid"])
            return None
        if job["metadata"].get("annotations", {}).get(DIGEST) != self._digest():
            self._refuse(job)
        note(f"{self._what()} is under way: following it")
        owners = job["metadata"].get("ownerReferences", [])
        if self.owner is not None and self.owner not in owners:
            self.cluster.own(self.kind, self.name, [*owners, self.owner])
        return job

    def _digest(self) -> str:
        return str(self.made["metadata"]["annotations"][DIGEST])

    def _refuse(self, job: Object) -> None:
        wanted = {
            "spec": self.made["spec"],
            "metadata": {"labels": self._labels()},
        }
        found = list(state.differences(wanted, job))[:4] or ["made by another version of percmae"]
        raise UserError(
            f"{self._what()} is under way with other settings ({'; '.join(found)}); wait for it, "
            f"give the same settings, or remove it: kubectl delete {self.kind.lower()} "
            f"{self.name} -n {self.cluster.namespace}"
        )

    def _labels(self) -> Object:
        labels: Object = self.made["metadata"]["labels"]
        return {key: value for key, value in labels.items() if key != RUN_OF_PIPELINE}

    def _wait_gone(self, uid: str) -> None:
        """Until the job with this uid and all its pods are gone."""
        deadline = time.monotonic() + self.settings.grace + 120
        while True:
            job = self.cluster.get(self.kind, self.name)
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
        self.pods.watch()
        since, running = time.monotonic(), False
        while True:
            job = self._look()
            pods = self.pods.look()
            self._check_restarts()
            first = state.rank_zero(job, pods)
            if first is not None:
                self._follow(first)
            ended = state.ending(job)
            if ended is not None:
                self._finish(ended)
                return
            began = first is not None and state.phase(first) != "Pending"
            if began and not running:
                self._say(f"{self._what()} is running, {len(pods)} pod(s)")
                since, running = time.monotonic(), True
            elif not began:
                self._waiting(job, pods)
            self._check_clocks(running, time.monotonic() - since)
            if self.stop.wait(INTERVAL):
                self._cancel()

    def _look(self) -> Object:
        job = self.cluster.get(self.kind, self.name)
        if job is None or job["metadata"]["uid"] != self.uid or self._leaving(job):
            self._end_log()
            raise JobFailed(
                f"{self._what()} was removed from the cluster by someone else; what it had saved "
                "is in the store"
            )
        return job

    def _leaving(self, job: Object) -> bool:
        return "deletionTimestamp" in job["metadata"] and state.ending(job) is None

    def _follow(self, pod: Object) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        if state.phase(pod) == "Pending" or (self.follower and self.follower.uid == uid):
            return
        if self.follower is not None:
            self._end_log()
            note(f"pod {name} was replaced; its log begins again")
        container = pod["spec"]["containers"][0]["name"]
        self.follower = Follower(self.cluster, name, uid, container, relay)

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
        return self.cluster.select("Event", fieldSelector=selector)[0]

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
            text = self.cluster.log(failure.pod, failure.container, tail=TAIL)
            lines = [line.partition(" ")[2] for line in text.splitlines()]
            if not failure.pod.endswith("-master-0") and self.kind != "Job":
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
        self.cluster.delete(self.kind, self.name, self.uid)
        raise JobFailed(f"{self._what()} {reason}; it was removed")

    def _cancel(self) -> None:
        assert self.stop.received is not None
        note(f"stopping {self._what()}: its pods save their work (again: leave at once)")
        self.cluster.delete(self.kind, self.name, self.uid)
        self._end_log()
        self._wait_gone(self.uid)
        raise Interrupted(
            self.stop.received,
            f"{self._what()} was removed; the same command goes on from its last checkpoint",
        )

    def _what(self) -> str:
        return f"{self.kind} {self.name}"


def _said_last(lines: list[str]) -> str:
    """The line that says what failed: our own, else the last one."""
    ours = [line for line in lines if line.startswith(("percmae: error:", "percmae: stopped:"))]
    if ours:
        return ours[0].partition(": ")[2].partition(": ")[2]
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
